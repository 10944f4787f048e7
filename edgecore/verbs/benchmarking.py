"""benchmark: arms measured side by side, and never a speed without the quality of the same artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from edgecore.contract.errors import BadRequest
from edgecore.contract.measurement import Workload
from edgecore.contract.progress import Progress, no_progress
from edgecore.measure import Arm, Comparison, measure
from edgecore.quality import Assessment, evaluation_text
from edgecore.report import Row
from edgecore.store import Store
from edgecore.verbs import verifying
from edgecore.verbs.making import Making
from edgecore.verbs.opening import Runnable, prepare, text_session
from edgecore.workers import connect


@dataclass(frozen=True, slots=True)
class Load:
    """What is measured. `edgecore benchmark` binds to this."""

    prompt_tokens: int = 128
    """Length of the prompt, from the evaluation text."""
    decode_tokens: int = 64
    pairs: int = 10
    """Rounds; fewer than ten give intervals that say little."""
    mode: str = "bare"
    """`bare`, as llama-bench measures, or `greedy`, as a user gets it."""
    threads: int | None = None
    context_length: int | None = None
    inputs: Path | None = None
    """Feeds of a tensor model, an `.npz`; None makes them up, with 1 for every dimension that is open."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The arms in their order, each with its quality."""

    runnables: tuple[Runnable, ...]
    qualities: tuple[Assessment, ...]
    comparison: Comparison

    def rows(self, answers: Mapping[str, str] | None = None) -> list[Row]:
        """One row an arm, for tables and the report."""
        return [
            _row(runnable, quality, arm, (answers or {}).get(arm.label, ""))
            for runnable, quality, arm in zip(self.runnables, self.qualities, self.comparison.arms, strict=True)
        ]


def benchmark(
    models: Sequence[str | Path],
    making: Making | None = None,
    *,
    load: Load | None = None,
    device: str | None = None,
    on_progress: Progress = no_progress,
    say: Callable[[str], None] = lambda line: None,
) -> Measured:
    """Measure models against the first of them.

    Each is built where it is missing, and compared with its source where it never was. The result is kept among each
    artifact's evidence.
    """
    if not models:
        raise BadRequest("nothing to measure", supported="one model or more", hint="edgecore benchmark MODEL")
    making, load = making or Making(), load or Load()
    runnables = [prepare(m, making, device, on_progress=on_progress, say=say) for m in models]
    qualities = [_quality(r, making, on_progress) for r in runnables]
    arms = [
        Arm(r.entry, r.artifact, r.device, r.options, label)
        for r, label in zip(runnables, _labels(runnables), strict=True)
    ]
    comparison = measure(
        arms,
        _workload(runnables[0], load),
        pairs=load.pairs,
        deadline=making.deadline,
        on_progress=on_progress,
    )
    measured = Measured(tuple(runnables), tuple(qualities), comparison)
    _keep(measured)
    return measured


def _workload(runnable: Runnable, load: Load) -> Workload:
    """The same token ids for every arm: those of the evaluation text, repeated where it is shorter."""
    prompt: tuple[int, ...] = ()
    if runnable.artifact.task == "text" and load.prompt_tokens:
        with text_session(runnable) as session:
            tokens = session.tokenize(evaluation_text("full")[0])
        prompt = tuple(islice(cycle(tokens), load.prompt_tokens))
    return Workload(
        prompt=prompt,
        decode=load.decode_tokens,
        mode=load.mode,
        threads=load.threads,
        context_length=load.context_length,
        feeds=str(load.inputs.absolute()) if load.inputs else "",
    )


def _quality(runnable: Runnable, making: Making, progress: Progress) -> Assessment:
    artifact, store = runnable.artifact, Store()
    if known := verifying.quality_of(store, artifact):
        return known
    with connect(runnable.entry) as backend:
        assessment = verifying.judge(
            backend,
            artifact,
            verifying.source_of(artifact, making.offline, progress),
            verifying.declared_precision(backend, artifact),
            "quick",
            progress,
            device=runnable.device,
            options=runnable.options,
        )
        if not artifact.native:
            store.add_evidence(artifact, verifying.record(backend, artifact, assessment, "quick"))
    return assessment


def _labels(runnables: Sequence[Runnable]) -> list[str]:
    """The precision where that tells the arms apart, with the backend where that does, else with a number."""
    for naming in (
        lambda r: r.artifact.precision or r.artifact.path.name,
        lambda r: f"{r.entry.name} {r.artifact.precision}",
    ):
        labels = [naming(r) for r in runnables]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{label} #{n}" for n, label in enumerate(labels, 1)]


def _keep(measured: Measured) -> None:
    store, facts = Store(), measured.comparison.to_dict()
    for runnable, arm in zip(measured.runnables, facts["arms"], strict=True):
        if not runnable.artifact.native:
            shared = {k: facts[k] for k in ("workload", "pairs", "noise_floor", "bandwidth", "load_average")}
            record: dict[str, Any] = {**verifying.header(runnable.entry, runnable.artifact), "kind": "speed"}
            store.add_evidence(runnable.artifact, {**record, "arm": arm, **shared})


def _row(runnable: Runnable, quality: Assessment, arm: Any, answer: str) -> Row:
    artifact, figures = runnable.artifact, quality.total or quality.file
    return Row(
        label=arm.label,
        bytes=arm.streamed_bytes if artifact.native else Store().size(artifact),
        bits_per_weight=artifact.weights.bits_per_weight if artifact.weights else None,
        prefill=arm.prefill.median if arm.prefill else None,
        decode=arm.decode.median if arm.decode else None,
        decode_interval=(arm.decode.low, arm.decode.high) if arm.decode else None,
        first_token=arm.ttft.median if arm.ttft else None,
        steps=[s for samples in arm.samples for r in samples.repetitions for s in r.steps],
        percentiles=arm.inter_token,
        load=arm.load.median,
        anonymous=arm.memory.anonymous,
        mapped=arm.memory.file_mapped if arm.memory.split else None,
        bandwidth_share=arm.bandwidth_fraction,
        kl_mean=figures.kl_mean if figures else None,
        kl_p99=figures.kl_p99 if figures else None,
        top1=figures.top1 if figures else None,
        perplexity_ratio=figures.perplexity_ratio if figures else None,
        verdict=quality.verdict.value,
        bound="; ".join(map(str, quality.checks)) or "; ".join(quality.reasons),
        answer=answer,
    )
