"""The core's own measuring loop, run inside the worker over any session, so that a backend without a native loop is
measured by the same method as one that has it.

Nothing but the session's own work lies between two readings of the clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecore.contract.errors import BadRequest
from edgecore.contract.generation import check_room
from edgecore.contract.measurement import Repetition, Samples, Workload
from edgecore.contract.placement import Placement
from edgecore.contract.progress import Progress, no_progress
from edgecore.contract.sessions import TensorSession, TensorSpec, TextContext, TextSession

REPORT_EVERY = 0.25
"""Seconds between progress reports: each is a message to the caller, and must not become part of what is measured."""


def run_workload(
    session: TextSession | TensorSession, workload: Workload, load_seconds: float, progress: Progress = no_progress
) -> Samples:
    """Measure one workload over an open session: `warmup` repetitions that do not count, then `repetitions` that do.

    A text session prefills `prompt` and decodes `decode` tokens after it; in mode `bare` these are the prompt's tokens
    again, in mode `greedy` the argmax of the step before, the choosing timed with the step. End-of-text tokens do not
    end it. A tensor session is called `decode` times (at least once) on `make_feeds`; a step is a call, prefill is 0.

    load_seconds: what opening the session took, measured by whoever opened it.
    Raises `BadRequest` for a workload that asks for nothing, `DoesNotFit` where prompt and decode exceed the context.
    """
    if workload.repetitions < 1 or workload.warmup < 0 or workload.decode < 0:
        raise BadRequest(
            f"a workload of {workload.repetitions} repetitions, {workload.warmup} warm-ups, {workload.decode} tokens",
            supported="at least 1 repetition, 0 warm-ups, 0 tokens",
        )
    if workload.mode not in ("bare", "greedy"):
        raise BadRequest(f"workload mode {workload.mode!r}", supported="bare, greedy")
    text = isinstance(session, TextSession)
    if isinstance(session, TextSession):
        check_room(len(workload.prompt), workload.decode, session.context_length)
    report = _Report(progress, (workload.warmup + workload.repetitions) * max(1, workload.decode + text))
    counted: list[Repetition] = []
    tokens: tuple[int, ...] = ()
    for number in range(workload.warmup + workload.repetitions):
        if isinstance(session, TextSession):
            repetition, tokens = _text(session.context(), workload, report)
        else:
            repetition = _tensor(session, workload, report)
        if number >= workload.warmup:
            counted.append(repetition)
    report.finish()
    conditions: dict[str, str] = dict(session.conditions) if isinstance(session, TextSession) else {}
    conditions |= _placement(session.placement)
    return Samples(tuple(counted), load_seconds, native_loop=False, tokens=tokens, conditions=conditions)


def _text(context: TextContext, workload: Workload, report: _Report) -> tuple[Repetition, tuple[int, ...]]:
    """One repetition and the tokens that it decoded."""
    greedy = workload.mode == "greedy"
    given = workload.prompt
    tokens: list[int] = []
    steps: list[float] = []
    context.reset()
    start = perf_counter()
    logits = context.prefill(given)
    prefill = perf_counter() - start
    report.advance()
    for i in range(workload.decode):
        start = perf_counter()
        token = int(np.argmax(logits)) if greedy else given[i % len(given)]
        logits = context.step(token)
        steps.append(perf_counter() - start)
        tokens.append(token)
        report.advance()
    return Repetition(prefill, tuple(steps)), tuple(tokens)


def _tensor(session: TensorSession, workload: Workload, report: _Report) -> Repetition:
    feeds = make_feeds(session.inputs, workload.feeds)
    steps: list[float] = []
    for _ in range(max(1, workload.decode)):
        start = perf_counter()
        session(feeds)
        steps.append(perf_counter() - start)
        report.advance()
    return Repetition(0.0, tuple(steps))


def make_feeds(inputs: tuple[TensorSpec, ...], path: str = "") -> dict[str, NDArray[Any]]:
    """Feeds for timing: those in the `.npz` at `path`, else made up from the specs, the same ones every time.

    Floats are drawn from a standard normal with a fixed seed; everything else is zero, because an integer may be an
    index and zero is one that exists. A symbolic dimension is 1. Raises `BadRequest` for a file that is not an archive.
    """
    if path:
        try:
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except (OSError, ValueError, AttributeError) as error:
            raise BadRequest(f"{path}: not an archive of arrays: {error}", supported=".npz from numpy.savez") from None
    random = np.random.default_rng(0)
    feeds: dict[str, NDArray[Any]] = {}
    for spec in inputs:
        shape = tuple(size if isinstance(size, int) else 1 for size in spec.shape)
        dtype = _dtype(spec.dtype)
        floating = dtype.kind == "f" or "float" in dtype.name
        feeds[spec.name] = (random.standard_normal(shape) if floating else np.zeros(shape)).astype(dtype)
    return feeds


def _dtype(name: str) -> np.dtype[Any]:
    try:
        found: np.dtype[Any] = np.dtype(name)
    except TypeError:
        import ml_dtypes

        found = np.dtype(getattr(ml_dtypes, name))
    return found


def _placement(placement: Placement) -> Mapping[str, str]:
    """The compute units that had a share of the work, as a condition; nothing where nobody knows."""
    known = placement.time or placement.operators
    units = sorted(unit for unit, share in known.items() if share > 0)
    return {"placement": "+".join(units)} if units else {}


class _Report:
    """Reports progress between steps, rarely enough to leave no trace in the figures."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0
        self._last = perf_counter()

    def advance(self) -> None:
        self._done += 1
        now = perf_counter()
        if now - self._last >= REPORT_EVERY:
            self._last = now
            self._progress(self._done, self._total, "measuring")

    def finish(self) -> None:
        self._progress(self._total, self._total, "measuring")
