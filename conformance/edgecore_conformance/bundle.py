"""A bundle: the folder that a run leaves, and everything that a third person needs to come to the same verdicts.

header.json     who ran what, where        manifest.json   the plugin's manifest as it was tested
selected.json   ids of the rows to run      rows.jsonl      write-ahead rows, the last line of a row counts
sessions.json   when it was begun, resumed  raw/            what was seen, one .json and perhaps .npz a row
report.json     all of it, judged, with the digests of every other file
junit.xml, index.html, badge.svg            the report for machines and people, made from report.json
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecore.contract.errors import BadRequest
from edgecore.contract.manifest import Manifest, parse
from edgecore_conformance.header import FILE as HEADER
from edgecore_conformance.header import MANIFEST
from edgecore_conformance.rows import FILE as ROWS
from edgecore_conformance.rows import SELECTED

REPORT = "report.json"
JUNIT = "junit.xml"
PAGE = "index.html"
BADGE = "badge.svg"


@dataclass(frozen=True, slots=True)
class Bundle:
    """The parts of a bundle as they lie there, nothing checked beyond being readable."""

    folder: Path
    report: Mapping[str, Any]
    header: Mapping[str, Any]
    manifest: Manifest
    selected: Sequence[str]
    lines: Sequence[Mapping[str, Any]]
    """Every line of rows.jsonl."""


def open_bundle(folder: Path) -> Bundle:
    """Raises `BadRequest` that names the file which is missing or no JSON."""
    if not (folder / REPORT).is_file():
        raise BadRequest(
            f"{folder} holds no {REPORT}",
            supported="the folder that `edgecore conformance run --out` wrote, whole",
            hint="edgecore conformance run --backend NAME --out DIR",
        )
    manifest = read(folder / MANIFEST, dict)
    lines = [_parsed(line, folder / ROWS) for line in _text(folder / ROWS).splitlines() if line.strip()]
    return Bundle(
        folder,
        read(folder / REPORT, dict),
        read(folder / HEADER, dict),
        parse(manifest, MANIFEST),
        read(folder / SELECTED, list),
        lines,
    )


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the bundle but report.json, which holds them, by path."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() or f.is_symlink())
    return {
        path: _digest(f) for f in files if (path := f.relative_to(folder).as_posix()) != REPORT
    }  # fmt: skip


def _digest(file: Path) -> str:
    """Links are not followed: a bundle is files."""
    if file.is_symlink():
        return "link"
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _text(file: Path) -> str:
    """Of a regular file: a link may lead anywhere, and a pipe never ends."""
    if file.exists() and (file.is_symlink() or not file.is_file()):
        raise BadRequest(f"{file} is no regular file", supported="a whole bundle")
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"{file}: {error}", supported="a whole bundle") from None


def _parsed(text: str, file: Path) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{file}: {error}", supported="a whole bundle") from None


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Of two values with one name each reader takes another."""
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(name for number, (name, _) in enumerate(pairs) if name in dict(pairs[:number]))
        raise ValueError(f"{twice!r} stands twice in one object")
    return made


def read(file: Path, kind: type) -> Any:
    """JSON of that kind. Raises `BadRequest`."""
    value = _parsed(_text(file), file)
    if not isinstance(value, kind):
        raise BadRequest(f"{file} holds a {type(value).__name__}", supported=f"a {kind.__name__}")
    return value
