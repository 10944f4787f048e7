"""Measures arms against one another so that the difference is theirs and not the machine's.

    A  B  A'      one round: every arm is visited once, each in a worker process of its own that lives for the whole run
    A' B  A       the next round backwards (ABBA), so that drift falls on all alike
    ...           one ratio a round; their median, with a bootstrap interval

A' is A again in another process: its ratio to A is the noise floor. Before the first round each arm is visited to warm
up and to hold its clock against the caller's. A visit is one call of benchmark: load, warm-up, one repetition.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

from edgecore.contract.artifacts import Artifact
from edgecore.contract.errors import BadRequest
from edgecore.contract.measurement import Samples, Workload
from edgecore.contract.options import Value, resolve
from edgecore.contract.progress import Progress, no_progress
from edgecore.measure.bandwidth import memory_bandwidth
from edgecore.measure.clock import Visit, all_disagree, implausible
from edgecore.measure.memory import MemoryWatch
from edgecore.measure.results import ArmResult, Comparison, Ratio
from edgecore.measure.statistics import Interval, abba, median_interval, percentiles
from edgecore.registry import Entry

__all__ = ["Arm", "ArmResult", "Comparison", "Ratio", "measure"]

CONDITIONS = ("threads", "context", "device", "placement", "compute", "kv_cache")
"""What must agree between arms, as far as both state it."""
EXTRA = 3
"""Repetitions by which the two calls of a clock check differ."""
ATTEMPTS = 3
"""Clock checks that must all disagree before a result is void."""
Connect = Callable[..., AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class Arm:
    """What is measured: one artifact in one backend on one device."""

    backend: Entry
    artifact: Artifact
    device: str
    options: Mapping[str, Value] = field(default_factory=dict)
    """Those of `run`; what is left out has its declared default."""
    label: str = ""
    """Unique among the arms; empty means the artifact's precision."""

    @property
    def name(self) -> str:
        return self.label or self.artifact.precision


def measure(
    arms: Sequence[Arm],
    workload: Workload,
    *,
    pairs: int = 10,
    noise_floor: bool = True,
    varying: Collection[str] = (),
    deadline: float | None = None,
    on_progress: Progress = no_progress,
    connect: Connect | None = None,
) -> Comparison:
    """Measure arms side by side; the first is what the others are compared with.

    workload:    what every visit runs; its `repetitions` is not used: one a visit, `pairs` visits an arm.
    pairs:       rounds. Fewer than ten give intervals that say little.
    noise_floor: whether the first arm is measured against itself as well.
    varying:     conditions that may differ because they are what is compared; `compute` is one where precisions differ.
    deadline:    seconds a visit may take.
    connect:     `edgecore.workers.connect`, unless told otherwise.
    Raises `BadRequest` for no arms or equal labels, and what the backends raise.
    """
    labels = [arm.name for arm in arms]
    if not arms or len(set(labels)) != len(labels) or pairs < 1:
        raise BadRequest(
            f"arms {labels}, {pairs} pairs", supported="at least one of each, every arm with its own label"
        )
    start, busy = perf_counter(), _load_average()
    rounds = abba(range(len(arms) + noise_floor), pairs)
    with ExitStack() as stack:
        runs = [_Run(arm, workload, deadline, stack, connect or _connect()) for arm in (*arms, *arms[:noise_floor])]
        total = sum(map(len, rounds)) + 3 * len(runs)
        progress = _Overall(on_progress, total)
        for run in runs:
            run.prepare(progress)
        for order in rounds:
            for number in order:
                runs[number].visit(progress)
        progress.finish()
    again = runs.pop() if noise_floor else None
    bandwidth = _bandwidth(runs, workload, on_progress)
    results = tuple(run.result(bandwidth) for run in runs)
    reasons, notes = _comparable(runs, results, varying)
    return Comparison(
        workload=replace(workload, repetitions=1),
        pairs=pairs,
        arms=results,
        ratios=() if reasons else tuple(r for run in runs[1:] for r in _ratios(run, runs[0], run.arm.name)),
        noise=tuple(_ratios(again, runs[0], runs[0].arm.name)) if again is not None else (),
        not_comparable=tuple(reasons) if len(arms) > 1 else (),
        bandwidth=bandwidth,
        notes=tuple(notes),
        seconds=round(perf_counter() - start, 2),
        load_average=(*busy, *_load_average()),
    )


