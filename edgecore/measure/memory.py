"""Peak memory of a worker, the part that it must have apart from the part that is only a mapped file.

One figure would mislead both ways: mapped weights can be dropped and read again, so they do not make a machine run out
of memory; but they must be resident to be fast. Linux tells them apart (`RssAnon`, `RssFile`), elsewhere psutil's
resident size stands for both, and says so.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

PERIOD = 0.02
"""Seconds between two readings; a reading takes some 20 microseconds."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes resident at the peak, each part at its own peak."""

    anonymous: int
    """Private memory that only swap could hold instead. Where `split` is False: all that is resident."""
    file_mapped: int
    """Pages of files and shared memory. 0 where `split` is False."""
    split: bool
    """Whether the system told the two apart."""
    proportional: int = 0
    """Proportional set size at the end (shared pages counted by share); 0 where the system does not tell."""


class MemoryWatch:
    """Samples a process from a thread of its own while the block runs. `peak` is the answer, during and after it.

    A process that ends while it is watched leaves the peak until then.
    """

    def __init__(self, pid: int, period: float = PERIOD) -> None:
        self._pid, self._period = pid, period
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, name=f"memory of {pid}", daemon=True)
        self._anonymous = self._mapped = self._proportional = 0
        self._split = True

    def __enter__(self) -> Self:
        self._read()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._read()
        self._proportional = proportional(self._pid)

    @property
    def peak(self) -> Memory:
        return Memory(self._anonymous, self._mapped, self._split, self._proportional)

    def _sample(self) -> None:
        while not self._done.wait(self._period):
            self._read()

    def _read(self) -> None:
        now = resident(self._pid)
        if now is not None:
            self._anonymous = max(self._anonymous, now.anonymous)
            self._mapped = max(self._mapped, now.file_mapped)
            self._split = now.split


def resident(pid: int) -> Memory | None:
    """What is resident now; None for a process that is gone."""
    if sys.platform == "linux":
        fields = _fields(Path(f"/proc/{pid}/status"))
        if "RssAnon" in fields:
            return Memory(fields["RssAnon"], fields.get("RssFile", 0) + fields.get("RssShmem", 0), split=True)
    try:
        return Memory(psutil.Process(pid).memory_info().rss, 0, split=False)
    except psutil.Error:
        return None


def proportional(pid: int) -> int:
    """Proportional set size in bytes, 0 where the system does not tell. Slow: the kernel walks all pages."""
    return _fields(Path(f"/proc/{pid}/smaps_rollup")).get("Pss", 0) if sys.platform == "linux" else 0


def _fields(path: Path) -> dict[str, int]:
    """The `Name: n kB` lines of a file under /proc, in bytes; empty when the process is gone or not ours."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    found = (line.split() for line in lines if line.endswith(" kB"))
    return {parts[0].rstrip(":"): int(parts[1]) * 1024 for parts in found if len(parts) == 3}
