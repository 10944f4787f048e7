"""Whether a worker's claimed times can be true, judged by the caller's own clock.

A plugin's native loop reports its own durations, and nothing in the figures themselves shows a loop that left out work
or counted in another unit. The caller cannot see single steps, but it sees whole calls: they cannot be shorter than
what is claimed for them, and a call with more repetitions must be longer by about what those are claimed to take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgecore.contract.measurement import Samples, Workload

TOO_LONG = 1.02
"""A claim may exceed what passed by two clocks' disagreement, and no more."""
TOO_SHORT = 1.5
"""The caller may see a repetition take this much longer than claimed (resetting, copying, messages between the two)."""
GRAIN = 0.02
"""Seconds that are never worth a dispute."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One call of benchmark, as the caller saw it."""

    asked: Workload
    samples: Samples
    elapsed: float
    """Seconds from sending the call to having its answer, by the caller's clock."""

    @property
    def claimed(self) -> float:
        """Seconds that the worker accounts for: loading and all counted repetitions."""
        return self.samples.load + sum(r.prefill + sum(r.steps) for r in self.samples.repetitions)

    @property
    def repetition(self) -> float:
        """Claimed seconds of a repetition, on average."""
        return sum(r.prefill + sum(r.steps) for r in self.samples.repetitions) / max(1, len(self.samples.repetitions))


def implausible(visit: Visit) -> str:
    """What is wrong with one answer, empty where nothing is: missing or surplus samples, more time than there was."""
    asked, got = visit.asked, visit.samples.repetitions
    if len(got) != asked.repetitions:
        return f"{asked.repetitions} repetitions were asked for, {len(got)} reported"
    for repetition in got:
        if len(repetition.steps) != asked.decode and asked.prompt:
            return f"{asked.decode} decode steps were asked for, {len(repetition.steps)} reported"
        if min((repetition.prefill, *repetition.steps)) < 0 or visit.samples.load < 0:
            return "a negative duration is reported"
    if visit.claimed > TOO_LONG * visit.elapsed + GRAIN:
        return f"{visit.claimed:.3f} s are claimed for a call that took {visit.elapsed:.3f} s"
    return ""


def disagreement(few: Visit, many: Visit) -> str:
    """Two calls that differ in repetitions alone: what the caller saw a repetition take, against what is claimed.

    Starting, loading, warm-up and closing cancel. Empty where both agree.
    """
    extra = many.asked.repetitions - few.asked.repetitions
    seen = (many.elapsed - few.elapsed - (many.samples.load - few.samples.load)) / extra
    claimed = many.repetition
    if seen > TOO_SHORT * claimed + GRAIN:
        return f"a repetition is claimed to take {claimed:.3f} s; by the caller's clock it takes {seen:.3f} s"
    return ""


def all_disagree(pairs: Sequence[tuple[Visit, Visit]]) -> str:
    """The last disagreement if every pair shows one: a busy neighbour spoils one pair, a lie spoils all."""
    found = [disagreement(few, many) for few, many in pairs]
    return found[-1] if found and all(found) else ""
