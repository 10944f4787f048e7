"""convert, quantize and build: from a source to a sealed, compared artifact.

Each step has an id derived from everything that determines its result, so a step that was done before is a cache hit. A
step's result becomes an artifact only after it was compared with the source; until then it lies in a staging folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edgecore import __version__
from edgecore.checkpoint.exporters import exporters, may_take
from edgecore.contract.artifacts import Artifact, Made
from edgecore.contract.errors import (
    BackendUnavailable,
    BadRequest,
    QualityRefused,
    UnsupportedModel,
    UnsupportedPrecision,
)
from edgecore.contract.hookspecs import ConvertLimits
from edgecore.contract.options import Value
from edgecore.contract.precisions import Precision
from edgecore.contract.progress import Progress, no_progress
from edgecore.environments import exporter_command, find_exporter
from edgecore.machine import profile
from edgecore.registry import Entry
from edgecore.sources import Source
from edgecore.store import Staging, Store, request_id
from edgecore.verbs import choosing, verifying
from edgecore.verbs.targets import Target, choose, format_name, locate
from edgecore.workers import Backend, connect


@dataclass(frozen=True, slots=True)
class Making:
    """How to make an artifact. The command line and `edgecore.build` only bind to this."""

    backend: str | None = None
    """Name, or path of a plugin under development; None takes the only one that fits."""
    precision: str | None = None
    """Native name or class; None means 8 bits a weight where the backend has them, and 16 for convert alone."""
    format: str | None = None
    """One that a backend makes, `hf` for short for `huggingface`; None takes the first that claims the precision."""
    device: str | None = None
    """One of the backend's, where its formats differ by device; None: any."""
    options: Mapping[str, Value] = field(default_factory=dict)
    """The backend's own, as the manifest declares them."""
    calibration: Path | None = None
    max_context: int | None = None
    """Tokens that the result must hold."""
    prefill_chunk: int | None = None
    """Tokens that a prefill takes at once, where the target needs fixed shapes."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Fixed input shapes by name for tensor models; inputs that are not named keep theirs."""
    profile: str | None = None
    """A machine to compile for ahead of time, by its profile's name; None: compiled where it runs."""
    allow_unverified: bool = False
    """Keep what could not be compared."""
    keep_refused: bool = False
    """Keep what failed its bound."""
    deadline: float | None = None
    """Seconds for each call of the backend."""
    memory_limit: int | None = None
    """Bytes of anonymous memory for the worker."""
    offline: bool = False

    @property
    def made_format(self) -> str | None:
        """`format` by its whole name."""
        return format_name(self.format) if self.format else None


def build(given: str | Path, making: Making, on_progress: Progress = no_progress) -> Artifact:
    """Convert and, where the precision is made that way, quantize."""
    target = locate(given, offline=making.offline, on_progress=on_progress)
    entry = choose(making.backend, target, making.made_format)
    asked = making.precision or choosing.default_precision(entry, target.task, making.device)
    precision = choosing.selected(entry, asked, target.task, making.device)
    choosing.check_calibration(entry, precision, making.calibration, target.task, making.device)
    if target.artifact:
        return _quantize(entry, target.artifact, None, precision, making, on_progress)
    source = _source(target)
    exporter = _through_exporter(entry, source, making)
    verbs = ("convert",) if precision.by == "convert" else ("convert", "quantize")
    options = choosing.options_by_verb(entry, making.options, verbs, target.task, precision)
    format = choosing.made_format(entry.ready_manifest, target.task, precision, making.made_format, making.device)
    with connect(entry, memory_limit=making.memory_limit) as backend:
        first = precision
        if precision.by != "convert":
            first = choosing.selected(
                entry,
                choosing.first_precision(entry, target.task, choosing.CONVERTED_CLASSES, format=format),
                target.task,
            )
        artifact = _convert(backend, source, first, format, options["convert"], making, on_progress, exporter)
        if precision.by == "convert":
            return artifact
        return _quantized(backend, artifact, source, precision, options["quantize"], making, on_progress)


def convert(given: str | Path, making: Making, on_progress: Progress = no_progress) -> Artifact:
    """Only the conversion. Raises `UnsupportedPrecision` for a precision that quantize makes."""
    refuse_profile(making)
    target = locate(given, offline=making.offline, on_progress=on_progress)
    entry = choose(making.backend, target, making.made_format)
    task = target.task
    asked = making.precision or choosing.first_precision(
        entry, task, choosing.CONVERTED_CLASSES, making.device, making.made_format
    )
    precision = choosing.selected(entry, asked, task)
    if precision.by == "quantize":
        raise UnsupportedPrecision(
            f"convert does not make {precision.name}; quantize does",
            supported=", ".join(p.name for p in entry.ready_manifest.precisions_of(task) if p.by != "quantize"),
            hint=f"edgecore build {given} --backend {entry.name} --precision {precision.name}",
        )
    if target.artifact:
        raise BadRequest(f"{given} is an artifact already", hint=f"edgecore quantize {given} --precision q8_0")
    source = _source(target)
    exporter = _through_exporter(entry, source, making)
    options = choosing.options_by_verb(entry, making.options, ("convert",), task, precision)
    format = choosing.made_format(entry.ready_manifest, task, precision, making.made_format, making.device)
    with connect(entry, memory_limit=making.memory_limit) as backend:
        return _convert(backend, source, precision, format, options["convert"], making, on_progress, exporter)


