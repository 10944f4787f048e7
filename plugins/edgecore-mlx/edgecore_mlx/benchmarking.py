"""The native loop, as mlx_lm's: what comes next is described while MLX computes.

MLX computes in the background, so a GPU is never waiting: it has the next token's work before the last one's answer is
there. On `cpu` that would be two steps at once with one thread, and durations that are none of either, so there a step
is handed over when the one before has ended. In mode `bare` logits are computed and nobody reads them; in mode `greedy`
the next token is their argmax, chosen where they are. A duration is the time between two answers: they add up to what
passed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from time import perf_counter

import mlx.core as mx
import numpy as np

from edgecore.contract import Artifact, BadRequest, Progress, Repetition, Samples, Value, Workload
from edgecore.contract.generation import check_room
from edgecore_mlx import devices, memory, opening
from edgecore_mlx.network import FORGET, failed

AHEAD = ("gpu",)
"""Devices on which a step is handed over before the one before has ended."""
REPORT_EVERY = 0.25
"""Seconds between reports, so that they leave no trace in the figures."""


def benchmark(
    artifact: Artifact, device: str, workload: Workload, options: Mapping[str, Value], progress: Progress
) -> Samples:
    """Raises `BadRequest` for a workload that asks for nothing, `DoesNotFit` where it exceeds the context, and what
    opening a session raises."""
    counts = (workload.repetitions - 1, workload.warmup, workload.decode)
    if min(counts) < 0 or workload.mode not in ("bare", "greedy"):
        raise BadRequest(
            f"a workload of {workload.repetitions} repetitions, {workload.warmup} warm-ups and {workload.decode} "
            f"tokens in mode {workload.mode!r}",
            supported="at least 1 repetition, 0 warm-ups, 0 tokens, in mode bare or greedy",
        )
    start = perf_counter()
    opened = opening.open_model(artifact, device, workload.context_length, workload.threads, options)
    try:
        check_room(len(workload.prompt), workload.decode, opened.length)
        load = perf_counter() - start
        loop = _Loop(opened, workload, device in AHEAD, progress)
        with mx.stream(devices.use(device)):
            counted = [loop.run() for _ in range(workload.warmup + workload.repetitions)][workload.warmup :]
        return Samples(
            repetitions=tuple(counted),
            load=load,
            native_loop=True,
            tokens=tuple(loop.tokens),
            conditions=opened.conditions,
            counters=memory.counters(),
        )
    except (RuntimeError, MemoryError) as error:  # MLX's own; the contract's errors are neither.
        raise failed(error) from None
    finally:
        mx.synchronize()
        opened.network.close()


class _Loop:
    """One workload over one model."""

    def __init__(self, opened: opening.Opened, workload: Workload, ahead: bool, progress: Progress) -> None:
        self._opened = opened
        self._ahead = ahead
        self._model = opened.model
        self._greedy = workload.mode == "greedy"
        self._prompt = mx.array(opened.network.checked(workload.prompt).astype(np.int32))
        self._decode = workload.decode
        self._progress = progress
        self._total = (workload.warmup + workload.repetitions) * (workload.decode + 1)
        self._done = 0
        self._reported = perf_counter()
        self.tokens: list[int] = []

    def run(self) -> Repetition:
        self._cache = self._opened.network.new_cache(len(self._prompt) + self._decode)
        mx.reset_peak_memory()
        self.tokens = []
        steps = []
        start = perf_counter()
        logits = self._prefill()
        prefill = perf_counter() - start
        self._report()
        start = perf_counter()
        for i, (token, answer) in enumerate(self._steps(logits) if self._decode else ()):
            mx.eval(answer)
            self.tokens += np.asarray(token).tolist()
            now = perf_counter()
            steps.append(now - start)
            start = now
            if i % FORGET == FORGET - 1:
                mx.clear_cache()
            if self._report():
                start = perf_counter()
        return Repetition(prefill, tuple(steps))

    def _prefill(self) -> mx.array:
        """The last position's logits, once they are there."""
        chunk = self._opened.network.chunk
        for begin in range(0, len(self._prompt), chunk):
            logits = self._model(self._prompt[begin : begin + chunk], self._cache, 1)
            last = begin + chunk >= len(self._prompt)
            mx.eval([logits, *self._cache.arrays] if last else self._cache.arrays)
            mx.clear_cache()
        return logits

    def _steps(self, logits: mx.array) -> Iterator[tuple[mx.array, mx.array]]:
        """Each step's token and logits, handed to MLX and still to come."""
        coming = self._step(0, logits)
        mx.async_eval(*coming)
        for i in range(1, self._decode + 1):
            step = coming
            if i < self._decode:
                coming = self._step(i, step[1])
                if self._ahead:
                    mx.async_eval(*coming)
            yield step
            if i < self._decode and not self._ahead:
                mx.async_eval(*coming)

    def _step(self, i: int, before: mx.array) -> tuple[mx.array, mx.array]:
        """Described, and nothing of it computed."""
        at = i % len(self._prompt)
        token = mx.argmax(before, axis=-1).astype(mx.int32) if self._greedy else self._prompt[at : at + 1]
        return token, self._model(token, self._cache, 1)

    def _report(self) -> bool:
        self._done += 1
        now = perf_counter()
        if now - self._reported < REPORT_EVERY and self._done < self._total:
            return False
        self._reported = now
        self._progress(self._done, self._total, "measuring")
        return True
