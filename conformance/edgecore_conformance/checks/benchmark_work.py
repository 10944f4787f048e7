"""Benchmark, the work: the timed loop computes what the session computes, and gives the same answer."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from edgecore.contract.manifest import Manifest
from edgecore.contract.measurement import Workload
from edgecore.contract.sampling import Sampling
from edgecore.contract.sessions import TextSession
from edgecore_conformance import timing, watching
from edgecore_conformance.check import Cell, check
from edgecore_conformance.checks.benchmark_base import CONTEXT, TextBenchmark, context_of
from edgecore_conformance.known import SCRIPTED, TRAINED, Known
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.timing import Stand

ENOUGH, MOST = 0.4, 12
"""CPU seconds of the repetitions that are compared, and how many there are at most."""


@check
class Tokens(TextBenchmark):
    """benchmark.tokens: the timed loop gives the answer that the model gives.

    In mode `greedy` the tokens of the timed loop, of the session's own steps and of `generate` at temperature 0 are
    each held to the oracle, which is fed the same tokens: wherever its best two logits are clearly apart, its best must
    have been chosen. Two prompts, drawn from the seed. The same worker is then asked for a model that says what a
    script says, which comes to a token that ends a text: it must be this model that is measured, and as many tokens as
    were asked for. A loop that leaves out a layer, the head or the cache is fast and wrong, and so is one that answers
    from what it has seen before, or from the model that it had open.
    """

    purposes = ("first", "second")

    def watched(self, stand: Stand) -> dict[str, Any]:
        known = stand.bench.known
        calls = {p: self.workload(known, 48, 24, p, mode="greedy", repetitions=2) for p in self.purposes}
        visits = {p: stand.visit(w) for p, w in calls.items()}
        own: dict[str, list[int]] = {}
        generated: dict[str, list[int]] = {}
        context = context_of(known)
        with stand.bench.session(stand.artifact, backend=stand.backend, context_length=context, threads=1) as session:
            assert isinstance(session, TextSession)
            for p, workload in calls.items():
                own[p] = _greedy(session, workload)
                pieces = session.generate(workload.prompt, max_tokens=workload.decode, sampling=Sampling(temperature=0))
                generated[p] = [piece.token for piece in pieces if piece.token >= 0]
            ends = sorted(session.eos_ids)
        scripted = replace(stand, artifact=stand.bench.artifact(SCRIPTED))
        facts = {"visits": visits, "steps": own, "generate": generated, "ends": ends}
        return {**facts, "scripted": scripted.visit(past_the_end(known))}

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        margin = clear_margin(known.manifest, seen.facts["precision"])
        for p in self.purposes:
            visit = seen.facts["visits"][p]
            self.as_published(visit, known, verdict, p)
            prompt = visit["asked"]["prompt"]
            timed = visit["samples"]["tokens"]
            verdict.figure(f"{p}: tokens", len(timed), visit["asked"]["decode"], "==", origin="as many as asked for")
            answers = {
                "timed loop": timed,
                "session's steps": seen.facts["steps"][p],
                "generate": seen.facts["generate"][p],
            }
            for name, tokens in answers.items():
                wrong, clear = against_oracle(known, prompt, tokens, margin)
                verdict.figure(
                    f"{p}, {name}: wrong tokens of {clear} with a clear oracle", wrong, 0, "<=", "",
                    f"the oracle's best two logits are more than {margin:g} apart",
                )  # fmt: skip

        visit, asked = seen.facts["scripted"], timing.asked(past_the_end(known))
        verdict.expect(visit["asked"] == asked, "the scripted model was asked for something else than the seed draws")
        due, made = known.script.answer(asked["prompt"][-1], asked["decode"]), visit["samples"]["tokens"]
        verdict.expect(made == due, f"scripted model: tokens {made}, and {due} were due")
        verdict.problems += timing.misshapen(visit)


def past_the_end(known: Known) -> Workload:
    """Of the scripted model: to a token that ends a text, and on."""
    end = known.script.ends[0]
    prompt = (*known.draw("benchmark.tokens end").choices(known.script.prompts, k=6), end[0])
    context = min(CONTEXT, known.context(SCRIPTED))
    return Workload(prompt, len(end) + 8, repetitions=1, warmup=0, mode="greedy", threads=1, context_length=context)


def _greedy(session: TextSession, workload: Workload) -> list[int]:
    context = session.context()
    context.reset()
    logits = context.prefill(workload.prompt)
    tokens: list[int] = []
    for _ in range(workload.decode):
        tokens.append(int(np.argmax(logits)))
        logits = context.step(tokens[-1])
    return tokens


def clear_margin(manifest: Manifest, precision: str) -> float:
    """Logits by which the oracle's best must lead before another choice is wrong, by the width of the weights."""
    bits = next((p.bits for p in manifest.precisions if p.name == precision), 0)
    return 0.5 if bits >= 16 else 1.0 if bits >= 8 else 2.0


def against_oracle(known: Known, prompt: list[int], tokens: list[int], margin: float) -> tuple[int, int]:
    """(wrong, clear): of the positions where the oracle is clear, those at which another token was chosen."""
    if not tokens:
        return 0, 0
    vocabulary = known.logits(TRAINED, prompt[:1]).shape[1]
    if not all(0 <= t < vocabulary for t in tokens):
        return len(tokens), len(tokens)
    rows = known.logits(TRAINED, [*prompt, *tokens[:-1]])[len(prompt) - 1 :]
    best = np.sort(rows, axis=1)[:, -2:]
    clear = best[:, 1] - best[:, 0] > margin
    return int((clear & (rows.argmax(axis=1) != np.array(tokens))).sum()), int(clear.sum())