def quantize(given: str | Path, making: Making, on_progress: Progress = no_progress) -> Artifact:
    """Only the quantization, of an artifact or of a native file that the backend opens; a source is converted first."""
    refuse_profile(making)
    if not making.precision:
        raise BadRequest("quantize needs a precision", hint=f"edgecore quantize {given} --precision low")
    target = locate(given, offline=making.offline, on_progress=on_progress)
    entry = choose(making.backend, target, making.made_format)
    base = target.artifact or target.native(entry.ready_manifest)
    precision = choosing.selected(entry, making.precision, base.task if base else target.task)
    if base is None or precision.by == "convert" or (making.shapes and target.source):
        return build(given, making, on_progress)
    return _quantize(entry, base, target.source, precision, making, on_progress)


def refuse_profile(making: Making) -> None:
    """Raises `BadRequest` in verbs that compile nothing: first for a profile that does not exist."""
    if making.profile:
        name = profile(making.profile).name
        raise BadRequest(
            f"compiling ahead of time for {name} is what build does",
            supported="without --profile: this machine",
            hint=f"edgecore build MODEL --profile {name}",
        )


def _quantize(
    entry: Entry, base: Artifact, source: Source | None, precision: Precision, making: Making, on_progress: Progress
) -> Artifact:
    if precision.by == "convert":
        raise UnsupportedPrecision(
            f"{precision.name} is made by convert, from the source, not from an artifact",
            supported=", ".join(p.name for p in entry.ready_manifest.precisions_of(base.task) if p.by != "convert"),
        )
    formats = entry.ready_manifest.formats_of(base.task, precision.name)
    if formats and base.format not in formats and not base.native:
        raise UnsupportedPrecision(
            f"{precision.name} is made of {' or '.join(formats)}, and this is {base.format}",
            supported=", ".join(
                p.name for p in choosing.declared_precisions(entry.ready_manifest, base.task, None, base.format)
            ),
            hint=f"edgecore build SOURCE --backend {entry.name} --precision {precision.name}",
        )
    if making.shapes:
        raise BadRequest(
            f"{base.path.name} is converted already: its shapes are what they are", hint="edgecore convert"
        )
    choosing.check_calibration(entry, precision, making.calibration, base.task)
    options = choosing.options_by_verb(entry, making.options, ("quantize",), base.task, precision)
    with connect(entry, memory_limit=making.memory_limit) as backend:
        source = source or verifying.source_of(base, making.offline, on_progress)
        return _quantized(backend, base, source, precision, options["quantize"], making, on_progress)


def _convert(
    backend: Backend,
    source: Source,
    precision: Precision,
    format: str,
    options: Mapping[str, Value],
    making: Making,
    progress: Progress,
    exporter: bool,
) -> Artifact:
    manifest = backend.entry.ready_manifest
    task = "tensor" if source.kind == "onnx" else "text"
    limits = ConvertLimits(making.max_context, dict(making.shapes), making.prefill_chunk)
    step = step_of("convert", backend, precision.name, options) | {
        "source": source.digest,
        "format": format,
        "limits": asdict(limits),
    }
    if exporter and manifest.exporter:
        step["exporter"] = {"name": manifest.exporter.name, "requires": list(manifest.exporter.requires)}

    def make(staging: Staging) -> Artifact:
        with _converter(backend, exporter, making) as converter:
            made = converter.convert(
                source=source.path,
                out=staging.path,
                format=format,
                precision=precision.name,
                options=options,
                limits=limits,
                deadline=making.deadline,
                on_progress=progress,
            )
        family, context = ("", 0) if exporter else verifying.describe(source)
        return artifact_from(staging, made, step, (origin(source),), task, family, making.max_context or context)

    return _once(backend, step, source, precision, making, progress, make)


def _quantized(
    backend: Backend,
    base: Artifact,
    source: Source | None,
    precision: Precision,
    options: Mapping[str, Value],
    making: Making,
    progress: Progress,
) -> Artifact:
    base_digest = base.id or (source.digest if source else "")
    step = step_of("quantize", backend, precision.name, options) | {
        "from": base_digest,
        "format": base.format,
        "calibration": _digest(making.calibration) if making.calibration and precision.calibration != "none" else None,
    }

    def make(staging: Staging) -> Artifact:
        made = backend.quantize(
            artifact=base,
            out=staging.path,
            precision=precision.name,
            calibration=making.calibration.resolve() if making.calibration else None,
            options=options,
            deadline=making.deadline,
            on_progress=progress,
        )
        chain = base.chain
        if not chain and source:
            chain = (origin(source),)
        family, context = base.family, base.context_length
        if base.native and source:
            family, context = verifying.describe(source)
        return artifact_from(staging, made, step, chain, base.task, family, context)

    return _once(backend, step, source, precision, making, progress, make)


