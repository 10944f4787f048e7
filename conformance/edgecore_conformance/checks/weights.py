"""Whether every block of every matrix survived: a loss that a mean over a text does not show. Part of *quantize*."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint import open_checkpoint
from edgecore.contract.manifest import Manifest
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, check
from edgecore_conformance.checks import closeness, jobs
from edgecore_conformance.known import TRAINED, Known
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.outcomes import Outcome

BLOCK = 32
FEWEST_BITS = 4.0
"""Below, a healthy block may lose about as much as a lost one."""
FEW = 0.9
"""Relative error of a block of which as good as nothing is left."""


def allowed(bits: float) -> float:
    """Largest relative error of a block: four times what round-to-nearest of so many bits can lose at worst, when one
    weight of 32 is all (2 sqrt(32) / (2^bits - 1) / sqrt(12)), and less than a block that was lost."""
    return float(min(FEW, 4 * 2 * np.sqrt(BLOCK) / (2**bits - 1) / np.sqrt(12)))


@check
class BlockErrors(jobs.OfQuantize):
    """quantize.weights: no block of any matrix is lost.

    The artifact's weights, read by the suite where it knows the format, else given by the backend, are compared
    with the fixture's in blocks of 32: the root mean square of the error over that of the block (or a quarter of
    its row's, where the block is small). The worst block of each matrix must stay below four times what round-to-
    nearest can lose at worst, and below one that is gone. From 4 bits on; below, and for backends that give no
    weights, it does not apply. A failure is a wrong scale in a corner, the last block of a row, say: the text reads
    as before until it needs it.
    """

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        made = [p for p in jobs.claimed(manifest, device) if p.by != "convert" and p.bits >= FEWEST_BITS]
        return [{"precision": p.name} for p in made] or [{}]

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        from edgecore_conformance.checks.quantize import artifact_of

        if not cell:
            return Observation({"errors": None})
        given = closeness.file_tensors(bench, artifact_of(bench, cell["precision"]), TRAINED)
        return Observation({"errors": None if given is None else errors(bench, given)})

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        found = seen.facts["errors"]
        if found is None:
            verdict.claimed = Outcome.NOT_APPLICABLE
            return
        with open_checkpoint(known.fixture(TRAINED)) as model:
            due = sorted(matrices(model.tensors))
        verdict.expect(sorted(found) == due, f"compared were {len(found)} matrices, there are {len(due)}")
        precision = next(p for p in known.manifest.precisions if p.name == cell["precision"])
        worst = max(found, key=lambda name: found[name][0])
        verdict.figure(
            f"worst block, in {worst}", found[worst][0], allowed(precision.bits), "<=", "of the block's own size",
            "four times the worst of round-to-nearest, at most 0.9",
        )  # fmt: skip
        verdict.figure("mean error of a block", float(np.mean([mean for _, mean in found.values()])))


def matrices(tensors: Mapping[str, Any]) -> list[str]:
    return [name for name, tensor in tensors.items() if ".layers." in name and len(tensor.shape) == 2]


def errors(bench: Bench, given: Mapping[str, Any]) -> dict[str, list[float]]:
    """[worst, mean] relative error of a block, by matrix."""
    found = {}
    with open_checkpoint(bench.known.fixture(TRAINED)) as model:
        for name in matrices(model.tensors):
            source, made = _blocks(model.tensors[name].read()), _blocks(given[name].read())
            size = np.sqrt((source**2).mean(axis=2))
            floor = 0.25 * np.sqrt((source**2).mean(axis=(1, 2)))[:, None]
            relative = np.sqrt(((made - source) ** 2).mean(axis=2)) / np.maximum(np.maximum(size, floor), 1e-12)
            found[name] = [
                float(np.nan_to_num(relative, nan=9.0, posinf=9.0).max()),
                float(np.nan_to_num(relative).mean()),
            ]
    return found


def _blocks(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """(rows, blocks, 32); what does not fill a block at the end of a row is left out."""
    whole = matrix.shape[1] // BLOCK * BLOCK
    return matrix[:, :whole].reshape(matrix.shape[0], -1, BLOCK)
