"""The device's memory: whether a model fits before it is read, what may stay wired, what MLX keeps for later.

On Metal memory is the CPU's too. macOS pages out what a GPU has not touched for a second, and the next token waits for
it; so the weights are wired while a session is open, as mlx_lm does it, up to what macOS recommends and no further.
MLX keeps buffers that it frees: on a GPU without a bound that matters, on `cpu` 32 MB of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import mlx.core as mx

from edgecore.contract import DoesNotFit, Value, usable_memory

_wiring: list[int] = []
"""The limit before the first of those who wire now."""
_users = 0


def check_fits(nbytes: int, device: str, what: str = "the model") -> None:
    """Raises `DoesNotFit` where so many bytes are more than what the device has left. Nothing is allocated."""
    free = room(device)
    if nbytes > free:
        words = "of memory are free" if device == "cpu" else "are left of what the GPU may hold"
        raise DoesNotFit(
            f"{what}: {nbytes / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB {words}",
            supported=f"up to {free / 2**30:.1f} GiB",
            hint="a precision with fewer bits, or a smaller -c",
        )


def room(device: str) -> int:
    """Bytes that can still be taken without swapping."""
    _, free = usable_memory()
    if device == "cpu":
        return free
    info = mx.device_info(mx.gpu)
    if "max_recommended_working_set_size" in info:
        return max(0, int(info["max_recommended_working_set_size"]) - int(mx.get_active_memory()))
    return int(info["free_memory"]) + int(mx.get_cache_memory()) if "free_memory" in info else free


@contextmanager
def wired() -> Iterator[None]:
    """While it lasts, what MLX holds on Metal stays in memory, as far as macOS recommends; elsewhere nothing happens.

    Several may last at once: the limit that was there before comes back with the last of them.
    """
    global _users
    most = mx.device_info(mx.gpu).get("max_recommended_working_set_size") if mx.metal.is_available() else None
    if most is None:
        yield
        return
    if not _users:
        _wiring[:] = [mx.set_wired_limit(int(most))]
    _users += 1
    try:
        yield
    finally:
        _users -= 1
        if not _users:
            mx.synchronize()
            mx.set_wired_limit(_wiring.pop())


def limit(options: Mapping[str, Value]) -> None:
    """What `run` says of MLX's memory, for the process: `cache_limit`, megabytes of freed buffers that it keeps."""
    if "cache_limit" in options:
        mx.set_cache_limit(int(options["cache_limit"]) * 10**6)


def counters() -> dict[str, float]:
    """MLX's own, in bytes, for the reader of a benchmark: they know arrays, and not what else the process holds."""
    return {"mlx_peak_memory": float(mx.get_peak_memory()), "mlx_active_memory": float(mx.get_active_memory())}
