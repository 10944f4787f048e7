"""Benchmark: figures that a second clock, a second loop and the answers themselves agree with.

Every bound of the group is a ratio, mostly of CPU time, and wide: it must hold on a busy machine, and a misreport by a
factor of three, a table, a loop that does not run the model or a counted warm-up must not get through.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from edgecore.contract.errors import BadRequest, EdgecoreError
from edgecore.contract.manifest import Manifest
from edgecore.contract.measurement import Workload
from edgecore_conformance import tensor_models, timing
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, Check, check, has_task
from edgecore_conformance.checks import benchmark_clock, benchmark_work
from edgecore_conformance.checks.benchmark_base import TextBenchmark, context_of
from edgecore_conformance.known import Known
from edgecore_conformance.observation import Judgement, Observation, error_of
from edgecore_conformance.timing import Stand

__all__ = ["benchmark_clock", "benchmark_work"]


@check
class Complete(TextBenchmark):
    """benchmark.samples: every duration that was asked for is reported, for the tokens that were asked for.

    Several workloads are run, one of them twice: greedy, bare, prefill alone. Counted are repetitions and steps; each
    must be a positive, finite number. Durations that repeat each other to the last digit, within a call or between
    calls, were not measured. The tokens must be as many as were asked for; in mode `bare` they must be the prompt's,
    again and again. Missing samples usually mean that a loop ended at an end-of-text token, or dropped outliers.
    """

    def watched(self, stand: Stand) -> dict[str, Any]:
        known = stand.bench.known
        greedy = self.workload(known, 32, 16, mode="greedy", repetitions=3)
        calls = {
            "greedy": greedy,
            "again": greedy,
            "bare": self.workload(known, 7, 10, repetitions=2),
            "prefill": self.workload(known, 48, 0, repetitions=2, warmup=0),
            "long": self.workload(known, 16, 64, mode="greedy", repetitions=1, warmup=0),
        }
        return {"visits": {name: stand.visit(workload) for name, workload in calls.items()}}

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        visits = seen.facts["visits"]
        native = known.manifest.can("native_benchmark")
        for name, visit in visits.items():
            self.as_published(visit, known, verdict)
            verdict.problems += [f"{name}: {problem}" for problem in timing.misshapen(visit)]
            asked, samples = visit["asked"], visit["samples"]
            tokens = samples["tokens"]
            verdict.figure(f"{name}: tokens", len(tokens), asked["decode"], "==", origin="as many as were asked for")
            verdict.expect(
                samples["native_loop"] is native,
                f"{name}: native_loop is {samples['native_loop']}, the manifest says native_benchmark = {native}",
            )
            if asked["mode"] == "bare":
                given = [asked["prompt"][i % len(asked["prompt"])] for i in range(asked["decode"])]
                verdict.expect(tokens == given, f"{name}: decoded {tokens[:8]}..., was given {given[:8]}...")
            steps = timing.rows(visit, "steps")
            if len(steps) > 2:
                verdict.figure(
                    f"{name}: different step times", len(set(steps)) / len(steps), 0.5, ">=", "of all",
                    "measured times scatter; equal ones come from a table or an average",
                )  # fmt: skip
        first, second = (set(timing.durations(visits[name])) for name in ("greedy", "again"))
        verdict.figure(
            "times that two calls share", len(first & second) / max(1, len(first)), 0.5, "<=", "of all",
            "two measurements do not agree to the nanosecond",
        )  # fmt: skip


@check
class Conditions(TextBenchmark):
    """benchmark.conditions: a benchmark states under which conditions its figures hold.

    Two measurements may be compared only where device, threads, context, compute precision and precision of the KV
    cache agree, so each must be stated, by the timed loop and by the session alike, and those that were asked for
    must be what was asked. A library that does not tell its number of threads may say `unknown`."""

    names = ("device", "threads", "context", "compute", "kv_cache")

    def watched(self, stand: Stand) -> dict[str, Any]:
        context = context_asked(stand.bench.known)
        workload = self.workload(stand.bench.known, 16, 2, repetitions=1, warmup=0, context_length=context)
        visit = stand.visit(workload)
        with stand.bench.session(stand.artifact, backend=stand.backend, context_length=context, threads=1) as session:
            stated = {str(k): str(v) for k, v in getattr(session, "conditions", {}).items()}
        return {"visit": visit, "session": stated}

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        self.as_published(seen.facts["visit"], known, verdict)
        timed = seen.facts["visit"]["samples"]["conditions"]
        context = str(context_asked(known))
        asked = {"device": {known.device}, "threads": {"1", "unknown"}, "context": {context}}
        for where, stated in (("benchmark", timed), ("session", seen.facts["session"])):
            for name in self.names:
                verdict.expect(bool(stated.get(name)), f"{where}: {name} is not stated")
            for name, allowed in asked.items():
                if stated.get(name) and stated[name] not in allowed:
                    verdict.problems.append(f"{where}: {name} is {stated[name]!r}, asked for was {min(allowed)!r}")
        for name in ("compute", "kv_cache"):
            verdict.expect(
                timed.get(name) == seen.facts["session"].get(name), f"{name} differs between loop and session"
            )


def context_asked(known: Known) -> int:
    """Half of what there is."""
    return context_of(known) // 2


@check
class Refusals(TextBenchmark):
    """benchmark.refusals: a workload that makes no sense is a typed error, and the next one is measured as ever.

    No repetitions, a mode that there is not, no prompt and a token outside the vocabulary are `BadRequest`; a prompt
    that does not fit into the context with what is to be decoded is `DoesNotFit`. A loop that measures what fits
    instead answers another question than was asked.
    """

    def watched(self, stand: Stand) -> dict[str, Any]:
        good = self.workload(stand.bench.known, 16, 4, repetitions=1, warmup=0)
        wrong = {
            "no repetitions": replace(good, repetitions=0),
            "unknown mode": replace(good, mode="fastest"),
            "no prompt": replace(good, prompt=()),
            "token outside the vocabulary": replace(good, prompt=(*good.prompt, 1_000_000)),
            "more than the context": replace(good, context_length=40, decode=36),
        }
        said: dict[str, Any] = {}
        for name, workload in wrong.items():
            try:
                said[name] = {"answered": stand.visit(workload)["samples"]}
            except EdgecoreError as error:
                said[name] = dict(error_of(error))
        return {"said": said, "after": stand.visit(good)}

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        for name, said in seen.facts["said"].items():
            wanted = "DoesNotFit" if name == "more than the context" else "BadRequest"
            got = said.get("error", "an answer")
            verdict.expect(got == wanted, f"{name}: {wanted} was due, came {got}: {said.get('what', '')}".rstrip(": "))
        verdict.problems += timing.misshapen(seen.facts["after"])


@check
class Tensor(Check):
    """benchmark.tensor: a tensor model is called as often as was asked, and the samples are what the calls took.

    The classifier is called on feeds from a file: three repetitions of eight calls. Counted are the samples; of
    repetitions that take some tenths of a second their sum is held to the suite's clock as in `benchmark.clock`, but
    for an emulated device, whose times are nothing. A workload without repetitions and feeds that are no archive are
    `BadRequest`.
    """

    def applies(self, manifest: Manifest) -> bool:
        return has_task("tensor")(manifest)

    def proves(self, manifest: Manifest, cell: Cell) -> dict[str, str]:
        return {"task": "tensor"}

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        artifact, feeds = tensor_models.classifier(bench)
        file = bench.folder("feeds") / "feeds.npz"
        np.savez(file, **feeds)  # type: ignore[arg-type]
        with bench.fresh() as backend:
            stand = Stand(bench, backend, artifact)
            workload = Workload((), 8, repetitions=3, warmup=1, threads=1, feeds=str(file))
            facts: dict[str, Any] = {"visit": stand.visit(workload), "pairs": [], "said": {}}
            if not bench.known.emulated:
                facts["pairs"] = self.timed(stand, replace(workload, decode=16))
            for name, wrong in (
                ("no repetitions", replace(workload, repetitions=0)),
                ("no archive", replace(workload, feeds=str(artifact.model))),
            ):
                try:
                    facts["said"][name] = {"answered": stand.visit(wrong)["samples"]}
                except EdgecoreError as error:
                    facts["said"][name] = dict(error_of(error))
        return Observation(facts)

    def timed(self, stand: Stand, workload: Workload) -> list[list[dict[str, Any]]]:
        """Pairs of visits that differ in repetitions alone."""
        more = stand.sized(workload, 0.08)
        pairs: list[list[dict[str, Any]]] = []
        while len(pairs) < timing.ATTEMPTS and not (pairs and benchmark_clock.agrees(pairs[-1])):
            pairs.append([stand.visit(replace(more, repetitions=n)) for n in (1, 5)])
        return pairs

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        verdict.problems += timing.misshapen(seen.facts["visit"], text=False)
        if not known.emulated:
            benchmark_clock.judge_clock(seen.facts["pairs"], verdict, text=False)
        for name, said in seen.facts["said"].items():
            got = said.get("error", "an answer")
            verdict.expect(got == BadRequest.__name__, f"{name}: BadRequest was due, came {got}")
