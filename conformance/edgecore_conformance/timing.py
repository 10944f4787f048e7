"""Calls of benchmark as the suite sees them: what was asked, what was answered, and what the suite's own clocks say.

Three clocks stand beside the plugin's: the wall clock around the call, the CPU time of the worker, and *suspensions*:
the suite stops the worker for a moment, and the samples of whatever was being timed then must show it. A table, a
CPU-time clock, dropped outliers or another unit cannot; and what must not be timed (a warm-up) must not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgecore.contract.artifacts import Artifact
from edgecore.contract.measurement import Samples, Workload
from edgecore.workers import Backend
from edgecore_conformance import watching
from edgecore_conformance.bench import Bench

ATTEMPTS = 3
"""A busy neighbour spoils one attempt, a lie spoils all."""
MOST_CALLS = 2000
"""Of a tensor model in a repetition."""
SUSPENDED = 0.15
"""Seconds of one suspension: far above a step, far below a deadline."""


@dataclass(frozen=True, slots=True)
class Stand:
    """Where benchmark calls go: a worker, an artifact, and the options of `run`."""

    bench: Bench
    backend: Backend
    artifact: Artifact

    def visit(self, workload: Workload, at: Sequence[float] = ()) -> dict[str, Any]:
        """One call as facts; the worker is suspended when it has used so many CPU seconds in it."""
        before = watching.glance(self.backend.pid)
        with watching.suspensions(self.backend.pid, at, SUSPENDED) as lasted:
            samples = self.backend.benchmark(
                artifact=self.artifact,
                device=self.bench.device,
                workload=workload,
                options=self.bench.options("run", self.artifact.task),
                deadline=self.bench.left,
            )
        passed = watching.between(before, watching.glance(self.backend.pid))
        return {
            "asked": asked(workload),
            "samples": answered(samples),
            "outside": passed.wall,
            "cpu": passed.cpu,
            "waited": passed.waited,
            "suspended": list(lasted),
        }

    def calibrate(self, workload: Workload) -> dict[str, Any]:
        """CPU seconds of opening and of a repetition, from two calls that differ in repetitions alone. One before them
        is not counted: in a new worker it loads and compiles what the others find ready."""
        self.visit(replace(workload, repetitions=1, warmup=0))
        one = self.visit(replace(workload, repetitions=1, warmup=0))
        more = self.visit(replace(workload, repetitions=5, warmup=0))
        each = max(0.0, (more["cpu"] or 0.0) - (one["cpu"] or 0.0)) / 4
        return {"one": one, "more": more, "repetition": each, "opening": max(0.0, (one["cpu"] or 0.0) - each)}

    def sized(self, workload: Workload, seconds: float) -> Workload:
        """The workload with as many tokens to decode as make a repetition take about so many seconds: of CPU time,
        which does not depend on who else computes, and on an accelerator of the suite's clock."""
        few, many = (self.visit(replace(workload, repetitions=n, warmup=0)) for n in (1, 3))
        kind = "cpu" if self.bench.device == "cpu" and many["cpu"] is not None else "outside"
        each = max(1e-4, (many[kind] - few[kind]) / 2)
        room = (workload.context_length or 512) - len(workload.prompt) if workload.prompt else MOST_CALLS
        return replace(workload, decode=max(workload.decode, min(room, math.ceil(workload.decode * seconds / each))))


def asked(workload: Workload) -> dict[str, Any]:
    return {
        "prompt": list(workload.prompt), "decode": workload.decode, "repetitions": workload.repetitions,
        "warmup": workload.warmup, "mode": workload.mode, "threads": workload.threads,
        "context_length": workload.context_length,
    }  # fmt: skip


def answered(samples: Samples) -> dict[str, Any]:
    """As JSON has it: what is no finite number becomes its text."""
    return {
        "repetitions": [
            {"prefill": number(r.prefill), "steps": [number(s) for s in r.steps]} for r in samples.repetitions
        ],
        "load": number(samples.load),
        "native_loop": bool(samples.native_loop),
        "tokens": [t if isinstance(t, int) else repr(t) for t in samples.tokens],
        "conditions": {str(k): str(v) for k, v in samples.conditions.items()},
    }


def number(value: Any) -> float | str:
    try:
        found = float(value)
    except (TypeError, ValueError):
        return repr(value)
    return found if math.isfinite(found) else repr(found)


def durations(visit: Mapping[str, Any]) -> list[float]:
    """Every counted duration that is a number: prefill and steps, repetition after repetition."""
    found: list[float] = []
    for repetition in visit["samples"]["repetitions"]:
        found += [v for v in (repetition["prefill"], *repetition["steps"]) if isinstance(v, float | int)]
    return found


def claimed(visit: Mapping[str, Any]) -> float:
    """Seconds that the counted repetitions are said to have taken."""
    return sum(durations(visit))


def loading(visit: Mapping[str, Any]) -> float:
    load = visit["samples"]["load"]
    return float(load) if isinstance(load, float | int) else 0.0


def rows(visit: Mapping[str, Any], what: str) -> list[float]:
    """`prefill` of every repetition, or all `steps`."""
    taken = visit["samples"]["repetitions"]
    values = [r["prefill"] for r in taken] if what == "prefill" else [s for r in taken for s in r["steps"]]
    return [v for v in values if isinstance(v, float | int)]


def misshapen(visit: Mapping[str, Any], text: bool = True) -> list[str]:
    """What is wrong with the form of one answer: missing or surplus samples, values that are no durations."""
    wanted, samples = visit["asked"], visit["samples"]
    problems: list[str] = []
    got = samples["repetitions"]
    if len(got) != wanted["repetitions"]:
        problems.append(
            f"{wanted['repetitions']} repetitions were asked for after {wanted['warmup']} warm-ups, {len(got)} reported"
        )
    steps = wanted["decode"] if text else max(1, wanted["decode"])
    for index, repetition in enumerate(got):
        if len(repetition["steps"]) != steps:
            problems.append(f"repetition {index}: {steps} steps were asked for, {len(repetition['steps'])} reported")
        values = [*([repetition["prefill"]] if text else []), *repetition["steps"]]
        if bad := [v for v in values if not isinstance(v, float | int) or v <= 0]:
            problems.append(f"repetition {index}: {bad[0]} is no duration")
    if not isinstance(samples["load"], float | int) or samples["load"] < 0:
        problems.append(f"load: {samples['load']} is no duration")
    return problems
