"""Run, tensor: numbers keep the width of their type. The operator tier has tolerances, and small numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecore.contract.errors import EdgecoreError
from edgecore.contract.manifest import Manifest
from edgecore.contract.sessions import TensorSession
from edgecore_conformance import tensor_models as models
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, Check, check, has_task
from edgecore_conformance.checks.tensor_operators import refusals_on
from edgecore_conformance.known import Known
from edgecore_conformance.observation import Judgement, Observation, error_of
from edgecore_conformance.tensor_models import Arrays

MOVED = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
)  # fmt: skip
ADDED = ("int32", "int64", "float32", "float64")
"""Types that are also computed in."""
ROWS, COLUMNS = 3, 4


@check
class Types(Check):
    """tensor.types: numbers keep the width of their type.

    Models of one input, `moved = transpose(given)` and for some types `twice = given + given`, are called with numbers
    that need every bit of their type: drawn from its whole range, with its ends, one beside a power of two, infinity
    and what is no number. Every answer must be exact. A type that the backend does not have it refuses by a typed
    error, when it opens the model or when it is called; such are counted. Floats that are wider than the widest
    precision that is claimed are not looked at: they may be computed in that, or be refused.

    Runtimes that keep 64 bits in 32 are usual; without an error, ids of large tables and times become others.
    """

    def applies(self, manifest: Manifest) -> bool:
        return has_task("tensor")(manifest)

    def proves(self, manifest: Manifest, cell: Cell) -> dict[str, str]:
        return {"task": "tensor"}

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        seen = Observation({"answers": {}, "refused": {}})
        folder = bench.folder("types")
        for dtype in MOVED:
            given = numbers(bench.known, dtype)
            try:
                source = write(folder / f"{dtype}.onnx", dtype)
                opens = models.opens_onnx(bench.manifest)
                artifact = models.native(bench, source) if opens else models.artifact(bench, source)
                with bench.session(artifact, threads=1) as session:
                    assert isinstance(session, TensorSession)
                    seen.facts["answers"][dtype] = models.keep(session({"given": given}), dtype, seen.arrays)
            except EdgecoreError as error:
                if type(error).__name__ not in refusals_on(bench.known):
                    raise
                seen.facts["refused"][dtype] = error_of(error)
        return seen

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        bits = models.bits_of(known.manifest, models.finest(known.manifest, known.device))
        for dtype in MOVED:
            if np.dtype(dtype).kind == "f" and bits < 32 and bits < 8 * np.dtype(dtype).itemsize:
                continue
            if dtype in seen.facts["refused"]:
                named = seen.facts["refused"][dtype]["error"]
                verdict.expect(named in refusals_on(known), f"{dtype}: {named}, which is no refusal of a type")
                continue
            if dtype not in seen.facts["answers"]:
                verdict.problems.append(f"{dtype}: neither answered nor refused")
                continue
            got = models.kept(seen.facts["answers"][dtype], dtype, seen.arrays)
            due = expected(numbers(known, dtype))
            verdict.expect(set(got) == set(due), f"{dtype}: outputs {sorted(got)}, the model has {sorted(due)}")
            for name in sorted(set(got) & set(due)):
                verdict.problems += differing(f"{dtype}, {name}", got[name], due[name])
        verdict.figure("types that are refused", len(seen.facts["refused"]), unit=f"of {len(MOVED)}")
        verdict.expect(bits < 32 or "float32" not in seen.facts["refused"], "float32 is refused")


def write(path: Any, dtype: str) -> Any:
    import onnx
    from onnx import helper

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [helper.make_node("Transpose", ["given"], ["moved"], perm=[1, 0])]
    outputs = [helper.make_tensor_value_info("moved", kind, [COLUMNS, ROWS])]
    if dtype in ADDED:
        nodes.append(helper.make_node("Add", ["given", "given"], ["twice"]))
        outputs.append(helper.make_tensor_value_info("twice", kind, [ROWS, COLUMNS]))
    inputs = [helper.make_tensor_value_info("given", kind, [ROWS, COLUMNS])]
    graph = helper.make_graph(nodes, "types", inputs, outputs)
    opsets = [helper.make_opsetid("", models.OPSET)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=models.IR), str(path))
    return path


def numbers(known: Known, dtype: str) -> NDArray[Any]:
    """(ROWS, COLUMNS) that need all bits. The half of an integer's range is left free, so that twice of each fits."""
    kind, draw = np.dtype(dtype), np.random.default_rng(known.draw(f"types {dtype}").getrandbits(64))
    count = ROWS * COLUMNS
    if kind.kind == "b":
        return draw.integers(0, 2, count).astype(bool).reshape(ROWS, COLUMNS)
    if kind.kind == "f":
        about = np.finfo(kind)
        special = [np.inf, -np.inf, np.nan, about.max / 4, -about.max / 4, 1 + about.eps]
        normal = draw.standard_normal(count - len(special))
        return np.array([*special, *normal], np.float64).astype(kind).reshape(ROWS, COLUMNS)
    limits = np.iinfo(kind)
    low, high = limits.min // 2, limits.max // 2
    special = [low, high, high - 1, (1 << (limits.bits - 3)) + 1]
    drawn = [int(n) for n in draw.integers(low, high, count - len(special), dtype=kind)]
    return np.array([*special, *drawn], kind).reshape(ROWS, COLUMNS)


def expected(given: NDArray[Any]) -> Arrays:
    twice = {"twice": given + given} if given.dtype.name in ADDED else {}
    return {"moved": given.T, **twice}


def differing(what: str, got: NDArray[Any], due: NDArray[Any]) -> list[str]:
    """In words, where an answer is not what it has to be, to the last bit of its numbers."""
    if got.dtype != due.dtype or got.shape != due.shape:
        return [f"{what} is {got.dtype}{list(got.shape)}, due is {due.dtype}{list(due.shape)}"]
    same = (got == due) | ((got != got) & (due != due))
    if same.all():
        return []
    at = tuple(int(i) for i in np.argwhere(~same)[0])
    return [f"{what}: {int((~same).sum())} of {same.size} numbers differ: {got[at]!r}, and should be {due[at]!r}"]
