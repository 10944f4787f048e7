"""Benchmark, the clock: what is claimed agrees with the suite's clock, with suspensions, and with the amount of
work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from edgecore_conformance import timing
from edgecore_conformance.check import Cell, check
from edgecore_conformance.checks.benchmark_base import TextBenchmark
from edgecore_conformance.known import Known
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.timing import Stand

CLAIMED = (0.6, 1.15)
"""Claimed seconds over what the suite's clock saw them take. Truthful loops stand between 0.9 and 1.0."""
SHOWN = 0.5
"""Least share of the suspensions that must be in the samples, where only counted work was suspended."""
LONG = 0.03
"""CPU seconds that a repetition must use, beside the ten milliseconds that a suspension may come late."""
HIDDEN = 0.25
"""Largest share of the suspensions that may be in the samples, where only warm-ups were suspended."""


@check
class Clock(TextBenchmark):
    """benchmark.clock: what is claimed agrees with the suite's own clock.

    Two calls differ in repetitions alone: what the longer one took longer is what these repetitions took, and the
    samples must say so, up to stated factors. No call may claim more time than passed. A disagreement usually means
    another unit, work that is left out of the timing (the synchronization, the sampling), or figures that were not
    measured here. Three attempts must disagree before the check fails.
    """

    timed = True

    def watched(self, stand: Stand) -> dict[str, Any]:
        workload = stand.sized(self.workload(stand.bench.known, 64, 24, warmup=0), 0.08)
        pairs: list[list[dict[str, Any]]] = []
        while len(pairs) < timing.ATTEMPTS and not (pairs and agrees(pairs[-1])):
            pairs.append([stand.visit(replace(workload, repetitions=n)) for n in (1, 5)])
        return {"pairs": pairs}

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        for visit in (visit for pair in seen.facts["pairs"] for visit in pair):
            self.as_published(visit, known, verdict)
        judge_clock(seen.facts["pairs"], verdict)


def judge_clock(pairs: Sequence[Sequence[Mapping[str, Any]]], verdict: Judgement, text: bool = True) -> None:
    """Pairs of visits that differ in repetitions alone."""
    for visit in (visit for pair in pairs for visit in pair):
        verdict.problems += timing.misshapen(visit, text)
        verdict.figure(
            "seconds claimed", timing.claimed(visit) + timing.loading(visit), 1.02 * visit["outside"] + 0.02, "<=", "s",
            "what passed by the suite's clock, and 2 %",
        )  # fmt: skip
    share = min((share_claimed(pair) for pair in pairs), key=lambda s: abs(s - 1))
    how = f"claimed over seen seconds of 4 repetitions, the best of {len(pairs)} attempts"
    verdict.figure("claimed share", share, CLAIMED[0], ">=", "", how)
    verdict.figure("claimed share at most", share, CLAIMED[1], "<=", "", how)


def share_claimed(pair: Sequence[Mapping[str, Any]]) -> float:
    """Claimed seconds over seen ones, of the repetitions by which two calls differ."""
    few, many = pair
    seen = many["outside"] - few["outside"] - (timing.loading(many) - timing.loading(few))
    return float((timing.claimed(many) - timing.claimed(few)) / max(seen, 1e-6))


def agrees(pair: Sequence[Mapping[str, Any]]) -> bool:
    return CLAIMED[0] <= share_claimed(pair) <= CLAIMED[1]


class _Suspended(TextBenchmark):
    """Two checks whose worker is suspended at places counted in CPU seconds."""

    timed = True
    warmup: ClassVar[int]
    places: ClassVar[tuple[float, ...]]
    """In repetitions since the work began."""

    def watched(self, stand: Stand) -> dict[str, Any]:
        # A short prompt: most of the time, and so most suspensions, fall into steps.
        workload = self.workload(stand.bench.known, 8, 48, warmup=0)
        facts: dict[str, Any] = {"calibration": stand.calibrate(workload), "visits": []}
        if facts["calibration"]["repetition"] < LONG:
            workload = stand.sized(workload, 2 * LONG)
            facts["calibration"] = stand.calibrate(workload)
        each, opening = facts["calibration"]["repetition"], facts["calibration"]["opening"]
        at = [opening + place * each for place in self.places] if each > 0.002 else []
        suspended = replace(workload, repetitions=4, warmup=self.warmup)
        while True:
            facts["visits"].append({**stand.visit(suspended, at), "usual": facts["calibration"]["more"]})
            if self.settled(facts, facts["visits"][-1]) or len(facts["visits"]) == timing.ATTEMPTS:
                return facts
            # Whoever spoilt what the attempt is compared with would spoil them all.
            facts["calibration"] = {**facts["calibration"], "more": stand.visit(replace(workload, repetitions=5))}

    def settled(self, facts: Mapping[str, Any], visit: Mapping[str, Any]) -> bool:
        """Whether another attempt would change nothing."""
        raise NotImplementedError


def excess(facts: Mapping[str, Any], visit: Mapping[str, Any], *, waits: bool = True) -> float:
    """Share of the suspensions that the samples show: what they claim more than the same work did undisturbed. Without
    `waits`, less what the worker waited for a processor, evenly spread over its repetitions: other work on the machine
    comes and goes between two calls, and is no suspension."""
    more, asked = visit["usual"], visit["asked"]
    usual, seen = timing.claimed(more), timing.claimed(visit)
    if not waits:
        usual -= _waited(facts, more)
        seen -= _waited(facts, visit) * asked["repetitions"] / (asked["repetitions"] + asked["warmup"])
    usual *= asked["repetitions"] / more["asked"]["repetitions"]
    return float((seen - usual) / max(sum(visit["suspended"]), 1e-6))