class _Run:
    """One arm in its process."""

    def __init__(
        self, arm: Arm, workload: Workload, deadline: float | None, stack: ExitStack, connect: Connect
    ) -> None:
        self.arm = arm
        self._workload, self._deadline = replace(workload, repetitions=1), deadline
        self._backend = stack.enter_context(connect(arm.backend))
        self._watch = stack.enter_context(MemoryWatch(self._backend.pid, period=0.05))
        self._first_load = float("nan")
        self._options = _complete(arm)
        self.visits: list[Visit] = []
        self.void = ""

    def prepare(self, progress: _Overall) -> None:
        """Warm up, then hold the worker's clock against ours."""
        self._first_load = self._call(self._workload, progress).samples.load
        more = replace(self._workload, repetitions=1 + EXTRA)
        pairs: list[tuple[Visit, Visit]] = []
        for _ in range(ATTEMPTS):
            pairs.append((self._call(self._workload, progress), self._call(more, progress)))
            self.void = self.void or implausible(pairs[-1][1])
            if not all_disagree(pairs):
                return
        self.void = self.void or all_disagree(pairs)

    def visit(self, progress: _Overall) -> None:
        visit = self._call(self._workload, progress)
        self.void = self.void or implausible(visit)
        self.visits.append(visit)

    def _call(self, workload: Workload, progress: _Overall) -> Visit:
        arm = self.arm
        start = perf_counter()
        samples: Samples = self._backend.benchmark(
            artifact=arm.artifact,
            device=arm.device,
            workload=workload,
            options=self._options,
            deadline=self._deadline,
            on_progress=progress.visit(),
        )
        return Visit(workload, samples, perf_counter() - start)

    def rates(self, what: str) -> list[float]:
        """Tokens a second of each visit; empty where the workload has none of them, or a duration is zero."""
        if what == "prefill":
            pairs = [(len(self._workload.prompt), r.prefill) for v in self.visits for r in v.samples.repetitions]
        else:
            pairs = [(len(r.steps), sum(r.steps)) for v in self.visits for r in v.samples.repetitions]
        return [n / seconds for n, seconds in pairs if n and seconds > 0]

    @property
    def emulated(self) -> bool:
        manifest = self.arm.backend.manifest
        device = manifest.device(self.arm.device) if manifest is not None else None
        return device is not None and device.emulated

    @property
    def conditions(self) -> Mapping[str, str]:
        return self.visits[-1].samples.conditions

    @property
    def greedy(self) -> bool:
        return self._workload.mode == "greedy"

    @property
    def last(self) -> Samples:
        return self.visits[-1].samples

    def result(self, bandwidth: float | None) -> ArmResult:
        artifact = self.arm.artifact
        repetitions = [r for v in self.visits for r in v.samples.repetitions]
        prefill, decode = (None if self.emulated else _interval(self.rates(w)) for w in ("prefill", "decode"))
        steps = [s for r in repetitions for s in r.steps]
        p50, p95, p99 = percentiles(steps)
        streamed = streamed_bytes(artifact)
        known = bandwidth and decode is not None and self.arm.device == "cpu" and artifact.task == "text"
        return ArmResult(
            label=self.arm.name,
            backend=self.arm.backend.name,
            device=self.arm.device,
            precision=artifact.precision,
            artifact=artifact.id or str(artifact.path),
            emulated=self.emulated,
            native_loop=self.last.native_loop,
            load=median_interval([v.samples.load for v in self.visits]),
            first_load=self._first_load,
            ttft=_interval([r.prefill for r in repetitions if r.prefill > 0]),
            prefill=prefill,
            decode=decode,
            inter_token=(p50, p95, p99) if steps else None,
            memory=self._watch.peak,
            streamed_bytes=streamed,
            bandwidth_fraction=decode.median * streamed / bandwidth if known and decode and bandwidth else None,
            conditions=dict(self.conditions),
            counters=dict(self.last.counters),
            samples=tuple(v.samples for v in self.visits),
            void=self.void,
        )


