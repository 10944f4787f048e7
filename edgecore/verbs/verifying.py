"""Nothing is accepted before it was compared with its source: the glue between making an artifact and judging it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from edgecore import __version__
from edgecore.checkpoint import Checkpoint, open_checkpoint
from edgecore.contract.artifacts import Artifact
from edgecore.contract.errors import EdgecoreError, QualityRefused, UnsupportedModel
from edgecore.contract.manifest import Device, Manifest
from edgecore.contract.options import Value
from edgecore.contract.options import resolve as defaults
from edgecore.contract.precisions import Precision, select
from edgecore.contract.progress import Progress, no_progress
from edgecore.contract.sessions import Logits, TextSession
from edgecore.machine import facts
from edgecore.quality import Assessment, Verdict, assess, assess_logits, evaluation_text, token_limit
from edgecore.registry import Entry
from edgecore.sources import Source, resolve
from edgecore.store import Store
from edgecore.verbs.logits import stored_logits
from edgecore.workers import Backend

CPU = "cpu"
"""A device that is always here."""
BUDGET_SECONDS = 60.0
"""What the comparison after convert and quantize may take; above it the signal to noise of each tensor stands in."""


class Tolerance(Protocol):
    """The part of a request that says what may be kept."""

    @property
    def allow_unverified(self) -> bool: ...
    @property
    def keep_refused(self) -> bool: ...


def describe(source: Source) -> tuple[str, int]:
    """Family and trained context of a text source, from its headers; raises `UnsupportedModel`. ("", 0) for ONNX."""
    if source.kind == "onnx":
        return "", 0
    with opened(source.path) as checkpoint:
        return checkpoint.decoder.family, checkpoint.decoder.context_length


@contextmanager
def opened(path: Path) -> Iterator[Checkpoint]:
    checkpoint = open_checkpoint(path)
    try:
        yield checkpoint
    finally:
        checkpoint.close()


def source_of(artifact: Artifact, offline: bool = False, progress: Progress = no_progress) -> Source | None:
    """The source that an artifact was made from, if it is still to be had and still the same; else None."""
    if artifact.native:
        if artifact.task != "text":
            return None
        try:
            return resolve(str(artifact.path), on_progress=progress, offline=True)
        except UnsupportedModel:  # one runtime's own folder, which only it reads
            return None
    first: Mapping[str, Any] = artifact.chain[0] if artifact.chain else {}
    if "spec" not in first:
        return None
    try:
        source = resolve(first["spec"], on_progress=progress, offline=offline)
    except EdgecoreError:
        return None
    return source if source.digest == first["digest"] else None


def compare(
    backend: Backend,
    artifact: Artifact,
    source: Source | None,
    precision: Precision,
    tolerance: Tolerance,
    progress: Progress,
) -> dict[str, Any]:
    """The short comparison after convert and quantize, as an evidence record.

    Raises `QualityRefused` for what failed its bound or could not be compared, unless `tolerance` keeps it.
    """
    assessment = judge(backend, artifact, source, precision, "quick", progress)
    enforce(assessment, artifact, tolerance)
    return record(backend, artifact, assessment, "quick")


def judge(
    backend: Backend,
    artifact: Artifact,
    source: Source | None,
    precision: Precision | None,
    level: str,
    progress: Progress,
    *,
    device: str | None = None,
    budget: float = BUDGET_SECONDS,
    options: Mapping[str, Value] | None = None,
    against: Path | None = None,
) -> Assessment:
    """Open the artifact on `device` with `options` of `run`, and compare it.

    With its source through the oracle; with the logits in the file `against`; or, where only an exporter could convert
    the source, with the exporter's own half precision.
    """
    if artifact.task != "text":
        return Assessment.unverified("tensor models are not compared yet")
    manifest = backend.entry.ready_manifest
    where = device or _where(backend, artifact)
    if where is None:
        names = ", ".join(d.name for d in devices_of(manifest, artifact))
        return Assessment.unverified(f"{artifact.format} {artifact.precision} is for {names}, which is not here")
    if options is None:
        options = defaults(manifest.options_of("run"), {}, "run", manifest.name, artifact.task)
    found = _judged(backend, artifact, source, precision, level, progress, where, budget, options, against)
    declared = manifest.device(where)
    if declared and declared.emulated:
        found = replace(found, notes=(*found.notes, f"compared on {where}: an emulator, not the device itself"))
    return found


def _judged(
    backend: Backend,
    artifact: Artifact,
    source: Source | None,
    precision: Precision | None,
    level: str,
    progress: Progress,
    device: str,
    budget: float,
    options: Mapping[str, Value],
    against: Path | None,
) -> Assessment:
    text, digest = evaluation_text(level)
    with ExitStack() as stack:

        def opened_session(which: Artifact) -> TextSession:
            session = stack.enter_context(backend.open(which, device=device, options=options))
            assert isinstance(session, TextSession)
            return session

        if against is not None:
            session = opened_session(artifact)
            tokens = scored_tokens(session, text, digest)
            reference = stored_logits(against, tokens)
            return _by_logits(
                reference, session, tokens, artifact, precision, digest, f"reference: {against}", progress
            )
        if source is None:
            return Assessment.unverified("its source is not at hand, so there is nothing to compare it with")
        try:
            checkpoint = stack.enter_context(opened(source.path))
        except UnsupportedModel as error:
            base = _exported(artifact)
            if base is None:
                return Assessment.unverified(f"there is nothing to compare it with: {error.what}")
            session, half = opened_session(artifact), opened_session(base)
            tokens = scored_tokens(session, text, digest)
            note = f"self-referenced: compared with {base.id}, the exporter's own {base.precision}"
            return _by_logits(half.score(tokens), session, tokens, artifact, precision, digest, note, progress)
        return assess(
            reference=checkpoint,
            session=opened_session(artifact),
            weights=backend.weights(artifact),
            precision=precision,
            weights_stats=artifact.weights,
            text=text,
            text_sha256=digest,
            budget_seconds=budget,
            on_progress=progress,
        )


def devices_of(manifest: Manifest, artifact: Artifact) -> tuple[Device, ...]:
    """Devices that an artifact of this format and precision is claimed for, real ones first; all where none is."""
    same = [c for c in manifest.claims if (c.task, c.format) == (artifact.task, artifact.format)]
    claimed = {c.device for c in same if c.precision == artifact.precision} or {c.device for c in same}
    found = sorted((d for d in manifest.devices if d.name in claimed), key=lambda d: d.emulated)
    return tuple(found) or manifest.devices


def _where(backend: Backend, artifact: Artifact) -> str | None:
    """The first of the artifact's devices that is here, an emulator last; None where none is."""
    devices = devices_of(backend.entry.ready_manifest, artifact)
    if devices[0].name == CPU:
        return CPU
    here = {d.name for d in backend.probe().devices if d.available}
    return next((d.name for d in devices if d.name in here), None)


