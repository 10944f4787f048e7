"""Run, tensor: the operator tier. One row an operator set that is claimed, counted by operator."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgecore.contract.errors import EdgecoreError, Timeout, WorkerCrashed
from edgecore.contract.manifest import Manifest
from edgecore.contract.sessions import TensorSession
from edgecore_conformance import tensor_models as models
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, Check, check
from edgecore_conformance.known import Known
from edgecore_conformance.observation import Judgement, Observation, error_of

if TYPE_CHECKING:
    from edgecore_conformance.fixtures import OperatorCase

CASE_SECONDS = 20.0
REFUSALS = ("UnsupportedModel", "UnsupportedPrecision", "CannotDo")
"""Errors by which a backend says that it does not have an operator or a type: counted, and no failure."""
NOT_HERE = (*REFUSALS, "PlacementRefused")
"""On a device that is no CPU, also by saying that the model would run elsewhere."""
LEAST, LEAST_OF_ACCELERATORS = 0.5, 0.15
"""Share of the cases that must be right: a claim on an operator set is about most of it; on an accelerator about what
such devices have, and no strings, sequences, loops and wide integers, which a third of the cases are about."""
HALF = 2e-2
"""Of an output's largest number, where the device computes in 16 bits: as `tensor.values` allows."""
_FAMILY = re.compile(r"onnx-opset-(\d+)")


@check
class Operators(Check):
    """tensor.operators: the operators of the claimed set, by onnx's own cases.

    Every case is a model of one operator, with inputs and the outputs that the onnx package expects; those of a newer
    operator set than is claimed are left out, and counted. A case is right, refused by a typed error that says the
    operator or the type is not supported, or wrong: another value, shape or type, an untyped error, a dead worker. Each
    wrong case fails the row; at least half of all must be right. The figures list right cases by operator, out of those
    that were not refused.

    No accelerator has all operators: on a device that is no CPU at least 15 in a hundred must be right, and
    `PlacementRefused` (the model would run elsewhere) is a refusal too. Where no precision wider than 16 bits is
    claimed, values may be off by 2 % of an output's largest, as in `tensor.values`, and by as much as 16 bits round
    what is fed.
    """

    seconds = 900.0

    def applies(self, manifest: Manifest) -> bool:
        return any(c.task == "tensor" and _FAMILY.fullmatch(c.family) for c in manifest.claims)

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        families = [f for f in models.claimed(manifest, "family", device) if _FAMILY.fullmatch(f)]
        return [{"family": family} for family in families] or [{"family": "none"}]

    def proves(self, manifest: Manifest, cell: Cell) -> Mapping[str, str]:
        return {"task": "tensor", **cell}

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        seen = Observation({"cases": {}})
        folder = bench.folder("operators")
        for number, case in enumerate(chosen(bench.known.level, cell)):
            file = folder / f"{number}.onnx"
            file.write_bytes(case.model)
            facts: dict[str, Any] = {"fed": models.digest(case.inputs)}
            try:
                artifact = (
                    models.native(bench, file) if models.opens_onnx(bench.manifest) else models.artifact(bench, file)
                )
                session = bench.backend().open(
                    artifact, device=bench.device, threads=1, options=bench.options("run", "tensor"),
                    deadline=min(bench.known.patient(CASE_SECONDS), bench.left),
                )  # fmt: skip
                assert isinstance(session, TensorSession)
                try:
                    facts["answer"] = models.keep(session(case.inputs), case.name, seen.arrays)
                finally:
                    with suppress(WorkerCrashed):
                        session.close()
            except (WorkerCrashed, Timeout) as error:
                bench.forget()
                facts |= error_of(error)
            except EdgecoreError as error:
                facts |= error_of(error)
            file.unlink()
            seen.facts["cases"][case.name] = facts
        return seen

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        from edgecore_conformance import fixtures

        cases = chosen(known.level, cell)
        right: dict[str, int] = {}
        asked: dict[str, int] = {}
        refused: list[str] = []
        for case in cases:
            facts = seen.facts["cases"].get(case.name)
            why = fault(case, facts, seen.arrays, known)
            if why == "refused":
                refused.append(case.name)
                continue
            asked[case.operator] = asked.get(case.operator, 0) + 1
            right[case.operator] = right.get(case.operator, 0) + (not why)
            if why:
                verdict.problems.append(f"{case.name} ({case.operator}): {why}")
        total = len(cases)
        origin = f"onnx's own cases, level {known.level}, {cell['family']}"
        least = LEAST if known.device == "cpu" else LEAST_OF_ACCELERATORS
        verdict.figure("cases right", sum(right.values()), least * total, ">=", f"of {total}", origin)
        verdict.figure("cases refused by a typed error", len(refused), unit=f"of {total}")
        newer = len(fixtures.operator_cases(known.level)) - total
        verdict.figure("cases of a newer operator set, left out", newer, unit=f"of {total + newer}")
        verdict.figures += _by_operator(right, asked)


