"""The native loop: prepared batches, `llama_decode`, `llama_synchronize`, as llama-bench does it.

In mode `bare` logits are computed and nobody reads them; in mode `greedy` the next token is the argmax of the step
before, read where libllama left it.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter

import numpy as np

from edgecore.contract import Artifact, BadRequest, Progress, Repetition, Samples, Value, Workload
from edgecore.contract.bounds import chosen_context
from edgecore.contract.generation import check_room
from edgecore_llamacpp.model import Context, Model
from edgecore_llamacpp.session import conditions
from edgecore_llamacpp.threads import chosen_threads

REPORT_EVERY = 0.25
"""Seconds between reports, so that they leave no trace in the figures."""


def benchmark(
    artifact: Artifact, device: str, workload: Workload, options: Mapping[str, Value], progress: Progress
) -> Samples:
    """Raises `BadRequest` for a workload that asks for nothing, `DoesNotFit` where it exceeds the context."""
    if workload.repetitions < 1 or workload.mode not in ("bare", "greedy"):
        raise BadRequest(
            f"a workload of {workload.repetitions} repetitions in mode {workload.mode!r}",
            supported="at least 1, in mode bare or greedy",
        )
    start = perf_counter()
    threads = chosen_threads(workload.threads)
    model = Model(artifact.model, device)
    try:
        length = chosen_context(model.trained_context, workload.context_length)
        check_room(len(workload.prompt), workload.decode, length)
        kv_cache = str(options["kv_cache"])
        context = Context(model, length, threads, kv_cache=kv_cache, flash_attention=str(options["flash_attention"]))
        load = perf_counter() - start
        try:
            loop = _Loop(context, workload, progress)
            counted = [loop.run() for _ in range(workload.warmup + workload.repetitions)][workload.warmup :]
        finally:
            context.close()
        return Samples(
            repetitions=tuple(counted),
            load=load,
            native_loop=True,
            tokens=tuple(loop.tokens),
            conditions=conditions(model, threads, length, kv_cache),
        )
    finally:
        model.close()


class _Loop:
    """One workload over one context."""

    def __init__(self, context: Context, workload: Workload, progress: Progress) -> None:
        self._context = context
        self._greedy = workload.mode == "greedy"
        self._prompt = context.model.checked(workload.prompt)
        self._decode = workload.decode
        self._progress = progress
        self._total = (workload.warmup + workload.repetitions) * (workload.decode + 1)
        self._done = 0
        self._reported = perf_counter()
        self.tokens: list[int] = []

    def run(self) -> Repetition:
        context, prompt, greedy = self._context, self._prompt, self._greedy
        given = [prompt[i : i + 1] for i in range(len(prompt))]
        self.tokens = []
        steps = []
        context.clear()
        start = perf_counter()
        context.decode(prompt)
        context.synchronize()
        prefill = perf_counter() - start
        self._report()
        for i in range(self._decode):
            start = perf_counter()
            token = np.array([context.last_logits().argmax()], np.int32) if greedy else given[i % len(given)]
            context.decode(token)
            context.synchronize()
            steps.append(perf_counter() - start)
            self.tokens.append(int(token[0]))
            self._report()
        return Repetition(prefill, tuple(steps))

    def _report(self) -> None:
        self._done += 1
        now = perf_counter()
        if now - self._reported >= REPORT_EVERY or self._done == self._total:
            self._reported = now
            self._progress(self._done, self._total, "measuring")