def scored_tokens(session: TextSession, text: str, digest: str) -> list[int]:
    """The beginning of the evaluation text that is scored: as many tokens as its level and the context allow."""
    return session.tokenize(text)[: min(token_limit(digest), session.context_length)]


def _by_logits(
    reference: Iterable[Logits],
    session: TextSession,
    tokens: list[int],
    artifact: Artifact,
    precision: Precision | None,
    digest: str,
    note: str,
    progress: Progress,
) -> Assessment:
    return assess_logits(
        reference,
        session,
        tokens,
        precision=precision,
        weights_stats=artifact.weights,
        text_sha256=digest,
        note=note,
        on_progress=progress,
    )


def _exported(artifact: Artifact) -> Artifact | None:
    """The artifact that this one was quantized from, where an exporter made that."""
    base = artifact.chain[-1].get("from") if artifact.chain else None
    return Store().get(base) if base else None


def enforce(assessment: Assessment, artifact: Artifact, tolerance: Tolerance) -> None:
    """Raise `QualityRefused` unless the verdict is `accepted` or the request keeps it."""
    if assessment.verdict is Verdict.REFUSED and not tolerance.keep_refused:
        raise QualityRefused(
            f"{artifact.precision} is refused: " + "; ".join(assessment.reasons),
            hint="a precision with more bits, or --keep-refused to keep it for study",
        )
    if assessment.verdict is Verdict.UNVERIFIED and not tolerance.allow_unverified:
        raise QualityRefused(
            f"{artifact.precision} could not be compared: " + "; ".join(assessment.reasons),
            hint="--allow-unverified keeps it; its evidence can be completed on another machine",
        )


def recheck(store: Store, artifact: Artifact, tolerance: Tolerance) -> None:
    """A cache hit is judged by its evidence as a fresh result would be."""
    assessments = [r["assessment"] for r in store.evidence(artifact) if r.get("kind") == "quality"]
    if assessments:
        enforce(Assessment.from_dict(assessments[-1]), artifact, tolerance)


def record(backend: Backend, artifact: Artifact, assessment: Assessment, level: str) -> dict[str, Any]:
    """Evidence: how it compares."""
    found = {"kind": "quality", "level": level, "assessment": assessment.to_dict()}
    return {**header(backend.entry, artifact), **found}


def header(entry: Entry, artifact: Artifact) -> dict[str, Any]:
    """What every evidence record says: of which artifact, when, by which tools, where. No user or host name."""
    machine = facts()
    return {
        "artifact": artifact.id,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "system": machine.system,
            "architecture": machine.architecture,
            "chip": machine.chip,
            "threads": machine.threads,
        },
        "tools": {
            "edgecore": __version__,
            entry.ready_manifest.distribution: entry.version,
            entry.ready_manifest.runtime.distribution: entry.runtime_version,
        },
    }


def quality_of(store: Store, artifact: Artifact) -> Assessment | None:
    """The newest recorded assessment of an artifact, None where there is none."""
    if artifact.native:
        return None
    records = [r for r in store.evidence(artifact) if r.get("kind") == "quality"]
    newest = max(records, key=lambda r: str(r["when"]), default=None)
    return Assessment.from_dict(newest["assessment"]) if newest else None


def declared_precision(backend: Backend, artifact: Artifact) -> Precision | None:
    """The manifest's entry for the artifact's precision; None for a native file of a type that it does not declare."""
    try:
        return select(backend.entry.ready_manifest.precisions, artifact.precision, backend.entry.name)
    except EdgecoreError:
        return None