def _waited(facts: Mapping[str, Any], visit: Mapping[str, Any]) -> float:
    """Seconds that the worker waited for a processor while it worked: in opening, threads that compile wait for each
    other's."""
    return max(0.0, (visit["waited"] or 0.0) - (facts["calibration"]["one"]["waited"] or 0.0))


@check
class Suspension(_Suspended):
    """benchmark.suspension: when the suite stops the worker in the middle of counted work, the samples show it.

    The worker is suspended three times for a moment while it measures. Its wall clock goes on, so the samples must hold
    most of that time, and the longest must be about as long as a suspension. Samples that do not show it come from
    a table, from a clock of CPU time, from averages or from outliers that were dropped. Three attempts must fail.
    """

    warmup = 0
    places = (1.2, 1.9, 2.6)

    def settled(self, facts: Mapping[str, Any], visit: Mapping[str, Any]) -> bool:
        return bool(visit["suspended"]) and excess(facts, visit) >= SHOWN

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        visits = [v for v in seen.facts["visits"] if v["suspended"]]
        for visit in visits:
            self.as_published(visit, known, verdict)
            verdict.problems += timing.misshapen(visit)
        if not visits:
            verdict.expect(
                known.device != "cpu", "four repetitions on the CPU used too little CPU time to be suspended in"
            )
            return
        how = f"the best of {len(visits)} attempts"
        share = max(excess(seen.facts, v) for v in visits)
        longest = max(max(timing.durations(v), default=0.0) / max(v["suspended"]) for v in visits)
        verdict.figure("share of the suspensions in the samples", share, SHOWN, ">=", "", how)
        verdict.figure("longest sample over longest suspension", longest, 0.8, ">=", "", how)


@check
class WarmUp(_Suspended):
    """benchmark.warmup: warm-ups are run, and are not in the samples.

    Four warm-ups and four counted repetitions are asked for, and the worker is suspended while it warms up: none of
    that time may be in the samples; what the worker waited for a processor is left out. The CPU time of the whole call
    must be that of more repetitions than are counted.

    A failure means that the first, slow repetitions are counted, alone or in an average, or that warm-ups are skipped.
    Three attempts must fail.
    """

    warmup = 4
    places = (0.5, 1.1, 1.7)

    def settled(self, facts: Mapping[str, Any], visit: Mapping[str, Any]) -> bool:
        return excess(facts, visit, waits=False) <= HIDDEN and self.ran(facts, visit) >= 5.5

    def ran(self, facts: Mapping[str, Any], visit: Mapping[str, Any]) -> float:
        """How many repetitions the CPU time of a call stands for."""
        calibration = facts["calibration"]
        return float(((visit["cpu"] or 0) - calibration["opening"]) / max(calibration["repetition"], 1e-6))

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        visits = seen.facts["visits"]
        for visit in visits:
            self.as_published(visit, known, verdict)
            verdict.problems += timing.misshapen(visit)
        how = f"the best of {len(visits)} attempts"
        if known.device == "cpu":
            ran = max(self.ran(seen.facts, v) for v in visits)
            verdict.figure("repetitions by CPU time", ran, 5.5, ">=", "", f"4 warm-ups and 4 counted; {how}")
        if suspended := [v for v in visits if v["suspended"]]:
            share = min(excess(seen.facts, v, waits=False) for v in suspended)
            verdict.figure("share of the suspended warm-up in the samples", share, HIDDEN, "<=", "", how)


@check
class Scaling(TextBenchmark):
    """benchmark.scaling: four times the work takes longer.

    64 tokens are decoded in the place of 16, and a prompt of 256 tokens in the place of 64; the fastest of several
    interleaved repetitions are compared. Attention grows with the context, caches and batches save, so the bounds are
    wide; a table, or a loop that ignores what it was asked for, stands at 1. Prefill is held to it on a CPU only:
    an accelerator may well take 256 tokens as fast as 64.
    """

    timed = True

    def watched(self, stand: Stand) -> dict[str, Any]:
        known = stand.bench.known
        counts: dict[str, Any] = {"repetitions": 2, "warmup": 0}
        calls = {
            "base": self.workload(known, 64, 16, **counts),
            "decode": self.workload(known, 64, 64, **counts),
            "prompt": self.workload(known, 256, 16, **counts),
        }
        return {"visits": [{name: stand.visit(w) for name, w in calls.items()} for _ in range(2)]}

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        rounds = seen.facts["visits"]
        for visit in (visit for each in rounds for visit in each.values()):
            self.as_published(visit, known, verdict)
            verdict.problems += timing.misshapen(visit)

        def least(name: str, what: str) -> float:
            reps = [r for each in rounds for r in each[name]["samples"]["repetitions"]]
            values = [r["prefill"] if what == "prefill" else sum(r["steps"]) for r in reps]
            return float(min(values))

        if verdict.problems:
            return
        decode = least("decode", "steps") / max(least("base", "steps"), 1e-9)
        prefill = least("prompt", "prefill") / max(least("base", "prefill"), 1e-9)
        verdict.figure("64 over 16 tokens decoded", decode, 2.0, ">=", "", "4 where every step costs the same")
        verdict.figure("64 over 16 tokens decoded at most", decode, 16.0, "<=", "", "4 x 4")
        bound = 1.5 if known.device == "cpu" else None
        verdict.figure("prompt of 256 over 64 tokens", prefill, bound, ">=", "", "4 where every token costs the same")
        verdict.figure(
            "prompt of 256 over 64 tokens at most", prefill, 32.0, "<=", "", "quadratic attention and as much"
        )
