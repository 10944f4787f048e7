"""`artifact.json`: how an artifact is written down. Readers meet files from other versions, disks and hands, so every
field is checked and every complaint names the file and the field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgecore import disk
from edgecore.contract.artifacts import ARTIFACT_SCHEMA, Artifact, Fallback, PayloadFile, Weights
from edgecore.contract.errors import BadRequest, CorruptModel, ModelNotFound, PluginFault, UnsupportedModel

ARTIFACT_FILE = "artifact.json"
EVIDENCE = "evidence"
ROLES = ("model", "weights", "tokenizer", "config", "other")
_TEXTS = ("id", "backend", "task", "format", "precision", "family")


def write(artifact: Artifact) -> bytes:
    """The file's content. Raises `PluginFault` for facts that JSON cannot hold."""
    data: dict[str, Any] = {"schema": ARTIFACT_SCHEMA}
    data |= {name: getattr(artifact, name) for name in _TEXTS}
    data["context_length"] = artifact.context_length
    data["weights"] = asdict(artifact.weights) if artifact.weights else None
    data["files"] = [asdict(file) for file in artifact.files]
    data["requires"] = dict(artifact.requires)
    data["chain"] = [dict(step) for step in artifact.chain]
    data["notes"] = list(artifact.notes)
    try:
        return (json.dumps(data, indent=2, allow_nan=False) + "\n").encode("utf-8")
    except (TypeError, ValueError) as error:
        raise PluginFault(f"backend {artifact.backend!r} answered facts that JSON cannot hold: {error}") from error


def read(folder: Path) -> Artifact:
    """The artifact in a folder, its payload present with the recorded sizes (digests: `Store.verify`).

    Raises `ModelNotFound` without an `artifact.json`, `UnsupportedModel` for a newer schema, `CorruptModel` otherwise.
    """
    path = folder / ARTIFACT_FILE
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelNotFound(f"{folder} has no {ARTIFACT_FILE}: not an artifact", hint="edgecore cache ls") from error
    except ValueError as error:
        raise CorruptModel(f"{path} is not JSON: {error}", hint=f"edgecore cache rm {folder.name}") from error
    except OSError as error:
        raise BadRequest(f"{path} cannot be read: {error.strerror}") from error
    fields = _Fields(data, path)
    schema = fields.get("schema", int)
    if schema > ARTIFACT_SCHEMA:
        raise UnsupportedModel(
            f"{path} was written by a newer edgecore: schema {schema}",
            supported=f"schema {ARTIFACT_SCHEMA} and older",
            hint="pip install --upgrade edgecore",
        )
    artifact = Artifact(
        path=folder,
        **{name: fields.get(name, str) for name in _TEXTS},
        files=tuple(_file(entry) for entry in fields.tables("files")),
        context_length=fields.get("context_length", int),
        weights=_weights(fields),
        requires=fields.get("requires", dict),
        chain=tuple(entry.data for entry in fields.tables("chain")),
        notes=tuple(map(str, fields.get("notes", list))),
    )
    if not artifact.id:
        raise fields.bad("id", "is empty")
    for file in artifact.files:
        payload = folder / file.path
        if not payload.is_file():
            raise CorruptModel(f"{payload} is missing", hint=f"edgecore cache rm {artifact.id}")
        if payload.stat().st_size != file.size:
            raise CorruptModel(
                f"{payload} has {payload.stat().st_size} bytes where {file.size} were sealed",
                hint=f"edgecore cache rm {artifact.id}",
            )
    return artifact


def _file(entry: _Fields) -> PayloadFile:
    path, size, digest = entry.get("path", str), entry.get("size", int), entry.get("sha256", str)
    if not disk.is_inside(path):
        raise entry.bad("path", f"{path!r} leaves the artifact's folder")
    if len(digest) != 64:
        raise entry.bad("sha256", f"{digest!r} is not a SHA-256")
    return PayloadFile(path, entry.get("role", str), size, digest)


def _weights(fields: _Fields) -> Weights | None:
    if fields.data.get("weights") is None:
        return None
    entry = _Fields(fields.get("weights", dict), fields.path, "weights.")
    return Weights(
        float(entry.get("bits_per_weight", (int, float))),
        float(entry.get("eligible_bits_per_weight", (int, float))),
        entry.get("parameters", int),
        tuple(
            Fallback(f.get("tensor", str), f.get("got", str), f.get("reason", str)) for f in entry.tables("fallbacks")
        ),
    )


class _Fields:
    """Typed access to one JSON object; every failure names the file and the field."""

    def __init__(self, data: Any, path: Path, at: str = "") -> None:
        self.path, self.at = path, at
        if not isinstance(data, dict):
            raise self.bad("", "is not an object")
        self.data: Mapping[str, Any] = data

    def bad(self, name: str, why: str) -> CorruptModel:
        field = f"{self.at}{name}".rstrip(".")
        return CorruptModel(f"{self.path}: {field + ' ' if field else ''}{why}", hint="edgecore cache ls")

    def get(self, name: str, kind: type | tuple[type, ...]) -> Any:
        value = self.data.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.bad(name, f"is {value!r}" if name in self.data else "is missing")
        return value

    def tables(self, name: str) -> list[_Fields]:
        return [_Fields(entry, self.path, f"{self.at}{name}[{i}].") for i, entry in enumerate(self.get(name, list))]
