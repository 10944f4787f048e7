"""A full disk, in the contract's words: Python says so by errno, native code often by failing and no more."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgecore.contract.errors import DoesNotFit

DISK_FULL = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})
"""What an `OSError` that means no more room says in `errno`."""


@contextmanager
def full_disk(where: Path) -> Iterator[None]:
    """Turns what the system raises when there is no more room into `DoesNotFit`."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise DoesNotFit(f"{where}: {error.strerror}", hint="edgecore cache ls, then edgecore cache rm ID") from error


def check_room(file: Path) -> None:
    """Whether the file could still grow, asked by growing it: for native code that failed and may have failed for this.
    Raises `DoesNotFit`."""
    with full_disk(file), file.open("ab") as stream:
        stream.write(bytes(1 << 16))
