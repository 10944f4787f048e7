"""Files are mapped, not loaded: opening costs nothing and the system keeps only the pages in use."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from edgecore.contract.errors import CorruptModel, ModelNotFound


def map_file(file: Path) -> mmap.mmap:
    """The file, read-only. Raises `ModelNotFound`, and `CorruptModel` for an empty one (which cannot be mapped)."""
    try:
        with file.open("rb") as handle:
            if handle.seek(0, 2) == 0:
                raise CorruptModel(f"{file}: the file is empty")
            return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ModelNotFound(f"{file}: no such file") from None
    except OSError as error:
        raise ModelNotFound(f"{file}: cannot be read ({error.strerror})") from None


def read_text(file: Path, most_bytes: int) -> str:
    """A small text file, whole. Raises `ModelNotFound`; `CorruptModel` when larger than `most_bytes` or not UTF-8."""
    try:
        with file.open("rb") as handle:
            # Not `read(most_bytes + 1)`: that reserves as much, whatever the file's size.
            data = handle.read(min(most_bytes, os.fstat(handle.fileno()).st_size) + 1)
    except FileNotFoundError:
        raise ModelNotFound(f"{file}: no such file") from None
    except OSError as error:
        raise ModelNotFound(f"{file}: cannot be read ({error.strerror})") from None
    if len(data) > most_bytes:
        raise CorruptModel(f"{file}: larger than the {most_bytes} bytes that are accepted")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorruptModel(f"{file}: is not UTF-8 ({error})") from None