@check
class Work(TextBenchmark):
    """benchmark.work: the timed loop does the work that the session does for the same tokens.

    The same prompt is prefilled in a session, step by step in turns with calls of benchmark in both modes. Compared
    are CPU time by the worker (on a CPU), and the fastest prefill and step by both clocks. A loop that sleeps instead
    of computing, reads from a table or computes less than the session does is found here; so is mode `bare` where it
    does less than `greedy` does beside choosing a token. A native loop may be faster than the session, within bounds.
    """

    timed = True
    modes = ("bare", "greedy")

    def watched(self, stand: Stand) -> dict[str, Any]:
        calls = {m: self.workload(stand.bench.known, 192, 8, mode=m, warmup=0) for m in self.modes}
        facts: dict[str, Any] = {"visits": {m: [] for m in self.modes}, "session": []}
        # Enough repetitions to stand out of what opening costs, now more and now less.
        each = stand.calibrate(calls["bare"])["repetition"]
        more = 1 + max(2, min(MOST, math.ceil(ENOUGH / max(each, 1e-6))))
        # The first round has the worker to itself: libraries keep a number of threads that a session has set.
        self._round(stand, calls, facts, more)
        with stand.bench.session(stand.artifact, backend=stand.backend, context_length=CONTEXT, threads=1) as session:
            assert isinstance(session, TextSession)
            _loop(session, calls["bare"], 1, stand.backend.pid)
            facts["session"].append(_loop(session, calls["bare"], 2, stand.backend.pid))
            self._round(stand, calls, facts, more)
            facts["session"].append(_loop(session, calls["bare"], 2, stand.backend.pid))
        return facts

    def _round(self, stand: Stand, calls: Mapping[str, Workload], facts: dict[str, Any], more: int) -> None:
        for mode, workload in calls.items():
            facts["visits"][mode].append([stand.visit(replace(workload, repetitions=n)) for n in (1, more)])

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        visits, session = seen.facts["visits"], seen.facts["session"]
        least: dict[str, dict[str, float]] = {}
        for mode in self.modes:
            flat = [visit for pair in visits[mode] for visit in pair]
            for visit in flat:
                self.as_published(visit, known, verdict)
                verdict.problems += timing.misshapen(visit)
            if verdict.problems:
                return
            least[mode] = {
                what: min(v for visit in flat for v in timing.rows(visit, what)) for what in ("prefill", "steps")
            }
            used = [max(0.0, (many["cpu"] or 0) - (few["cpu"] or 0)) / _apart(few, many) for few, many in visits[mode]]
            own = [(s["cpu"] or 0) / len(s["prefill"]) for s in session]
            bound = 0.4 if known.device == "cpu" else None
            verdict.figure(
                f"{mode}: CPU time over the session's", max(used) / max(min(own), 1e-9), bound, ">=", "",
                "of a repetition; a native loop may save what a session spends on messages",
            )  # fmt: skip
            ratio = least[mode]["prefill"] / min(v for s in session for v in s["prefill"])
            verdict.figure(
                f"{mode}: prefill over the session's", ratio, 0.3, ">=", "", "192 tokens, the fastest of each"
            )
            verdict.figure(f"{mode}: prefill over the session's at most", ratio, 2.0, "<=")
            ratio = least[mode]["steps"] / min(v for s in session for v in s["steps"])
            verdict.figure(
                f"{mode}: step over the session's", ratio, 0.05, ">=", "", "a session's step is a message each way"
            )
            verdict.figure(f"{mode}: step over the session's at most", ratio, 2.0, "<=")
        wanted = min(_demand(few, many) for few, many in (visits[mode][0] for mode in self.modes))
        verdict.figure("threads that wanted a CPU", wanted, 1.5, "<=", "on average", "one was asked for")
        for what in ("prefill", "steps"):
            verdict.figure(
                f"bare over greedy, {what}", least["bare"][what] / max(least["greedy"][what], 1e-9), 0.5, ">=", "",
                "choosing a token is small beside computing it",
            )  # fmt: skip


def _apart(few: Mapping[str, Any], many: Mapping[str, Any]) -> int:
    return max(1, int(many["asked"]["repetitions"]) - int(few["asked"]["repetitions"]))


def _demand(few: Mapping[str, Any], many: Mapping[str, Any]) -> float:
    """Of the repetitions by which two visits differ."""
    more = {name: (many[name] or 0.0) - (few[name] or 0.0) for name in ("cpu", "waited", "outside")}
    return watching.demand({**more, "wall": more["outside"]}) or 0.0


def _loop(session: TextSession, workload: Workload, times: int, pid: int) -> dict[str, Any]:
    """The workload in the caller's own loop, by the caller's clock."""
    context = session.context()
    prefill, steps = [], []
    before = watching.glance(pid)
    for _ in range(times):
        context.reset()
        start = time.perf_counter()
        context.prefill(workload.prompt)
        prefill.append(time.perf_counter() - start)
        for i in range(workload.decode):
            start = time.perf_counter()
            context.step(workload.prompt[i])
            steps.append(time.perf_counter() - start)
    return {"prefill": prefill, "steps": steps, "cpu": watching.between(before, watching.glance(pid)).cpu}
