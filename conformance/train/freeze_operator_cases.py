"""Freezes the operator cases of level quick: the names in data/operators-quick.txt, from the installed `onnx` package.

    pip install onnx==1.23.2
    python conformance/train/freeze_operator_cases.py

Onnx stamps a case with the operator set that last changed its operator, even where only types were added; few runtimes
take those sets. Each case is stamped with set 21 instead where that means the same: the checker takes it, and onnx's
own reference gives the expected outputs.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from edgecore_conformance.fixtures import operators

DATA = operators.FROZEN.parent
OPSET, IR = 21, 10


def main() -> None:
    names = [line.removeprefix("test_") for line in (DATA / "operators-quick.txt").read_text().split()]
    found = {name: (model, inputs, outputs) for name, model, inputs, outputs in operators._all()}
    files: dict[str, bytes] = {}
    for name in names:
        model, inputs, outputs = found[name]
        model = stamped(model)
        for role, values, declared in (("input", inputs, model.graph.input), ("output", outputs, model.graph.output)):
            for number, (value, about) in enumerate(zip(values, declared, strict=True)):
                tensor = onnx.numpy_helper.from_array(operators._array(value), about.name)
                files[f"{name}/{role}_{number}.pb"] = tensor.SerializeToString(deterministic=True)
        files[f"{name}/model.onnx"] = model.SerializeToString(deterministic=True)
        check(operators.case_of(name, model, inputs, outputs))
    write(DATA / operators.FROZEN.name, files)
    print(len(names), "cases,", len({operators.case_of(n, *found[n]).operator for n in names}), "operators")


def stamped(model: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for opset in made.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = OPSET
    made.ir_version = IR
    try:
        onnx.checker.check_model(made, full_check=True)
    except onnx.checker.ValidationError:
        assert all(o.version <= OPSET for o in model.opset_import), model.graph.name
        return model  # written in an older set, which every runtime that takes 21 takes too
    return made


def check(case: operators.OperatorCase) -> None:
    """Raises `AssertionError` where onnx's reference says otherwise, at the set that the model is stamped with."""
    answers = ReferenceEvaluator(onnx.load_from_string(case.model)).run(None, dict(case.inputs))
    for answer, (name, expected) in zip(answers, case.outputs.items(), strict=True):
        assert np.asarray(answer).dtype == expected.dtype, (case.name, name, np.asarray(answer).dtype, expected.dtype)
        np.testing.assert_allclose(answer, expected, case.rtol, case.atol, err_msg=f"{case.name}: {name}")


def write(file: Path, files: dict[str, bytes]) -> None:
    """Without dates, so that the same cases are the same bytes."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED, 9)


if __name__ == "__main__":
    main()
