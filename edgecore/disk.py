"""Files that are whole or not there: what store and sources share about writing, sealing, hashing and removing.

Own code because the pieces in the standard library (`os.replace`, `os.fsync`, `shutil`) leave the order in which
they must be used to the caller, and that order is the whole point.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from edgecore.contract.disk import DISK_FULL
from edgecore.contract.errors import BadRequest, DoesNotFit
from edgecore.contract.progress import Progress, no_progress

CHUNK = 4 << 20
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


@contextmanager
def typed_errors(where: Path) -> Iterator[None]:
    """What the disk says, in our words: full is `DoesNotFit`, read-only is `BadRequest`, and both name `where`."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise DoesNotFit(
                f"{where}: {error.strerror}: the file did not fit on the disk, and nothing of it was kept",
                supported=f"{_free(where)} free there now",
                hint="edgecore cache ls, then edgecore cache rm ID; or set EDGECORE_HOME to a larger disk",
            ) from error
        if error.errno in _READ_ONLY and _concerns(error, where):
            raise BadRequest(
                f"{where} cannot be written: {error.strerror}",
                supported="a folder that this user may write",
                hint="set EDGECORE_HOME to another folder",
            ) from error
        raise


def _concerns(error: OSError, where: Path) -> bool:
    """Whether the error is about something on the way to `where` or under it, not about a file that lies elsewhere."""
    if error.filename is None:
        return True
    named = Path(os.fsdecode(error.filename))
    return where.is_relative_to(named) or named.is_relative_to(where)


def _free(where: Path) -> str:
    for folder in (where, *where.parents):
        if folder.is_dir():
            return f"{shutil.disk_usage(folder).free / 1e6:,.0f} MB"
    return "an unknown amount"


def is_inside(name: str) -> bool:
    """Whether a path that someone else wrote down is relative and stays in its folder, on any system."""
    parts = PurePosixPath(name).parts
    return bool(parts) and "\\" not in name and ":" not in parts[0] and not name.startswith("/") and ".." not in parts


def sha256_of(path: Path, progress: Progress = no_progress, stage: str = "") -> str:
    """Hex digest of a file, in chunks; progress in bytes."""
    digest, done = hashlib.sha256(), 0
    total = path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress(done, total, stage or f"checking {path.name}")
    return digest.hexdigest()


def sync_file(path: Path) -> None:
    """Returns when the file's bytes are on the disk, not merely on their way."""
    with path.open("rb") as file:
        # Windows flushes only through a handle that may write; there the rename alone has to do.
        if os.name != "nt":
            os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Returns when the names in the folder are on the disk. Windows has no such call."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, data: bytes) -> None:
    """The file appears with all of `data`, or keeps what it had."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(path.parent)


def copy_file(source: Path, target: Path, on_bytes: Callable[[int], None] = lambda count: None) -> str:
    """Copies, syncs, and answers the SHA-256 of what was read. `target` must not exist."""
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("xb") as writer:
        while chunk := reader.read(CHUNK):
            digest.update(chunk)
            writer.write(chunk)
            on_bytes(len(chunk))
        writer.flush()
        os.fsync(writer.fileno())
    return digest.hexdigest()


def seal(path: Path) -> None:
    """Nobody writes this file by accident any more."""
    path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)


def remove_tree(path: Path) -> None:
    """Removes a folder with sealed files in it. What another process still writes there stays for the next sweep."""
    if os.name == "nt":
        for file in path.rglob("*"):
            file.chmod(stat.S_IWRITE)
    shutil.rmtree(path, ignore_errors=True)
