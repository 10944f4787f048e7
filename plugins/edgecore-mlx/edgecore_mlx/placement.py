"""Where the work ran: the device that MLX's stream is on, held against the CPU time that the work took.

MLX gives an operator to the stream's device and to no other; it has no fallback. But that the stream is on a device is
a setting, and a setting is no evidence. On `cpu` a thread of MLX's own computes, so while an answer is waited for, the
process' other threads are busy all the time; on a GPU they are idle. Memory tells nothing: on Metal it is the CPU's
too, and MLX's counters count the arrays of both. What a plugin says of itself is not seen from outside: the suite
looks there itself.
"""

from __future__ import annotations

from time import perf_counter, process_time, thread_time
from types import TracebackType

import mlx.core as mx

from edgecore.contract import Placement, PlacementSource

BUSY, IDLE = 0.6, 0.4
"""Threads besides the caller's that worked, on average: at least so many, and the CPU computed; at most, and not."""
ENOUGH = 0.02
"""Seconds of computing below which clocks of ten milliseconds tell nothing."""


class Watched:
    """Counts wall and CPU seconds while MLX computes: `with watched: mx.eval(logits)`. Costs two microseconds.

    The work must be waited for inside, and by the thread that entered.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._stream = device
        """Where MLX's stream was."""
        self.wall = 0.0
        self.others = 0.0
        """CPU seconds of the process' other threads."""

    def __enter__(self) -> None:
        self._start = perf_counter()
        self._cpu = process_time() - thread_time()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.others += max(0.0, process_time() - thread_time() - self._cpu)
        self.wall += perf_counter() - self._start
        self._stream = stream_device()

    def placement(self) -> Placement:
        """As far as it is known: without computing, or where CPU time contradicts the stream, nobody knows."""
        return judged(self._device, self._stream, mx.is_available(mx.gpu), self.wall, self.others)


def judged(device: str, stream: str, has_gpu: bool, wall: float, others: float) -> Placement:
    """device: asked for. stream: where MLX's stream is. wall, others: as `Watched` counted them."""
    said = f"MLX's stream is on {stream}; {others:.2g} s of CPU by its threads in {wall:.2g} s of computing"
    if stream != device:
        return Placement(detail=f"{said}; {device} was asked for")
    if stream == "cpu" and not has_gpu:
        return _all(device, f"{said}; this build of MLX has no other device")
    if wall < ENOUGH:
        return Placement(detail=f"{said}: too little to tell")
    busy = others / wall
    if (stream == "cpu" and busy >= BUSY) or (stream == "gpu" and busy <= IDLE):
        return _all(device, said)
    return Placement(detail=f"{said}: that does not tell the two apart")


def stream_device() -> str:
    """`cpu` or `gpu`: where what is computed next goes."""
    return "gpu" if mx.default_device() == mx.gpu else "cpu"


def _all(device: str, said: str) -> Placement:
    return Placement(PlacementSource.RUNTIME_ASSIGNMENT, operators={device: 1.0}, detail=said)
