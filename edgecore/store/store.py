"""The store: where artifacts live, how they appear, and how they go.

On disk, under one root:

    ID/                  an artifact: artifact.json, the payload, evidence/
    .staging/ID~RANDOM/  being built, or being removed: never listed
    .locks/ID.lock       held while an id is built or removed; the file itself means nothing

An artifact is built in its staging folder, synced, and renamed. A killed process leaves a staging folder whose lock is
free; the next builder of anything sweeps it.
"""

from __future__ import annotations

import builtins
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock

from edgecore import disk, paths
from edgecore.contract.artifacts import Artifact
from edgecore.contract.errors import BadRequest, CorruptModel, EdgecoreError, ModelNotFound, Timeout, UnsupportedModel
from edgecore.sources.source import file_digest
from edgecore.store import evidence, exporting, schema
from edgecore.store.identity import check_id
from edgecore.store.sealing import sealed_payload

_POLL = 0.25
"""Seconds between two looks at a lock that another process holds; nobody waits on it for less than a conversion."""


class Staging:
    """A folder to build in, under the id's lock; or, when another process was faster, what it made."""

    def __init__(self, store: Store, identity: str, path: Path, cached: Artifact | None) -> None:
        self._store = store
        self._id = identity
        self.path = path
        """Empty, for the payload. With `cached` set it is that artifact's own folder: leave it alone."""
        self.cached = cached
        """The finished artifact of this id, None where it is yours to build."""

    def publish(self, artifact: Artifact) -> Artifact:
        """Seal the payload and give it its final name; the answer is what a later reader gets.

        Files that `artifact.files` does not name are sealed in the role `other`. Raises `PluginFault` for files that
        are named and missing, `DoesNotFit` when the disk is full; nothing is kept then.
        """
        if self.cached:
            raise BadRequest(f"{self._id} is stored already")
        files = sealed_payload(self.path, artifact.files, artifact.backend)
        sealed = replace(artifact, id=self._id, path=self.path, files=files)
        (self.path / schema.EVIDENCE).mkdir(exist_ok=True)
        disk.write_whole(self.path / schema.ARTIFACT_FILE, schema.write(sealed))
        for folder in (p for p in self.path.rglob("*") if p.is_dir()):
            disk.sync_folder(folder)
        final = self._store.root / self._id
        os.rename(self.path, final)
        disk.sync_folder(self._store.root)
        self.cached = schema.read(final)
        return self.cached


