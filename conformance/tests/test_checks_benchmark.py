"""Benchmark checks judge what was seen: each figure alone moved out of its bound is a failure that names it.

Answers are made up here, as a truthful loop would give them, with one thing changed; the plugins that lie for real are
among the mutants.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from edgecore import registry
from edgecore.contract.measurement import Repetition, Samples, Workload
from edgecore_conformance import timing
from edgecore_conformance.check import CHECKS
from edgecore_conformance.checks import benchmark
from edgecore_conformance.checks.benchmark_base import TextBenchmark
from edgecore_conformance.known import TRAINED, Known
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.outcomes import Outcome
from edgecore_conformance.running import judged

assert benchmark
CONDITIONS = {"device": "cpu", "threads": "1", "context": "256", "compute": "float32", "kv_cache": "float32"}


@pytest.fixture(scope="module")
def known() -> Known:
    return Known(registry.find("reference").ready_manifest, "cpu")


def visit(
    known: Known, check: str, prompt: int = 8, decode: int = 4, purpose: str = "", scale: float = 1.0, **more: Any
) -> dict[str, Any]:
    """What a truthful loop answers: 1 ms a token, a millisecond of messages, and all by one thread."""
    chance = random.Random(f"{check} {prompt} {decode} {more}")
    drawn = known.tokens(TRAINED, f"{check} {purpose}".strip(), prompt)
    workload = Workload(tuple(drawn), decode, **{"threads": 1, "context_length": 512, "warmup": 1, **more})
    prefills = [prompt * 1e-3 * chance.uniform(0.99, 1.01) for _ in range(workload.repetitions)]
    counted = [Repetition(p, tuple(1e-3 * chance.uniform(0.9, 1.1) for _ in range(decode))) for p in prefills]
    took = sum(r.prefill + sum(r.steps) for r in counted)
    all_of_it = took * (workload.repetitions + workload.warmup) / workload.repetitions + 0.05
    scaled = tuple(Repetition(r.prefill * scale, tuple(s * scale for s in r.steps)) for r in counted)
    tokens = tuple(drawn[i % prompt] for i in range(decode))
    samples = Samples(scaled, 0.05, native_loop=False, tokens=tokens, conditions=CONDITIONS)
    return {
        "asked": timing.asked(workload), "samples": timing.answered(samples), "outside": all_of_it + 0.002,
        "cpu": all_of_it, "waited": 0.0, "suspended": [],
    }  # fmt: skip


def verdict(check: str, facts: dict[str, Any], known: Known) -> Judgement:
    return judged(CHECKS[check], Observation(facts), {}, known)


def samples_facts(known: Known) -> dict[str, Any]:
    name = "benchmark.samples"
    again = visit(known, name, mode="greedy", repetitions=3)
    again["samples"]["repetitions"] = visit(known, name, mode="greedy", repetitions=3, warmup=2)["samples"][
        "repetitions"
    ]
    return {
        "visits": {
            "greedy": visit(known, name, mode="greedy", repetitions=3),
            "again": again,
            "bare": visit(known, name, prompt=3, decode=7, repetitions=2),
            "prefill": visit(known, name, decode=0, repetitions=2),
        }
    }


def test_whole_samples_pass(known: Known) -> None:
    assert verdict("benchmark.samples", samples_facts(known), known).problems == []


def _drop(facts: dict[str, Any]) -> None:
    facts["visits"]["greedy"]["samples"]["repetitions"].pop()


def _surplus(facts: dict[str, Any]) -> None:
    taken = facts["visits"]["greedy"]["samples"]["repetitions"]
    taken.append({"prefill": 0.0081, "steps": [0.0011, 0.0012, 0.0013, 0.0014]})


def _short(facts: dict[str, Any]) -> None:
    facts["visits"]["greedy"]["samples"]["repetitions"][0]["steps"].pop()


def _negative(facts: dict[str, Any]) -> None:
    facts["visits"]["bare"]["samples"]["repetitions"][1]["prefill"] = -0.1


def _not_a_number(facts: dict[str, Any]) -> None:
    facts["visits"]["bare"]["samples"]["repetitions"][1]["steps"][0] = timing.number(float("nan"))


def _same_twice(facts: dict[str, Any]) -> None:
    facts["visits"]["again"] = copy.deepcopy(facts["visits"]["greedy"])


def _even(facts: dict[str, Any]) -> None:
    for repetition in facts["visits"]["greedy"]["samples"]["repetitions"]:
        repetition["steps"] = [0.001] * 4


def _other_tokens(facts: dict[str, Any]) -> None:
    facts["visits"]["bare"]["samples"]["tokens"][0] += 1


def _too_few_tokens(facts: dict[str, Any]) -> None:
    facts["visits"]["greedy"]["samples"]["tokens"].pop()


def _other_prompt(facts: dict[str, Any]) -> None:
    facts["visits"]["greedy"]["asked"]["prompt"][0] += 1


def _native(facts: dict[str, Any]) -> None:
    facts["visits"]["greedy"]["samples"]["native_loop"] = True


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_drop, "3 repetitions were asked for after 1 warm-ups, 2 reported"),
        (_surplus, "3 repetitions were asked for after 1 warm-ups, 4 reported"),
        (_short, "4 steps were asked for, 3 reported"),
        (_negative, "-0.1 is no duration"),
        (_not_a_number, "nan is no duration"),
        (_same_twice, "times that two calls share"),
        (_even, "different step times"),
        (_other_tokens, "was given"),
        (_too_few_tokens, "greedy: tokens 3"),
        (_other_prompt, "not the one that this seed draws"),
        (_native, "native_loop is True"),
    ],
)
def test_samples_that_are_not_whole_fail(known: Known, change: Callable[[dict[str, Any]], None], words: str) -> None:
    facts = samples_facts(known)
    change(facts)
    assert words in "\n".join(verdict("benchmark.samples", facts, known).problems)


def clock_facts(known: Known, scale: float = 1.0, attempts: int = 1) -> dict[str, Any]:
    name = "benchmark.clock"
    few, many = (visit(known, name, 64, 64, repetitions=n, warmup=0, scale=scale) for n in (1, 5))
    return {"pairs": [[few, many]] * attempts}


@pytest.mark.parametrize(
    ("scale", "good"),
    [(1.0, True), (0.8, True), (0.5, False), (1 / 3, False), (1e-3, False), (1.3, False), (3.0, False)],
)
def test_the_clock_forgives_a_fifth_and_no_factor_of_two(known: Known, scale: float, good: bool) -> None:
    assert (verdict("benchmark.clock", clock_facts(known, scale), known).outcome is Outcome.PASSED) is good


def test_one_attempt_that_agrees_outweighs_two_that_a_neighbour_spoiled(known: Known) -> None:
    facts = {"pairs": clock_facts(known, 0.4)["pairs"] * 2 + clock_facts(known)["pairs"]}
    assert verdict("benchmark.clock", facts, known).outcome is Outcome.PASSED


def test_more_time_than_passed_is_never_forgiven(known: Known) -> None:
    facts = {"pairs": clock_facts(known)["pairs"] + clock_facts(known, 2.0)["pairs"]}
    assert "seconds claimed" in verdict("benchmark.clock", facts, known).problems[0]


def suspended_facts(known: Known, name: str, shown: float, warmup: int, ran: float = 1.0) -> dict[str, Any]:
    """`shown`: share of the suspensions that is in the samples; `ran`: of the repetitions by CPU time."""
    one, more = (visit(known, name, 64, 32, repetitions=n, warmup=0) for n in (1, 5))
    each = (more["cpu"] - one["cpu"]) / 4
    seen = visit(known, name, 64, 32, repetitions=4, warmup=warmup)
    seen["suspended"] = [0.15, 0.15, 0.15]
    for step in range(3):
        seen["samples"]["repetitions"][1]["steps"][step] += 0.15 * shown
    seen["cpu"] = 0.05 + ran * each * (4 + warmup)
    return {
        "calibration": {"one": one, "more": more, "repetition": each, "opening": max(0.0, one["cpu"] - each)},
        "visits": [{**seen, "usual": more}],
    }


@pytest.mark.parametrize(("shown", "good"), [(1.0, True), (0.85, True), (0.4, False), (0.0, False)])
def test_suspended_work_is_in_the_samples(known: Known, shown: float, good: bool) -> None:
    name = "benchmark.suspension"
    assert (verdict(name, suspended_facts(known, name, shown, 0), known).outcome is Outcome.PASSED) is good


@pytest.mark.parametrize(
    ("shown", "ran", "good"),
    [(0.0, 1.0, True), (0.1, 1.1, True), (0.5, 1.0, False), (1.0, 1.0, False), (0.0, 0.5, False)],
)
def test_a_suspended_warm_up_is_run_and_is_not_in_the_samples(
    known: Known, shown: float, ran: float, good: bool
) -> None:
    name = "benchmark.warmup"
    assert (verdict(name, suspended_facts(known, name, shown, 4, ran), known).outcome is Outcome.PASSED) is good


@pytest.mark.parametrize(("counted", "good"), [(4, True), (8, False)])
def test_what_a_warm_up_waited_for_a_processor_is_no_suspension(known: Known, counted: int, good: bool) -> None:
    """Half a second more for each repetition than in the calibration; `counted` of the eight are in the samples."""
    name = "benchmark.warmup"
    facts = suspended_facts(known, name, 0.0, 4)
    seen = facts["visits"][0]
    seen["waited"] = 8 * 0.5
    seen["outside"] += seen["waited"]
    for repetition in seen["samples"]["repetitions"]:
        repetition["steps"][0] += 0.5 * counted / 4
    assert (verdict(name, facts, known).outcome is Outcome.PASSED) is good


@pytest.mark.parametrize(
    ("decode", "prompt", "good"), [(64, 256, True), (40, 120, True), (16, 256, False), (64, 64, False)]
)
def test_more_work_takes_longer(known: Known, decode: int, prompt: int, good: bool) -> None:
    name = "benchmark.scaling"
    calls = {"base": (64, 16), "decode": (64, 64), "prompt": (256, 16)}
    facts = {"visits": [{k: visit(known, name, p, d, repetitions=2) for k, (p, d) in calls.items()}]}
    longer = facts["visits"][0]
    for repetition in longer["decode"]["samples"]["repetitions"]:
        repetition["steps"] = [s * decode / 64 for s in repetition["steps"]]
    for repetition in longer["prompt"]["samples"]["repetitions"]:
        repetition["prefill"] *= prompt / 256
    assert (verdict(name, facts, known).outcome is Outcome.PASSED) is good


def work_facts(known: Known, cpu: float = 1.0, prefill: float = 1.0, bare: float = 1.0, threads: float = 1.0) -> Any:
    name = "benchmark.work"
    session = {"prefill": [0.192, 0.193], "steps": [0.0012] * 16, "cpu": 2 * 0.2}
    visits: dict[str, Any] = {}
    for mode, scale in (("bare", bare), ("greedy", 1.0)):
        pair = [visit(known, name, 192, 8, repetitions=n, warmup=0, mode=mode, scale=scale) for n in (1, 3)]
        for each in pair:
            each["cpu"] *= cpu * threads
            for repetition in each["samples"]["repetitions"]:
                repetition["prefill"] *= prefill
        visits[mode] = [pair, pair]
    return {"visits": visits, "session": [session, session]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"cpu": 0.05}, "CPU time over the session's"),
        ({"prefill": 0.2}, "prefill over the session's"),
        ({"prefill": 3.0}, "prefill over the session's at most"),
        ({"bare": 0.4}, "bare over greedy"),
        ({"threads": 2.0}, "threads that wanted a CPU"),
    ],
)
def test_the_timed_loop_works_as_the_session_does(known: Known, change: dict[str, float], words: str) -> None:
    problems = "\n".join(verdict("benchmark.work", work_facts(known, **change), known).problems)
    assert words in problems
    assert bool(problems) is bool(words)


def test_a_clear_answer_of_the_oracle_must_be_given(known: Known) -> None:
    from edgecore_conformance.checks.benchmark_work import against_oracle

    prompt = known.tokens(TRAINED, "benchmark.tokens first", 24)
    tokens: list[int] = []
    for _ in range(6):
        tokens.append(int(known.logits(TRAINED, [*prompt, *tokens])[-1].argmax()))
    assert against_oracle(known, prompt, tokens, 0.5)[0] == 0
    wrong, clear = against_oracle(known, prompt, [(t + 1) % 2048 for t in tokens], 0.0)
    assert (wrong, clear) == (6, 6)
    assert against_oracle(known, prompt, [-1, 5], 0.5) == (2, 2)


def test_conditions_must_be_stated_and_be_those_asked_for(known: Known) -> None:
    seen = visit(known, "benchmark.conditions", 16, 2, repetitions=1, context_length=256)
    assert verdict("benchmark.conditions", {"visit": seen, "session": CONDITIONS}, known).problems == []
    other = {"visit": seen, "session": {**CONDITIONS, "threads": "4", "compute": ""}}
    problems = "\n".join(verdict("benchmark.conditions", other, known).problems)
    assert "session: compute is not stated" in problems
    assert "threads is '4', asked for was '1'" in problems


def test_every_check_of_the_group_has_a_page_and_says_what_it_proves(known: Known) -> None:
    mine = [c for c in CHECKS.values() if c.group() == "benchmark"]
    assert len(mine) == 10
    for check in mine:
        assert len((check.__doc__ or "").split("\n\n")) >= 2
        wanted = "text" if isinstance(check, TextBenchmark) else "tensor"
        assert check.proves(known.manifest, {})["task"] == wanted
    assert not CHECKS["benchmark.clock"].applies(replace(known.manifest, formats=()))
