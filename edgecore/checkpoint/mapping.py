"""The only way to a model's files: mapped rather than loaded, regular files only, and no link out of the folder.

Opening costs nothing and the system keeps only the pages in use. A folder from the internet may hold anything under
the name of a weight file: a pipe that never answers, a link to the user's own files.
"""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path
from typing import BinaryIO

from edgecore.contract.errors import CorruptModel, ModelNotFound

_HUB_LINKS = "a link inside the folder, or into the blobs of the Hugging Face cache that the folder lies in"


def map_file(file: Path, within: Path | None = None) -> mmap.mmap:
    """The file, read-only. Without `within` links are followed: the user named the file, not a folder that holds it.

    Raises as `open_regular` does, and `CorruptModel` for an empty one, which cannot be mapped.
    """
    with open_regular(file, within) as handle:
        if os.fstat(handle.fileno()).st_size == 0:
            raise CorruptModel(f"{file}: the file is empty")
        try:
            return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ModelNotFound(f"{file}: cannot be mapped ({error})") from None


def read_text(file: Path, most_bytes: int) -> str:
    """A small text file of a model's folder, whole. Raises as `read_bytes` does; `CorruptModel` when not UTF-8."""
    try:
        return read_bytes(file, most_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorruptModel(f"{file}: is not UTF-8 ({error})") from None


def read_bytes(file: Path, most_bytes: int) -> bytes:
    """A small file of a model's folder, whole.

    Raises as `open_regular` does, a link out of its folder included; `CorruptModel` when larger than `most_bytes`.
    """
    with open_regular(file, file.parent) as handle:
        # Not `read(most_bytes + 1)`: that reserves as much, whatever the file's size.
        data = handle.read(min(most_bytes, os.fstat(handle.fileno()).st_size) + 1)
    if len(data) > most_bytes:
        raise CorruptModel(f"{file}: larger than the {most_bytes} bytes that are accepted")
    return data


def open_regular(file: Path, within: Path | None = None) -> BinaryIO:
    """The file for reading, once it is known to be one; `within` is the folder that it may not lead out of.

    Raises `ModelNotFound` when there is none or it cannot be read, `CorruptModel` for a pipe, device or folder, and
    for a link that `inside` refuses. Never waits.
    """
    if within is not None:
        inside(within, file)
    try:
        # Before opening: a pipe waits for its writer, and opening a device may do something.
        if not stat.S_ISREG(file.stat().st_mode):
            raise CorruptModel(f"{file}: is not a regular file")
        return file.open("rb")
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from None


def inside(folder: Path, file: Path) -> Path:
    """`file`, after a look at where its links lead: it must end inside `folder`.

    Or in the `blobs` of the Hugging Face cache that the folder is a snapshot of: there every file is a link,
    `models--ORG--NAME/snapshots/REVISION/config.json -> ../../blobs/SHA`. Links on the way to the folder are the
    user's own and are followed. Raises `CorruptModel` naming the link and its target, `ModelNotFound` where it leads
    to nothing.
    """
    try:
        home, target = Path(os.path.realpath(folder, strict=True)), Path(os.path.realpath(file, strict=True))
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from None
    if target.is_relative_to(home) or target.parent == _blobs(home):
        return file
    # No command to type that names the target: whoever made the link chose it.
    raise CorruptModel(f"{file}: is a link out of the folder, to {str(target)!r}", supported=_HUB_LINKS)


def _blobs(home: Path) -> Path | None:
    """Where the links of a Hugging Face snapshot lead; None for a folder that is none, or is no part of one."""
    for folder in (home, *home.parents):
        if folder.parent.name == "snapshots":
            repository = folder.parent.parent
            return repository / "blobs" if repository.name.startswith("models--") else None
    return None


def _unreadable(file: Path, error: OSError | ValueError) -> ModelNotFound:
    if isinstance(error, FileNotFoundError):
        dangling = file.is_symlink()
        return ModelNotFound(f"{file}: " + ("is a link to nothing" if dangling else "no such file"))
    why = error.strerror if isinstance(error, OSError) else str(error)
    return ModelNotFound(f"{file}: cannot be read ({why})")
