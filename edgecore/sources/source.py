"""One model as people publish it, on this disk, with the digest that artifacts derive their ids from."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from edgecore import disk, paths
from edgecore.checkpoint import onnx_file
from edgecore.contract.errors import EdgecoreError
from edgecore.contract.progress import Progress, no_progress

FOLDER_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja",
    "chat_template.json", "*.safetensors", "*.safetensors.index.json",
)  # fmt: skip
"""What a Hugging Face folder is made of, here: data. No pickles, no code, nothing in subfolders."""
_RACY = 2.0
"""Seconds: a file changed more recently may change again without a new time stamp, so its digest is not remembered."""


@dataclass(frozen=True)
class Source:
    """A model file or folder. It is never written to."""

    spec: str
    """As the user named it."""
    path: Path
    kind: str
    """`gguf`, `huggingface` or `onnx`."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Where it is from: distribution or repository, version or commit, file, licence where they are known."""
    size: int = 0
    """Bytes of all its files."""
    progress: Progress = field(default=no_progress, repr=False, compare=False)
    """Who watches when `digest` has to read a large file."""

    @property
    def digest(self) -> str:
        """SHA-256, hex. Of a folder: over `path<TAB>digest` lines of its files, sorted; of an ONNX model with weights
        beside it, the same over those files. Read once, then remembered by path, size, time and inode."""
        files = model_files(self.path, self.kind)
        if len(files) == 1:
            return file_digest(files[0], self.progress)
        lines = sorted(
            f"{f.relative_to(_base(self.path)).as_posix()}\t{file_digest(f, self.progress)}\n" for f in files
        )
        return hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()

    @property
    def known_digest(self) -> str | None:
        """`digest` if it is known without reading a large file, None otherwise."""
        files = model_files(self.path, self.kind)
        return self.digest if all(remembered_digest(f) for f in files) else None


def model_files(path: Path, kind: str) -> list[Path]:
    """The files that make the model: of a folder, those that are read; of an ONNX file, its external weights too."""
    if kind == "huggingface":
        return sorted(f for f in path.iterdir() if f.is_file() and is_folder_file(f.name))
    if kind == "onnx":
        return [path, *(path.parent / name for name in onnx_file.read_header(path).external)]
    return [path]


def is_folder_file(name: str) -> bool:
    """Whether a file of a Hugging Face folder is one that is read here."""
    # macOS leaves `._NAME` beside each NAME on foreign disks.
    return name[0] != "." and any(fnmatch(name, pattern) for pattern in FOLDER_FILES)


def file_digest(path: Path, progress: Progress = no_progress) -> str:
    """SHA-256 of a file, remembered."""
    known = remembered_digest(path)
    if known:
        return known
    facts = _facts(path)
    digest = disk.sha256_of(path, progress, f"reading {path.name}")
    if facts == _facts(path) and time.time() - path.stat().st_mtime > _RACY:
        remember_digest(path, digest)
    return digest


def remembered_digest(path: Path) -> str | None:
    """The digest that was computed for this very file, if it has not changed since."""
    try:
        record = json.loads(_record(path).read_bytes())
        return str(record["sha256"]) if record["file"] == _facts(path) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember_digest(path: Path, digest: str) -> None:
    """A convenience, so a home that cannot be written is no error."""
    record = _record(path)
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        disk.write_whole(record, json.dumps({"file": _facts(path), "sha256": digest}).encode("utf-8"))
    except (OSError, EdgecoreError):
        return


def _record(path: Path) -> Path:
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    return paths.index() / "digests" / f"{name}.json"


def _facts(path: Path) -> list[Any]:
    found = path.resolve()
    about = found.stat()
    return [str(found), about.st_size, about.st_mtime_ns, about.st_ino]


def _base(path: Path) -> Path:
    return path if path.is_dir() else path.parent
