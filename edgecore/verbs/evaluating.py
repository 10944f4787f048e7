"""evaluate: compare anything that runs with its reference, and keep the answer as evidence beside the artifact."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from edgecore.contract.progress import Progress, no_progress
from edgecore.quality import Assessment
from edgecore.store import Store
from edgecore.verbs import verifying
from edgecore.verbs.making import Making
from edgecore.verbs.opening import Runnable, prepare
from edgecore.workers import connect


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What was compared, and how it came out."""

    runnable: Runnable
    assessment: Assessment


def evaluate(
    given: str | Path,
    making: Making,
    *,
    level: str = "full",
    device: str | None = None,
    against: Path | None = None,
    on_progress: Progress = no_progress,
) -> Evaluated:
    """Compare on the evaluation text of `level` (`quick` or `full`), without a time budget.

    against: logits of the reference at every position of that text, float32 (T, vocab), made on another machine with
             `edgecore logits SOURCE --backend reference --level LEVEL`; the oracle does not run here then.
    A sealed artifact keeps the result among its evidence, whatever the verdict.
    """
    lenient = replace(making, allow_unverified=True, keep_refused=True)
    runnable = prepare(given, lenient, device, on_progress=on_progress)
    artifact = runnable.artifact
    with connect(runnable.entry, memory_limit=making.memory_limit) as backend:
        assessment = verifying.judge(
            backend,
            artifact,
            verifying.source_of(artifact, making.offline, on_progress),
            verifying.declared_precision(backend, artifact),
            level,
            on_progress,
            device=runnable.device,
            options=runnable.options,
            budget=math.inf,
            against=against,
        )
        if not artifact.native:
            Store().add_evidence(artifact, verifying.record(backend, artifact, assessment, level))
    return Evaluated(runnable, assessment)
