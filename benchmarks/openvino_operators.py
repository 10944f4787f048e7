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

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from concurrent.futures import TimeoutError as TooLong
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecore.contract import EdgecoreError
from edgecore_conformance.checks.tensor_operators import REFUSALS, close
from edgecore_conformance.fixtures.operators import OperatorCase, excluded_cases, operator_cases

Arrays = Mapping[str, NDArray[Any]]
KINDS = ("right", "within 1 %", "wrong", "run error", "unsupported", "crashed")
SECONDS = 60.0
"""For one case; one that takes longer has hung."""
NEAR = 0.01


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


def through_plugin(file: Path, feeds: Arrays, outputs: Sequence[str]) -> Arrays:
    from edgecore.contract import Artifact, ConvertLimits

    backend = _plugin()
    with tempfile.TemporaryDirectory() as folder:
        made = backend.convert(
            source=file, out=Path(folder), format="openvino-ir", precision="f32", options=_options("convert"),
            limits=ConvertLimits(),
        )  # fmt: skip
        artifact = Artifact(Path(folder), "openvino", "tensor", "openvino-ir", "f32", made.files, id="operator")
        return _call(artifact, feeds)


def as_it_is(file: Path, feeds: Arrays, outputs: Sequence[str]) -> Arrays:
    from edgecore.contract import Artifact, PayloadFile

    artifact = Artifact(file, "openvino", "tensor", "openvino-ir", "", (PayloadFile(file.name, "model"),))
    return _call(artifact, feeds)


def _call(artifact: Any, feeds: Arrays) -> Arrays:
    with _plugin().open(artifact, device="cpu", threads=1, options=_options("run")) as session:
        answer: Arrays = session(feeds)
        return answer


def _plugin() -> Any:
    from edgecore import registry
    from edgecore.workers import connect

    if not _kept:
        _kept.append(connect(registry.find("openvino"), isolated=False))
    return _kept[0]


def _options(verb: str) -> Any:
    from edgecore.contract.options import resolve

    return resolve(_plugin().entry.ready_manifest.options_of(verb), {}, verb, "openvino")


_kept: list[Any] = []
ARMS: dict[str, Callable[[Path, Arrays, Sequence[str]], Arrays]] = {
    "bare": bare, "by position": by_position, "plugin": through_plugin, "as it is": as_it_is,
}  # fmt: skip


def attempt(arm: str, model: bytes, feeds: Arrays, outputs: Sequence[str]) -> Arrays | tuple[str, str]:
    """The answer, or the kind of its failure and the words. Runs in a process that it may end."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(model)
        try:
            return ARMS[arm](file, feeds, outputs)
        except NotImplementedError as error:
            return "unsupported", str(error)
        except EdgecoreError as error:
            return (
                "unsupported" if type(error).__name__ in REFUSALS else "run error"
            ), f"{type(error).__name__}: {error}"
        except Exception as error:
            return "run error", f"{type(error).__name__}: {error}"


def judged(case: OperatorCase, answer: Arrays | tuple[str, str]) -> tuple[str, str]:
    """One of `KINDS`, and why."""
    if isinstance(answer, tuple):
        return answer
    kind, why = "right", ""
    for name, due in case.outputs.items():
        got = answer.get(name)
        if got is None or got.shape != due.shape or got.dtype != due.dtype:
            came = "nothing" if got is None else f"{got.dtype}{list(got.shape)}"
            return "wrong", f"{name} is {came}, due is {due.dtype}{list(due.shape)}"
        if not close(got, due, case.rtol, case.atol):
            near = close(got, due, NEAR, NEAR * case.atol / case.rtol)
            kind = "within 1 %" if near and kind == "right" else "wrong" if not near else kind
            with np.errstate(invalid="ignore", over="ignore"):
                off = np.nanmax(np.abs(got.astype(np.float64) - due.astype(np.float64)), initial=0.0)
            why = f"{name} is off by up to {off:.3g}"
    return kind, why


def run(arm: str, cases: Sequence[OperatorCase]) -> dict[str, tuple[str, str]]:
    """What became of each case, by its name."""
    found: dict[str, tuple[str, str]] = {}

    def fresh() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, get_context("spawn"))

    pool = fresh()
    for number, case in enumerate(cases):
        if number % 100 == 0:
            print(f"  {arm}: {number} of {len(cases)}", file=sys.stderr, flush=True)
        try:
            answer = pool.submit(attempt, arm, case.model, case.inputs, list(case.outputs)).result(SECONDS)
            found[case.name] = judged(case, answer)
        except (BrokenExecutor, TooLong) as error:
            found[case.name] = ("crashed", "it hung" if isinstance(error, TooLong) else "the process died")
            for process in list((pool._processes or {}).values()):
                process.kill()
            pool.shutdown(wait=False)
            pool = fresh()
    pool.shutdown()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--level", choices=["quick", "full"], default="full")
    parser.add_argument("--arm", action="append", choices=list(ARMS), help="default: all")
    parser.add_argument("--opset", type=int, default=0, help="only cases up to this operator set")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    cases = [c for c in operator_cases(given.level) if not given.opset or c.opset <= given.opset]
    left_out = Counter(excluded_cases().values()) if given.level == "full" else Counter[str]()
    results = {arm: run(arm, cases) for arm in given.arm or ARMS}
    print(f"{len(cases)} cases" + "".join(f"; {n} left out: {why}" for why, n in left_out.most_common()))
    print(f"| | {' | '.join(KINDS)} |\n|---|{'---|' * len(KINDS)}")
    counts = {arm: Counter(kind for kind, _ in found.values()) for arm, found in results.items()}
    for arm, count in counts.items():
        print(f"| {arm} | {' | '.join(str(count[kind]) for kind in KINDS)} |")
    if given.list:
        for arm, found in results.items():
            for case in sorted(cases, key=lambda c: (c.operator, c.name)):
                kind, why = found[case.name]
                if kind != "right":
                    said = " ".join(why.split())[:160]
                    print(f"{arm}: {case.operator}: {case.name} (set {case.opset}): {kind}: {said}")
    if given.json:
        about = {c.name: {"operator": c.operator, "opset": c.opset} for c in cases}
        given.json.write_text(json.dumps({"cases": about, "results": results}, indent=1))
    fewest = min((counts[arm]["right"] for arm in ("plugin", "as it is") if arm in counts), default=0)
    return 1 if "bare" in counts and len(counts) > 1 and fewest < counts["bare"]["right"] else 0


if __name__ == "__main__":
    sys.exit(main())
