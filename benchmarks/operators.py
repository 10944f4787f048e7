"""The onnx package's operator cases through a plugin and through its bare runtime, side by side: what the scripts of
the runtimes share (`openvino_operators.py`, `onnxruntime_operators.py`).

*plugin*: convert in f32, open, call. *as it is*: the plugin opens the ONNX file itself. Each arm runs in a process of
its own, so that a case that ends it is counted, and the next one runs.
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
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecore.contract import EdgecoreError
from edgecore_conformance.checks.tensor_operators import REFUSALS, close
from edgecore_conformance.fixtures.operators import OperatorCase, excluded_cases, operator_cases

Arrays = Mapping[str, NDArray[Any]]
Arm = Callable[[Path, Arrays, Sequence[str]], Arrays]
"""A file, its feeds and the names of its outputs: the outputs by name. A failure to read or to compile is
`NotImplementedError`."""
KINDS = ("right", "within 1 %", "wrong", "run error", "unsupported", "crashed")
SECONDS = 60.0
"""For one case; one that takes longer has hung."""
NEAR = 0.01


def through_plugin(backend: str, format: str, file: Path, feeds: Arrays, outputs: Sequence[str]) -> Arrays:
    from edgecore.contract import Artifact, ConvertLimits

    with tempfile.TemporaryDirectory() as folder:
        made = _plugin(backend).convert(
            source=file, out=Path(folder), format=format, precision="f32", options=_options(backend, "convert"),
            limits=ConvertLimits(),
        )  # fmt: skip
        return _call(Artifact(Path(folder), backend, "tensor", format, "f32", made.files, id="operator"), feeds)


def as_it_is(backend: str, format: str, file: Path, feeds: Arrays, outputs: Sequence[str]) -> Arrays:
    from edgecore.contract import Artifact, PayloadFile

    return _call(Artifact(file, backend, "tensor", format, "", (PayloadFile(file.name, "model"),)), feeds)


def _call(artifact: Any, feeds: Arrays) -> Arrays:
    backend = artifact.backend
    options = _options(backend, "run")
    with _plugin(backend).open(artifact, device=device(), threads=1, options=options) as session:
        answer: Arrays = session(feeds)
        return answer


def _plugin(backend: str) -> Any:
    from edgecore import registry
    from edgecore.workers import connect

    if not _kept:
        _kept.append(connect(registry.find(backend), isolated=False))
    return _kept[0]


def _options(backend: str, verb: str) -> Any:
    from edgecore.contract.options import resolve

    return resolve(_plugin(backend).entry.ready_manifest.options_of(verb), {}, verb, backend)


_kept: list[Any] = []
_device = ["cpu"]


def device() -> str:
    """What `--device` says, in the process that runs a case."""
    return _device[0]


def attempt(arm: Arm, on: str, model: bytes, feeds: Arrays, outputs: Sequence[str]) -> Arrays | tuple[str, str]:
    """The answer, or the kind of its failure and the words. Runs in a process that it may end."""
    _device[0] = on
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(model)
        try:
            return arm(file, feeds, outputs)
        except NotImplementedError as error:
            return "unsupported", str(error)
        except EdgecoreError as error:
            name = type(error).__name__
            refused = name in (*REFUSALS, "PlacementRefused")
            return "unsupported" if refused else "run error", f"{name}: {error}"
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


def run(name: str, arm: Arm, on: str, cases: Sequence[OperatorCase]) -> dict[str, tuple[str, str]]:
    """What became of each case, by its name."""
    found: dict[str, tuple[str, str]] = {}

    def fresh() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, get_context("spawn"))

    pool = fresh()
    for number, case in enumerate(cases):
        if number % 100 == 0:
            print(f"  {name}: {number} of {len(cases)}", file=sys.stderr, flush=True)
        try:
            answer = pool.submit(attempt, arm, on, case.model, case.inputs, list(case.outputs)).result(SECONDS)
            found[case.name] = judged(case, answer)
        except (BrokenExecutor, TooLong) as error:
            found[case.name] = ("crashed", "it hung" if isinstance(error, TooLong) else "the process died")
            for process in list((pool._processes or {}).values()):
                process.kill()
            pool.shutdown(wait=False)
            pool = fresh()
    pool.shutdown()
    return found


def main(
    about: str | None, backend: str, format: str, bare: Mapping[str, Arm], devices: Sequence[str] = ("cpu",)
) -> int:
    """`bare` holds the arms without the plugin, `bare` first."""
    arms: dict[str, Arm] = {
        **bare,
        "plugin": partial(through_plugin, backend, format),
        "as it is": partial(as_it_is, backend, format),
    }
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--level", choices=["quick", "full"], default="full")
    parser.add_argument("--device", choices=devices, default=devices[0])
    parser.add_argument("--arm", action="append", choices=list(arms), help="default: all")
    parser.add_argument("--opset", type=int, default=0, help="only cases up to this operator set")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    cases = [c for c in operator_cases(given.level) if not given.opset or c.opset <= given.opset]
    left_out = Counter(excluded_cases().values()) if given.level == "full" else Counter[str]()
    results = {arm: run(arm, arms[arm], given.device, cases) for arm in given.arm or arms}
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
        told = {c.name: {"operator": c.operator, "opset": c.opset} for c in cases}
        given.json.write_text(json.dumps({"cases": told, "results": results}, indent=1))
    fewest = min((counts[arm]["right"] for arm in ("plugin", "as it is") if arm in counts), default=0)
    return 1 if "bare" in counts and len(counts) > 1 and fewest < counts["bare"]["right"] else 0