class Store:
    """Artifacts under one root, by default the user's. Reading works on a read-only disk."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or paths.artifacts()).absolute()
        self._staging = self.root / ".staging"
        self._locks = self.root / ".locks"

    # Reading.

    def get(self, identity: str) -> Artifact | None:
        """The artifact of exactly this id, None where there is none. Raises `CorruptModel`, `UnsupportedModel`."""
        folder = self.root / check_id(identity)
        return schema.read(folder) if (folder / schema.ARTIFACT_FILE).exists() else None

    def find(self, id_or_prefix: str) -> Artifact:
        """The artifact of an id, of its unique beginning, or of the unique beginning of the digest at its end.

        Raises `ModelNotFound`, and `BadRequest` that lists the candidates of an ambiguous one.
        """
        return schema.read(self.root / self.identify(id_or_prefix))

    def identify(self, id_or_prefix: str) -> str:
        """The whole id, as `find` understands it, also of an artifact that cannot be read."""
        stored = self._ids()
        if id_or_prefix in stored:
            return id_or_prefix
        found = [i for i in stored if i.startswith(id_or_prefix) or i.rpartition("-")[2].startswith(id_or_prefix)]
        # The empty name begins them all, and `cache rm "$UNSET"` must not remove the only one.
        if not (found and id_or_prefix):
            shown = ", ".join(stored[:5]) + (f" and {len(stored) - 5} more" if len(stored) > 5 else "")
            raise ModelNotFound(
                f"no stored artifact has the id {id_or_prefix!r}",
                supported=shown or f"none is stored in {self.root}",
                hint="edgecore cache ls",
            )
        if len(found) > 1:
            raise BadRequest(f"{id_or_prefix!r} begins {len(found)} ids", supported=", ".join(found))
        return found[0]

    def open_path(self, folder: Path) -> Artifact:
        """An artifact anywhere on disk, a copied one for instance, held to the digests that sealed it.

        A digest is remembered, so only the first opening reads the files. Raises as `get` does, and `ModelNotFound`.
        """
        folder = Path(folder).expanduser().absolute()
        try:
            artifact = schema.read(folder)
            for file in artifact.files:
                if file_digest(artifact.path / file.path) != file.sha256:
                    raise CorruptModel(
                        f"{artifact.path / file.path} is not what was sealed: its SHA-256 differs",
                        hint=f"edgecore cache rm {artifact.id}",
                    )
        except CorruptModel as error:
            if folder.parent == self.root:
                raise
            # Removing the id would remove the good one that is stored here.
            raise CorruptModel(
                error.what, supported="an artifact as it was made", hint="copy it again from where it was made"
            ) from None
        return artifact

    def list(self) -> list[Artifact]:
        """Every artifact that can be read, by id. The others are in `unreadable`."""
        return [artifact for artifact in map(self._try, self._ids()) if isinstance(artifact, Artifact)]

    def unreadable(self) -> dict[str, EdgecoreError]:
        """Damaged or newer artifacts by id, with what is wrong: a row each, not an exception for all."""
        tried = {identity: self._try(identity) for identity in self._ids()}
        return {identity: error for identity, error in tried.items() if isinstance(error, EdgecoreError)}

    def size(self, artifact: Artifact) -> int:
        """Bytes of the payload."""
        return sum(file.size for file in artifact.files)

    def verify(self, identity: str) -> builtins.list[str]:
        """Recomputes every digest; a sentence for each thing that is not as it was sealed, none when all is."""
        try:
            artifact = self.find(identity)
        except (CorruptModel, UnsupportedModel) as error:
            return [error.what]
        return self.verify_artifact(artifact)

    def verify_artifact(self, artifact: Artifact) -> builtins.list[str]:
        """`verify` for an artifact anywhere on disk."""
        problems = []
        for file in artifact.files:
            path = artifact.path / file.path
            if not path.is_file():
                problems.append(f"{file.path} is missing")
            elif path.stat().st_size != file.size:
                problems.append(f"{file.path} has {path.stat().st_size} bytes where {file.size} were sealed")
            elif disk.sha256_of(path) != file.sha256:
                problems.append(f"{file.path} is not what was sealed: its SHA-256 differs")
        named = {file.path for file in artifact.files} | {schema.ARTIFACT_FILE}
        for path in sorted(artifact.path.rglob("*")):
            relative = path.relative_to(artifact.path).as_posix()
            if path.is_file() and relative not in named and not relative.startswith(f"{schema.EVIDENCE}/"):
                problems.append(f"{relative} was not there when it was sealed")
        return problems

    # Evidence.

    def evidence(self, artifact: Artifact) -> builtins.list[dict[str, Any]]:
        """Every record, oldest first; empty for native files."""
        return [] if artifact.native else evidence.read(artifact.path / schema.EVIDENCE)

    def add_evidence(self, artifact: Artifact, record: dict[str, Any]) -> Path:
        """One more file, whole or not there. Raises `BadRequest` for native files and where nothing can be written."""
        if artifact.native:
            raise BadRequest(f"{artifact.path} is a native file and carries no evidence", hint="edgecore build")
        folder = artifact.path / schema.EVIDENCE
        with disk.typed_errors(folder):
            return evidence.add(folder, record)

    # Writing.

    @contextmanager
    def build(
        self, identity: str, wait: float | None = None, on_wait: Callable[[], object] | None = None
    ) -> Iterator[Staging]:
        """A staging folder under the id's lock. What is not published in the block is discarded, whatever ends it.

        wait:    seconds to wait for another process that builds the same id; None waits as long as it takes.
        on_wait: called again and again meanwhile; what it raises ends the waiting.
        Raises `Timeout`, `DoesNotFit`, `BadRequest` where the store cannot be written, `UnsupportedModel` for a stored
        artifact of this id from a newer edgecore.
        """
        if cached := self._intact(identity):
            yield Staging(self, identity, cached.path, cached)
            return
        with disk.typed_errors(self.root), self._locked(identity, wait, on_wait):
            if cached := self._intact(identity):
                yield Staging(self, identity, cached.path, cached)
                return
            self._sweep(identity)
            self._discard(self.root / identity)
            path = self._staging_path(identity)
            path.mkdir(parents=True)
            try:
                yield Staging(self, identity, path, None)
            finally:
                disk.remove_tree(path)

    def remove(self, identity: str) -> None:
        """Removes an artifact and its evidence, damaged or not. Raises `ModelNotFound`, `Timeout` while it is built."""
        folder = self.root / check_id(identity)
        if not folder.exists():
            raise ModelNotFound(f"no stored artifact has the id {identity!r}", hint="edgecore cache ls")
        with disk.typed_errors(folder), self._locked(identity, 10.0, None):
            self._discard(folder)

    def export(self, artifact: Artifact, out: Path) -> Artifact:
        """A verified copy at `out`, whole or not there. An identical artifact that is there already will do.

        Raises `BadRequest` where something else is there, `CorruptModel` for a payload that is not as it was sealed.
        """
        out = Path(out).expanduser().absolute()
        with disk.typed_errors(out.parent):
            return exporting.export(artifact, out)

    # Within.

    def _ids(self) -> builtins.list[str]:
        if not self.root.is_dir():
            return []
        return sorted(p.name for p in self.root.iterdir() if p.name[0] != "." and (p / schema.ARTIFACT_FILE).exists())

    def _try(self, identity: str) -> Artifact | EdgecoreError:
        try:
            return schema.read(self.root / identity)
        except EdgecoreError as error:
            return error

    def _intact(self, identity: str) -> Artifact | None:
        """A damaged artifact counts as none: building it again mends it."""
        try:
            return self.get(identity)
        except CorruptModel:
            return None

    def _staging_path(self, identity: str) -> Path:
        # Random, so that an orphaned worker of a killed builder cannot write into its successor's folder.
        return self._staging / f"{identity}~{os.urandom(4).hex()}"

    def _discard(self, folder: Path) -> None:
        """Out of sight by one rename, then removed."""
        if folder.exists():
            self._staging.mkdir(parents=True, exist_ok=True)
            doomed = self._staging_path(folder.name)
            os.rename(folder, doomed)
            disk.remove_tree(doomed)

    def _sweep(self, held: str) -> None:
        """Removes what killed processes left: staging folders whose lock nobody holds, or we do."""
        for left in self._staging.glob("*~*") if self._staging.is_dir() else ():
            identity = left.name.rpartition("~")[0]
            if identity == held:
                disk.remove_tree(left)
                continue
            lock = self._lock(identity)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                continue
            try:
                disk.remove_tree(left)
            finally:
                lock.release()

    def _lock(self, identity: str) -> filelock.BaseFileLock:
        self._locks.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(self._locks / f"{identity}.lock")

    @contextmanager
    def _locked(self, identity: str, wait: float | None, on_wait: Callable[[], object] | None) -> Iterator[None]:
        lock = self._lock(identity)
        until = None if wait is None else time.monotonic() + wait
        while True:
            try:
                lock.acquire(timeout=_POLL, poll_interval=_POLL)
                break
            except filelock.Timeout:
                if on_wait:
                    on_wait()
                if until is not None and time.monotonic() >= until:
                    raise Timeout(
                        f"another process still builds {identity} after {wait:g} s", hint="the same command again later"
                    ) from None
        try:
            yield
        finally:
            lock.release()
