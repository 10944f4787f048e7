"""The onnx package's operator cases through the OpenVINO plugin and through bare OpenVINO, side by side.

    python benchmarks/openvino_operators.py                 # every case whose inputs and outputs are tensors
    python benchmarks/openvino_operators.py --level quick   # the conformance suite's hundred
    python benchmarks/openvino_operators.py --list          # and each case that is not right, by operator
    python benchmarks/openvino_operators.py --json FILE     # and all of it in a file

*bare*: `core.compile_model(core.read_model(file))` on the CPU in float32, and `compiled(feeds)`, inputs by name as the
file has them. *by position*: the same, with inputs given in their order, because OpenVINO loses some names. *plugin*:
convert to IR in f32, open, call. *as it is*: the plugin opens the ONNX file itself. Each runs in a process of its own,
so that a case that ends it is counted, and the next one runs. Ends with 1 when fewer are right through the plugin than
bare.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import operators
from operators import Arrays


def bare(file: Path, feeds: Arrays, outputs: Sequence[str], by_name: bool = True) -> Arrays:
    """OpenVINO with nothing around it. A failure to read or to compile is none of running."""
    import openvino as ov

    from edgecore_openvino.elements import dtype_name, to_array, to_tensor

    try:
        core = ov.Core()
        model = core.read_model(file)
        inputs = [port.node.friendly_name for port in model.inputs]
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    except RuntimeError as error:
        raise NotImplementedError(str(error)) from None
    request = compiled.create_infer_request()
    tensors = {name: to_tensor(feeds[name], feeds[name].dtype.name) for name in (feeds if by_name else inputs)}
    request.infer(tensors if by_name else dict(enumerate(tensors.values())))
    answers = [request.get_output_tensor(number) for number in range(len(compiled.outputs))]
    return {n: to_array(a, dtype_name(a.element_type, n)) for n, a in zip(outputs, answers, strict=True)}


def by_position(file: Path, feeds: Arrays, outputs: Sequence[str]) -> Arrays:
    return bare(file, feeds, outputs, by_name=False)


if __name__ == "__main__":
    sys.exit(operators.main(__doc__, "openvino", "openvino-ir", {"bare": bare, "by position": by_position}))
