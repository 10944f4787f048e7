"""Group *robustness*: what its judgements see in observations, and a truthful plugin on a real worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgecore import registry
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import all_checks
from edgecore_conformance.known import Known
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.outcomes import Outcome
from edgecore_conformance.running import run_row


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    entry = registry.find("reference")
    made = Bench(entry, Known(entry.ready_manifest, "cpu"), tmp_path_factory.mktemp("bench"))
    made.begin(120)
    yield made
    made.close()


def judged(name: str, facts: dict[str, Any], known: Known) -> Judgement:
    verdict = Judgement()
    all_checks()[name].judge(Observation(facts), {}, known, verdict)
    return verdict


def rounds(growth: int = 0, files: int = 0, threads: int = 0, processes: int = 0) -> dict[str, Any]:
    after = [[50_000_000 + i * growth, 10 + i * files, 4 + i * threads, i * processes] for i in range(10)]
    errors = [["DoesNotFit", "CorruptModel"]] * 10
    return {
        "after": after, "held": [60_000_000] * 10, "answers": [[1, 2]] * 10, "left": {}, "errors": errors,
        "artifact": [],
    }  # fmt: skip


def test_memory_files_threads_and_processes_that_do_not_come_back_are_found(bench: Bench) -> None:
    def outcome(**grows: int) -> Outcome:
        return judged("robustness.rounds", rounds(**grows), bench.known).outcome

    assert outcome() is Outcome.PASSED
    assert outcome(growth=100_000) is Outcome.PASSED, "less than half a MiB a round is an allocator's business"
    leaks = ({"growth": 3_000_000}, {"files": 1}, {"threads": 1}, {"processes": 1})
    assert [outcome(**leak) for leak in leaks] == [Outcome.FAILED] * 4


def test_temporary_files_of_every_round_are_found(bench: Bench) -> None:
    left = {"temp": [f"opened-{i}/weights" for i in range(10)]}
    assert judged("robustness.rounds", {**rounds(), "left": left}, bench.known).outcome is Outcome.FAILED


def test_an_interrupted_command_must_end_with_130_in_time_without_orphans(bench: Bench) -> None:
    good = {"status": 130, "seconds": 0.3, "said": "", "finished": False, "children": 1, "orphans": 0}

    def outcome(**other: object) -> Outcome:
        return judged("robustness.interrupt", {"tried": [{**good, **other}]}, bench.known).outcome

    assert outcome() is Outcome.PASSED
    assert outcome(finished=True, status=0) is Outcome.UNAVAILABLE, "it had ended by itself: nothing was seen"
    assert [outcome(status=0), outcome(seconds=9.0), outcome(orphans=1)] == [Outcome.FAILED] * 3


def test_a_deadline_must_end_in_timeout_and_leave_a_worker_that_answers_or_none(bench: Bench) -> None:
    good: dict[str, Any] = {"error": "Timeout", "seconds": 0.1, "after": {}, "living": True, "gone": True}

    def outcome(**other: object) -> Outcome:
        return judged("robustness.deadline", {"convert": {**good, **other}}, bench.known).outcome

    assert outcome() is Outcome.PASSED
    assert outcome(living=False, after={"error": "Timeout"}) is Outcome.PASSED
    assert [outcome(error=""), outcome(after={"error": "Timeout"}), outcome(seconds=9)] == [Outcome.FAILED] * 3


@pytest.mark.parametrize("name", ["robustness.crash", "robustness.deadline", "robustness.memory_limit"])
def test_the_reference_passes(bench: Bench, tmp_path: Path, name: str) -> None:
    row = run_row(all_checks()[name], {}, bench, tmp_path)
    assert (row.outcome, row.message) == (Outcome.PASSED, "")