def _by_operator(right: Mapping[str, int], asked: Mapping[str, int]) -> list[Any]:
    """Counts; that a case is wrong is a problem of its own already."""
    from edgecore_conformance.observation import Figure

    return [
        Figure(
            f"operator {name}", float(right[name]), float(asked[name]), "==", f"of {asked[name]}", "all that are run"
        )
        for name in sorted(asked)
    ]


def chosen(level: str, cell: Cell) -> Sequence[OperatorCase]:
    """The level's cases up to the operator set of the cell."""
    from edgecore_conformance import fixtures

    matched = _FAMILY.fullmatch(cell["family"])
    newest = int(matched.group(1)) if matched else 0
    return [case for case in fixtures.operator_cases(level) if case.opset <= newest]


def fault(case: OperatorCase, facts: Mapping[str, Any] | None, arrays: Mapping[str, NDArray[Any]], known: Known) -> str:
    """What is wrong with a case, `refused`, or nothing."""
    if facts is None:
        return "it was not run"
    if facts["fed"] != models.digest(case.inputs):
        return "other inputs were fed than are published"
    if "error" in facts:
        return (
            "refused"
            if facts["error"] in refusals_on(known)
            else f"{facts['error']}: {facts['what'].splitlines()[0][:200]}"
        )
    half = models.bits_of(known.manifest, models.finest(known.manifest, known.device)) < 32
    answer = models.kept(facts["answer"], case.name, arrays)
    if set(answer) != set(case.outputs):
        return f"outputs {sorted(answer)}, due are {sorted(case.outputs)}"
    for name, wanted in case.outputs.items():
        got = answer[name]
        if got.shape != wanted.shape or got.dtype != wanted.dtype:
            return f"{name} is {got.dtype}{list(got.shape)}, due is {wanted.dtype}{list(wanted.shape)}"
        if wanted.dtype == object or wanted.dtype.kind in "US":
            if got.tolist() != wanted.tolist():
                return f"{name} differs"
            continue
        atol = case.atol
        if half and (np.dtype(wanted.dtype).kind == "f" or wanted.dtype.isbuiltin != 1):
            finite = np.abs(_wide(wanted)[np.isfinite(_wide(wanted))])
            atol = max(atol, HALF * float(finite.max(initial=0.0)), rounded(case.inputs))
        if not close(got, wanted, case.rtol, atol):
            with np.errstate(invalid="ignore"):
                worst = float(np.nanmax(np.abs(_wide(got) - _wide(wanted)), initial=0.0))
            return f"{name} is off by up to {worst:.3g}"
    return ""


def rounded(feeds: Mapping[str, NDArray[Any]]) -> float:
    """The most that a number of the feeds changes in 16 bits."""
    floats = (feed[np.isfinite(feed)] for feed in feeds.values() if feed.dtype in (np.float32, np.float64))
    with np.errstate(over="ignore"):
        changes = (float(np.abs(f.astype(np.float16).astype(f.dtype) - f).max(initial=0.0)) for f in floats)
    return max((change for change in changes if np.isfinite(change)), default=0.0)


def refusals_on(known: Known) -> tuple[str, ...]:
    return REFUSALS if known.device == "cpu" else NOT_HERE


def close(got: NDArray[Any], wanted: NDArray[Any], rtol: float, atol: float) -> bool:
    with np.errstate(invalid="ignore", over="ignore"):
        return bool(np.allclose(_wide(got), _wide(wanted), rtol, atol, equal_nan=True))


def _wide(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind == "c":
        return array.astype(np.complex128)
    return (
        array
        if array.dtype.kind in "iub" and array.dtype.isbuiltin == 1 and array.itemsize == 8
        else array.astype(np.float64)
    )