def streamed_bytes(artifact: Artifact) -> int:
    """Size of the files with weights. A model whose embedding is not its output head reads somewhat less a token."""
    if artifact.native:
        path = artifact.model
        return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    return sum(file.size for file in artifact.files if file.role in ("model", "weights"))


def _comparable(
    runs: Sequence[_Run], results: Sequence[ArmResult], varying: Collection[str]
) -> tuple[list[str], list[str]]:
    """(why the arms must not be compared, what a reader should know)."""
    reasons = [f"{r.label}: void, {r.void}" for r in results if r.void]
    reasons += [f"{r.label}: its device is emulated, its times are not speed" for r in results if r.emulated]
    notes: list[str] = []
    if len({r.precision for r in results}) > 1:
        varying = {*varying, "compute"}
        notes.append("precisions differ: they are what is compared")
    first = runs[0]
    for run in runs[1:]:
        pair = f"{first.arm.name} and {run.arm.name}"
        for name in CONDITIONS:
            a, b = first.conditions.get(name), run.conditions.get(name)
            if a is None or b is None:
                if a != b:
                    notes.append(f"{pair}: only one states its {name}")
            elif a != b and name not in varying:
                reasons.append(f"{pair}: {name} differs ({a}, {b})")
        a_tokens, b_tokens = first.last.tokens, run.last.tokens
        if a_tokens and b_tokens and a_tokens != b_tokens:
            if first.greedy:
                notes.append(f"{pair}: their greedy answers differ; each step costs the same whatever the token")
            else:
                reasons.append(f"{pair}: they decoded different tokens")
    return reasons, notes


def _ratios(run: _Run, first: _Run, label: str) -> Iterator[Ratio]:
    for what in ("prefill", "decode"):
        ours, theirs = run.rates(what), first.rates(what)
        if ours and len(ours) == len(theirs):
            over = median_interval([a / b for a, b in zip(ours, theirs, strict=True)])
            yield Ratio(label, first.arm.name, what, over)


def _complete(arm: Arm) -> dict[str, Value]:
    manifest = arm.backend.manifest
    if manifest is None:
        return dict(arm.options)
    return resolve(manifest.options_of("run"), arm.options, "run", arm.backend.name, arm.artifact.task)


def _interval(values: Sequence[float]) -> Interval | None:
    return median_interval(values) if values else None


def _bandwidth(runs: Sequence[_Run], workload: Workload, progress: Progress) -> float | None:
    if not any(run.arm.device == "cpu" and run.arm.artifact.task == "text" for run in runs):
        return None
    return memory_bandwidth(workload.threads, progress)


def _load_average() -> tuple[float, ...]:
    return (round(os.getloadavg()[0], 2),) if hasattr(os, "getloadavg") else ()


def _connect() -> Connect:
    from edgecore.workers import connect

    return connect


class _Overall:
    """One progress over all visits, a thousand units each."""

    def __init__(self, progress: Progress, visits: int) -> None:
        self._progress, self._total, self._done = progress, visits, 0

    def visit(self) -> Progress:
        """The progress of one more visit."""
        before, self._done = self._done, min(self._done + 1, self._total - 1)

        def report(done: int, total: int, stage: str = "") -> None:
            within = 1000 * before + 1000 * done // max(1, total)
            self._progress(min(within, 1000 * self._total), 1000 * self._total, "measuring")

        report(0, 1)
        return report

    def finish(self) -> None:
        self._progress(1000 * self._total, 1000 * self._total, "measuring")
