"""The memory bandwidth of this machine, measured, because it bounds decoding: every token reads all weights once.

What is measured is what decode does: threads that read arrays much larger than the last cache once, front to back, and
write next to nothing. `numpy.dot` of a float32 array with itself does so at the speed of the memory (a load and a
multiply-add for each element, vectorised by the BLAS) and releases the interpreter's lock, so threads are enough.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from edgecore import paths
from edgecore.contract.progress import Progress, no_progress

ARRAY_BYTES = 256 << 20
"""All threads together, or four times the last cache where that is more."""
SECONDS = 1.2
"""How long readings are repeated. The best counts: a neighbour makes a reading smaller, nothing makes it larger."""
HOW = (
    "best of several sequential reads (numpy.dot of float32 with itself) by all threads, from arrays beyond the caches"
)


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Read bandwidth of the memory as the threads of one process see it."""

    bytes_per_second: float
    threads: int
    array_bytes: int
    readings: int
    how: str = HOW


def memory_bandwidth(threads: int | None = None, progress: Progress = no_progress, fresh: bool = False) -> float:
    """Bytes a second that `threads` threads (None: all usable) can read. See `measured_bandwidth`."""
    return measured_bandwidth(threads, progress, fresh).bytes_per_second


def measured_bandwidth(threads: int | None = None, progress: Progress = no_progress, fresh: bool = False) -> Bandwidth:
    """Measured once a boot and number of threads (1.5 s), then read from a small file in the home; `fresh` measures."""
    if threads is None:
        from edgecore.machine import usable_threads

        threads = usable_threads()
    cache = paths.index() / "bandwidth.json"
    key = f"{int(psutil.boot_time()) // 60} {threads}"
    known = _read(cache)
    if not fresh and key in known:
        return known[key]
    found = _measure(threads, progress)
    best = known.get(key)
    if best is not None and best.bytes_per_second > found.bytes_per_second:
        found = best
    _write(cache, {**{k: v for k, v in known.items() if k.split()[0] == key.split()[0]}, key: found})
    return found


def _measure(threads: int, progress: Progress) -> Bandwidth:
    size = min(max(ARRAY_BYTES, 4 * last_cache()), psutil.virtual_memory().available // 4)
    with ThreadPoolExecutor(threads) as pool:
        # Each thread fills what it reads: on machines with several memories the pages then lie near it.
        arrays = list(pool.map(lambda _: np.ones(size // 4 // threads, np.float32), range(threads)))
        best, readings, begin = float("inf"), 0, time.perf_counter()
        while (elapsed := time.perf_counter() - begin) < SECONDS or readings < 3:
            progress(int(1000 * min(elapsed, SECONDS)), int(1000 * SECONDS), "measuring the memory bandwidth")
            start = time.perf_counter()
            list(pool.map(_read_through, arrays))
            best = min(best, time.perf_counter() - start)
            readings += 1
    total = sum(array.nbytes for array in arrays)
    return Bandwidth(total / best, threads, total, readings)


def _read_through(array: NDArray[np.float32]) -> float:
    return float(np.dot(array, array))


def last_cache() -> int:
    """Bytes of the largest cache that Linux lists for the first processor, 32 MB where nobody says."""
    sizes = [_size(file) for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max(sizes, default=32 << 20)


def _size(file: Path) -> int:
    try:
        text = file.read_text(encoding="ascii").strip()
        return int(text.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(text[-1:], 0)
    except (OSError, ValueError):
        return 0


def _read(cache: Path) -> dict[str, Bandwidth]:
    try:
        return {key: Bandwidth(**value) for key, value in json.loads(cache.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(cache: Path, known: dict[str, Bandwidth]) -> None:
    """A cache that cannot be written costs a second next time and nothing else."""
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary = cache.with_suffix(f".{time.monotonic_ns()}")
        temporary.write_text(json.dumps({k: asdict(v) for k, v in known.items()}, indent=1), encoding="utf-8")
        temporary.replace(cache)
    except OSError:
        pass
