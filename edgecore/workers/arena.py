"""Shared memory for arrays, because 100 MB through a pipe costs ten times what a copy costs.

One arena a direction, owned by the side that writes. The reader copies out at once and counts what it took in the
arena's head; when everything was taken the writer starts again at the beginning. Nothing ever waits: where there is no
room the writer makes a larger arena. No name outlives the processes: on Linux the memory is anonymous and reached
through /proc, elsewhere the reader unlinks the file as soon as it has mapped it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import tempfile
from dataclasses import dataclass

_HEAD = 64
_COUNT = struct.Struct("<Q")
_FIRST = 1 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where an array lies: `generation` tells arenas apart whose path is the same."""

    generation: int
    path: str
    size: int
    offset: int


class _Arena:
    """One mapping with its file, on the writer's side."""

    def __init__(self, generation: int, size: int) -> None:
        self.generation = generation
        self.size = size
        self.temporary = not hasattr(os, "memfd_create")
        if self.temporary:
            self.fd, self.path = tempfile.mkstemp(prefix="edgecore-")
        else:
            self.fd = os.memfd_create("edgecore")
            self.path = f"/proc/{os.getpid()}/fd/{self.fd}"
        try:
            os.ftruncate(self.fd, size)
            self.map = mmap.mmap(self.fd, size)
        except (OSError, ValueError):
            self._release()
            raise
        self.next = _HEAD
        self.put_count = 0

    def room(self, nbytes: int) -> int | None:
        """The offset for `nbytes`, None where there is no room."""
        if _COUNT.unpack_from(self.map)[0] == self.put_count:
            self.next = _HEAD
        start = -(-self.next // 64) * 64
        return start if start + nbytes <= self.size else None

    def idle(self) -> bool:
        taken: int = _COUNT.unpack_from(self.map)[0]
        return taken == self.put_count

    def close(self) -> None:
        self.map.close()
        self._release()

    def _release(self) -> None:
        os.close(self.fd)
        if self.temporary:
            with contextlib.suppress(OSError):  # The reader was first, as it should be.
                os.unlink(self.path)


class ArenaWriter:
    """Puts bytes where the other process can copy them. Not thread-safe: callers send under a lock."""

    def __init__(self) -> None:
        self._arenas: list[_Arena] = []
        self._generation = 0

    def put(self, data: memoryview) -> Place | None:
        """Copy `data` (contiguous bytes) in; None where this system gives no shared memory."""
        arena = self._arenas[-1] if self._arenas else None
        start = arena.room(data.nbytes) if arena else None
        if arena is None or start is None:
            try:
                arena = self._grow(data.nbytes)
            except (OSError, ValueError):
                return None
            start = _HEAD
        arena.map[start : start + data.nbytes] = data
        arena.next = start + data.nbytes
        arena.put_count += 1
        return Place(arena.generation, arena.path, arena.size, start)

    def undo(self, count: int) -> None:
        """Forget the last `count` puts, whose message was never sent."""
        if self._arenas:
            self._arenas[-1].put_count -= min(count, self._arenas[-1].put_count)

    def close(self) -> None:
        while self._arenas:
            self._arenas.pop().close()

    def _grow(self, nbytes: int) -> _Arena:
        for old in [a for a in self._arenas if a.idle()]:
            old.close()
            self._arenas.remove(old)
        size = max([_FIRST, *(2 * a.size for a in self._arenas), _HEAD + nbytes + nbytes // 4])
        self._generation += 1
        arena = _Arena(self._generation, -(-size // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY)
        self._arenas.append(arena)
        return arena


class ArenaReader:
    """Copies out what the other side put, in the order of its messages."""

    def __init__(self) -> None:
        self._map: mmap.mmap | None = None
        self._generation = 0
        self._taken = 0

    def take(self, place: Place, nbytes: int) -> bytearray:
        """A copy of the bytes, counted as taken."""
        memory = self._map
        if memory is None or place.generation != self._generation:
            memory = self._open(place)
        with memoryview(memory) as view:
            data = bytearray(view[place.offset : place.offset + nbytes])
        self._taken += 1
        _COUNT.pack_into(memory, 0, self._taken)
        return data

    def close(self) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None

    def _open(self, place: Place) -> mmap.mmap:
        self.close()
        fd = os.open(place.path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
        try:
            self._map = mmap.mmap(fd, place.size)
        finally:
            os.close(fd)
        if not place.path.startswith("/proc/"):
            with contextlib.suppress(OSError):  # Windows does not unlink what is open; the writer does at its end.
                os.unlink(place.path)
        self._generation, self._taken = place.generation, 0
        return self._map