def _once(
    backend: Backend,
    step: Mapping[str, Any],
    source: Source | None,
    precision: Precision,
    making: Making,
    progress: Progress,
    make: Callable[[Staging], Artifact],
) -> Artifact:
    """`stored`, compared with its source."""

    def compared(artifact: Artifact) -> dict[str, Any]:
        return verifying.compare(backend, artifact, source, precision, making, progress)

    return stored(backend, step, precision.name, making, progress, make, compared)


def stored(
    backend: Backend,
    step: Mapping[str, Any],
    precision: str,
    making: Making,
    progress: Progress,
    make: Callable[[Staging], Artifact],
    compare: Callable[[Artifact], dict[str, Any]],
) -> Artifact:
    """The stored artifact of this step, made and compared first where it is missing."""
    store = Store()
    identity = f"{backend.entry.name}-{precision}-{request_id(step)}"
    with store.build(
        identity, on_wait=lambda: progress(0, 1, "waiting for another process that builds the same")
    ) as staging:
        if staging.cached:
            verifying.recheck(store, staging.cached, making)
            return staging.cached
        artifact = replace(make(staging), id=identity)
        record = compare(artifact)
        artifact = staging.publish(artifact)
        store.add_evidence(artifact, record)
        return artifact


def artifact_from(
    staging: Staging,
    made: Made,
    step: Mapping[str, Any],
    chain: tuple[Mapping[str, Any], ...],
    task: str,
    family: str,
    context: int,
) -> Artifact:
    return Artifact(
        path=staging.path,
        backend=step["backend"],
        task=task,
        format=step["format"],
        precision=step["precision"],
        files=made.files,
        id="pending",
        family=family,
        context_length=context,
        weights=made.weights,
        requires=made.requires,
        chain=(*chain, {**step, "tools": {**step["tools"], **made.tools}}),
        notes=made.notes,
    )


def step_of(verb: str, backend: Backend, precision: str, options: Mapping[str, Value]) -> dict[str, Any]:
    entry = backend.entry
    return {
        "verb": verb,
        "backend": entry.name,
        "precision": precision,
        "options": dict(options),
        "tools": {
            "edgecore": __version__,
            entry.ready_manifest.distribution: entry.version or "",
            entry.ready_manifest.runtime.distribution: entry.runtime_version or "",
        },
    }


def _source(target: Target) -> Source:
    if target.source is None:
        raise UnsupportedModel(
            f"{target.given} is a finished model of one runtime, not a source to convert from",
            supported="a Hugging Face folder, a GGUF file, an ONNX file",
        )
    return target.source


def origin(source: Source) -> dict[str, Any]:
    """The first step of every chain."""
    return {"verb": "source", "spec": source.spec, "digest": source.digest, **source.origin}


def _through_exporter(entry: Entry, source: Source, making: Making) -> bool:
    """From the headers, before any work: False for the neutral model, True where only the backend's exporter can.

    Raises `UnsupportedModel`, with the command that installs the exporter where there is one, and `QualityRefused`
    where nobody allowed what cannot be compared: an exporter's own half precision has no reference.
    """
    manifest = entry.ready_manifest
    if source.kind not in manifest.sources:
        raise UnsupportedModel(
            f"backend {entry.name!r} does not take {source.kind} sources",
            supported=", ".join(manifest.sources) or "none",
        )
    try:
        verifying.describe(source)
    except UnsupportedModel as error:
        if manifest.exporter is None or source.kind != "huggingface":
            raise
        try:
            find_exporter(entry)
        except BackendUnavailable as missing:
            # The refusal names an exporter where one is known to take the model; others only their plugins know.
            known = missing.hint in {exporter.install for exporter in exporters()}
            hint = error.hint if known else missing.hint
            raise UnsupportedModel(error.what, supported=error.supported, hint=hint) from None
        if not may_take(exporter_command(manifest), str(error)):
            raise
        if not making.allow_unverified:
            raise QualityRefused(
                f"{error.what}; {manifest.exporter.name} would convert it, and nothing here can check the result",
                supported="families of the neutral model: " + error.supported,
                hint="the same command with --allow-unverified",
            ) from None
        return True
    return False


def _converter(backend: Backend, exporter: bool, making: Making) -> AbstractContextManager[Backend]:
    if exporter:
        return connect(backend.entry, exporter=True, memory_limit=making.memory_limit)
    return nullcontext(backend)


def _digest(path: Path) -> str:
    """sha256 of a calibration file, or of every file below a folder in order."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
