"""convert, quantize and build: from a source to a sealed, compared artifact.

Each step has an id derived from everything that determines its result, so a step that was done before is a cache hit. A
step's result becomes an artifact only after it was compared with the source; until then it lies in a staging folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edgecore import __version__
from edgecore.checkpoint.exporters import exporters
from edgecore.contract.artifacts import Artifact, Made
from edgecore.contract.errors import (
    BackendUnavailable,
    BadRequest,
    QualityRefused,
    UnsupportedModel,
    UnsupportedPrecision,
)
from edgecore.contract.hookspecs import ConvertLimits
from edgecore.contract.manifest import Manifest
from edgecore.contract.options import Value, resolve
from edgecore.contract.precisions import Precision, PrecisionClass, select
from edgecore.contract.progress import Progress, no_progress
from edgecore.environments import find_exporter
from edgecore.machine import profile
from edgecore.registry import Entry
from edgecore.sources import Source
from edgecore.store import Staging, Store, request_id
from edgecore.verbs import verifying
from edgecore.verbs.targets import Target, choose, format_name, locate
from edgecore.workers import Backend, connect

CONVERTED_CLASSES = (PrecisionClass.HALF, PrecisionClass.FULL)
"""What convert makes when nothing is asked for, and what build quantizes from."""
DEFAULT_CLASSES = (PrecisionClass.MEDIUM, *CONVERTED_CLASSES)
"""What build makes of a text model when nothing is asked for: 8 bits a weight lose next to nothing on any. A tensor
model gets what convert makes, because nothing here compares those with their source yet."""


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
    asked = making.precision or default_precision(entry, target.task, making.device)
    precision = _select(entry, asked, target.task)
    _check_calibration(entry, precision, making, target.task)
    if target.artifact:
        return _quantize(entry, target.artifact, None, precision, making, on_progress)
    source = _source(target)
    exporter = _through_exporter(entry, source, making)
    verbs = ("convert",) if precision.by == "convert" else ("convert", "quantize")
    options = _options(entry, making.options, verbs, target.task)
    format = made_format(entry.ready_manifest, target.task, precision, making)
    with connect(entry, memory_limit=making.memory_limit) as backend:
        first = precision
        if precision.by != "convert":
            first = _select(entry, _first(entry, target.task, CONVERTED_CLASSES, format=format), target.task)
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
    asked = making.precision or _first(entry, task, CONVERTED_CLASSES, making.device, making.made_format)
    precision = _select(entry, asked, task)
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
    options = _options(entry, making.options, ("convert",), task)
    format = made_format(entry.ready_manifest, task, precision, making)
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
    precision = _select(entry, making.precision, base.task if base else target.task)
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
            supported=", ".join(p.name for p in _declared(entry.ready_manifest, base.task, None, base.format)),
            hint=f"edgecore build SOURCE --backend {entry.name} --precision {precision.name}",
        )
    if making.shapes:
        raise BadRequest(
            f"{base.path.name} is converted already: its shapes are what they are", hint="edgecore convert"
        )
    _check_calibration(entry, precision, making, base.task)
    options = _options(entry, making.options, ("quantize",), base.task)
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


def _options(
    entry: Entry, given: Mapping[str, Value], verbs: tuple[str, ...], task: str | None
) -> dict[str, dict[str, Value]]:
    """Options sorted to the verbs that declare them for the task. A key that none declares is refused, naming what
    exists."""
    manifest = entry.ready_manifest
    known = {verb: {o.name for o in manifest.options_of(verb)} for verb in verbs}
    unknown = set(given) - set().union(*known.values())
    if unknown:
        resolve([o for verb in verbs for o in manifest.options_of(verb)], given, " and ".join(verbs), entry.name, task)
    return {
        verb: resolve(manifest.options_of(verb), {k: v for k, v in given.items() if k in names}, verb, entry.name, task)
        for verb, names in known.items()
    }


def made_format(manifest: Manifest, task: str | None, precision: Precision, making: Making) -> str:
    """What convert writes for a precision: the format asked for, else the first that claims it on the device asked for,
    or at all. Raises `BadRequest` for a format that the backend does not make of it."""
    formats = manifest.formats_of(task)
    fitting = manifest.formats_of(task, precision.name, making.device) or manifest.formats_of(task, precision.name)
    asked = making.made_format
    if asked and asked not in formats:
        raise BadRequest(f"backend {manifest.name!r} does not write {asked!r}", supported=", ".join(formats))
    if asked and asked not in fitting:
        raise BadRequest(f"{precision.name} is not made as {asked}", supported=", ".join(fitting))
    return asked or fitting[0]


def default_precision(entry: Entry, task: str | None, device: str | None = None) -> str:
    """What is made when nothing is asked for."""
    return _first(entry, task, CONVERTED_CLASSES if task == "tensor" else DEFAULT_CLASSES, device)


def _first(
    entry: Entry,
    task: str | None,
    classes: Iterable[PrecisionClass],
    device: str | None = None,
    format: str | None = None,
) -> str:
    """The first of the classes that the backend has for the task, device and format, else its first precision."""
    declared = _declared(entry.ready_manifest, task, device, format)
    return next((c.value for c in classes if any(p.precision_class is c for p in declared)), declared[0].name)


def _declared(manifest: Manifest, task: str | None, device: str | None, format: str | None) -> tuple[Precision, ...]:
    """Precisions of a task on a device; of those, the ones that are claimed in a format where any is."""
    found = manifest.precisions_of(task, device)
    claimed = {claim.precision for claim in manifest.claims if claim.format == format}
    return tuple(p for p in found if p.name in claimed) or found


def _select(entry: Entry, asked: str, task: str | None) -> Precision:
    return select(entry.ready_manifest.precisions_of(task), asked, entry.name, task)


def _source(target: Target) -> Source:
    if target.source is None:
        raise UnsupportedModel(
            f"{target.given} is a finished model of one runtime, not a source to convert from",
            supported="a Hugging Face folder, a GGUF file, an ONNX file",
        )
    return target.source


def _check_calibration(entry: Entry, precision: Precision, making: Making, task: str | None) -> None:
    """Refuse a precision that needs calibration data, and data that is not there, before anything is converted."""
    if making.calibration is not None:
        if not making.calibration.exists():
            raise BadRequest(
                f"calibration data {making.calibration} does not exist",
                supported="a UTF-8 text file (text models) or a folder of .npz files (tensor models)",
            )
    elif precision.calibration == "required":
        raise UnsupportedPrecision(
            f"{precision.name} needs calibration data and none was given",
            supported=", ".join(
                p.name for p in entry.ready_manifest.precisions_of(task) if p.calibration != "required"
            ),
            hint=f"the same command with --calibration {'FOLDER' if task == 'tensor' else 'FILE.txt'}",
        )


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
