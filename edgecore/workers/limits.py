"""A worker's memory limit. Anonymous memory is what counts: weights are mapped, so address space says nothing.

Watched, and not left to a cgroup: memory.max counts the page cache of mapped weights too, so a worker within its limit
would read them from the disk again at every token instead of being told that it does not fit.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

SAMPLE_SECONDS = 0.05
"""A page fault costs about 0.25 us, so a worker grows by at most some 0.5 GB between two samples."""


def guard_memory(pid: int, limit: int, ended: threading.Event, on_excess: Callable[[int], None]) -> None:
    """Watch a process and what it started until `ended`; call `on_excess(bytes)` once when they hold more than
    `limit`."""

    def watch() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            used = anonymous_bytes(pid)
            if used > limit:
                on_excess(used)
                return

    threading.Thread(target=watch, name="edgecore-memory", daemon=True).start()


def anonymous_bytes(pid: int) -> int:
    """Private memory without files behind it, of a process and its descendants, swapped out or not; 0 when it is
    gone."""
    if sys.platform.startswith("linux"):
        return sum(map(_linux_anonymous, _linux_tree(pid)))
    import psutil

    total = 0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            with suppress(psutil.Error):
                # uss is what would be freed by its end; rss where the system does not tell.
                total += getattr(one.memory_full_info(), "uss", 0) or one.memory_info().rss
    return total


def _linux_anonymous(pid: int) -> int:
    total = 0
    with suppress(OSError), open(f"/proc/{pid}/status", "rb") as status:
        for line in status:
            if line.startswith((b"RssAnon:", b"VmSwap:")):
                total += int(line.split()[1]) * 1024
    return total


def _linux_tree(pid: int) -> Iterator[int]:
    yield pid
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError), open(f"/proc/{pid}/task/{task}/children", "rb") as children:
                for child in children.read().split():
                    yield from _linux_tree(int(child))
