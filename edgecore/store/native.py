"""Files and folders that people already have, as artifacts without evidence: run where they lie, never sealed."""

from __future__ import annotations

from pathlib import Path

from edgecore.checkpoint import onnx_file
from edgecore.checkpoint.chat_source import optional_json
from edgecore.contract.artifacts import Artifact, PayloadFile
from edgecore.contract.manifest import Format, Manifest
from edgecore.sources import gguf_header
from edgecore.sources.kinds import detect, sniff


def native_artifact(path: Path, manifest: Manifest) -> Artifact | None:
    """`path` as this backend opens it, None where none of its formats is that.

    A file is known by its content where content tells (GGUF, ONNX), else by its suffix; a folder by a format's marker
    file, or by a key of its config.json. `precision` and `family` are empty where the file does not say. Raises
    `CorruptModel`.
    """
    path = Path(path).expanduser().absolute()
    if path.is_file():
        return _file(path, manifest)
    if path.is_dir():
        return next((_folder(path, f, manifest) for f in manifest.formats if _is_one(path, f)), None)
    return None


def _is_one(folder: Path, format: Format) -> bool:
    if format.marker and (folder / format.marker).is_file():
        return True
    return bool(format.config_key) and optional_json(folder / "config.json").has(format.config_key)


def _file(path: Path, manifest: Manifest) -> Artifact | None:
    kind = sniff(path)
    suffix = f".{kind}" if kind else path.suffix.lower()
    format = next((f for f in manifest.formats if suffix in f.suffixes), None)
    if format is None:
        return None
    if kind or suffix in (".gguf", ".onnx"):
        # Raises for what is truncated or not what its name says.
        detect(path)
    precision, family, context = "", "", 0
    files = [PayloadFile(path.name, "model", path.stat().st_size)]
    if kind == "gguf":
        header = gguf_header.read_header(path)
        precision, family, context = header.precision, header.architecture, header.context_length
    elif kind == "onnx":
        onnx = onnx_file.read_header(path)
        precision = onnx.precision
        files += [PayloadFile(name, "weights", (path.parent / name).stat().st_size) for name in onnx.external]
    return Artifact(
        path=path,
        backend=manifest.name,
        task=format.task,
        format=format.name,
        precision=precision,
        files=tuple(files),
        family=family,
        context_length=context,
    )


def _folder(path: Path, format: Format, manifest: Manifest) -> Artifact:
    """The marker is what the runtime opens if its suffix is one of the format's; else the runtime opens the folder."""
    opens_marker = Path(format.marker).suffix in format.suffixes
    files = tuple(
        PayloadFile(name, "model" if opens_marker and name == format.marker else "other", p.stat().st_size)
        for p in sorted(path.rglob("*"))
        if p.is_file() and not (name := p.relative_to(path).as_posix()).startswith(".")
    )
    return Artifact(path, manifest.name, format.task, format.name, "", files)
