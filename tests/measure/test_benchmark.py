"""Arms are measured side by side; what must not be compared is not, and a clock that lies is caught."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgecore.contract.artifacts import Artifact, PayloadFile
from edgecore.contract.errors import BadRequest
from edgecore.contract.measurement import Repetition, Samples, Workload
from edgecore.measure import bandwidth
from edgecore.measure.benchmark import Arm, Comparison, measure
from edgecore.registry import Entry, State

WORKLOAD = Workload(prompt=(1, 2, 3, 4), decode=4)
STEP = 0.002


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "SECONDS", 0.02)


class Runtime:
    """A backend whose steps take a known time, and whose account of them may be false."""

    def __init__(self, step: float = STEP, claims: float = 1.0, **conditions: str) -> None:
        self.step, self.claims = step, claims
        self.conditions = {"device": "cpu", "threads": "2", "compute": "f32", **conditions}
        self.visits: list[int] = []
        self.tokens: tuple[int, ...] | None = None
        self.steps_reported: int | None = None

    def benchmark(self, *, artifact: Artifact, workload: Workload, **_: Any) -> Samples:
        self.visits.append(workload.repetitions)
        repetitions = []
        for number in range(workload.warmup + workload.repetitions):
            begin = time.perf_counter()
            time.sleep(self.step * (workload.decode + 1))
            took = (time.perf_counter() - begin) / (workload.decode + 1) * self.claims
            if number >= workload.warmup:
                steps = workload.decode if self.steps_reported is None else self.steps_reported
                repetitions.append(Repetition(took, (took,) * steps))
        given = workload.prompt[: workload.decode] if self.tokens is None else self.tokens
        return Samples(tuple(repetitions), 0.001, True, given, self.conditions, {"graphs": 3.0})

    @property
    def pid(self) -> int:
        return os.getpid()


def _measure(tmp_path: Path, runtimes: dict[str, Runtime], **given: Any) -> Comparison:
    model = tmp_path / "model.bin"
    model.write_bytes(bytes(1000))
    arms, connected = [], dict(runtimes)
    for name in runtimes:
        artifact = Artifact(tmp_path, name, "text", "bin", given.pop("precision", name), (_payload(),), id=f"id-{name}")
        arms.append(Arm(Entry(name, State.READY), replace(artifact, precision="q8"), "cpu", label=name))

    @contextmanager
    def connect(entry: Entry) -> Iterator[Runtime]:
        yield connected[entry.name]

    return measure(arms, given.pop("workload", WORKLOAD), connect=connect, **{"pairs": 4, **given})


def _payload() -> PayloadFile:
    return PayloadFile("model.bin", "model", size=1000)


def test_figures_are_those_of_the_samples(tmp_path: Path) -> None:
    runtime = Runtime()
    found = _measure(tmp_path, {"a": runtime}, pairs=5, noise_floor=False)
    (arm,) = found.arms
    assert arm.void == ""
    assert len(arm.samples) == 5
    steps = sorted(s for visit in arm.samples for r in visit.repetitions for s in r.steps)
    assert arm.inter_token is not None
    assert arm.decode is not None
    assert arm.prefill is not None
    assert arm.ttft is not None
    assert steps[0] <= arm.inter_token[0] <= arm.inter_token[1] <= arm.inter_token[2] <= steps[-1]
    assert arm.decode.median == pytest.approx(1 / arm.inter_token[0], rel=0.2)
    assert arm.prefill.median == pytest.approx(4 / arm.ttft.median, rel=1e-6)
    assert arm.streamed_bytes == 1000
    assert found.bandwidth is not None
    assert arm.bandwidth_fraction == pytest.approx(arm.decode.median * 1000 / found.bandwidth)
    assert arm.memory.anonymous > 0
    assert arm.counters == {"graphs": 3.0}
    assert found.ratios == found.noise == found.not_comparable == ()
    assert found.noise_floor is None


def test_twice_as_slow_is_a_ratio_of_a_half_and_an_arm_equals_itself(tmp_path: Path) -> None:
    found = _measure(tmp_path, {"fast": Runtime(), "slow": Runtime(2 * STEP)}, pairs=10)
    assert found.not_comparable == ()
    decode = found.ratio("slow")
    assert decode is not None
    assert decode.n == 10
    assert decode.median == pytest.approx(0.5, rel=0.15)
    assert found.ratio("slow", "prefill") is not None
    (prefill, again) = found.noise
    assert (prefill.what, again.what) == ("prefill", "decode")
    assert again.interval.median == pytest.approx(1, abs=0.1)
    assert found.noise_floor is not None
    assert found.noise_floor >= abs(again.interval.high - 1)


def test_it_is_json_raw_samples_included(tmp_path: Path) -> None:
    found = _measure(tmp_path, {"a": Runtime(), "b": Runtime()})
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert len(data["arms"][0]["samples"]) == 4
    assert data["arms"][1]["samples"][0]["repetitions"][0]["steps"]
    assert data["noise_floor"] == found.noise_floor


@pytest.mark.parametrize("claims", [0.3, 3.0])
def test_a_runtime_that_claims_other_times_than_pass_is_void(tmp_path: Path, claims: float) -> None:
    found = _measure(tmp_path, {"honest": Runtime(0.05), "liar": Runtime(0.05, claims)}, noise_floor=False)
    honest, liar = found.arms
    assert honest.void == ""
    assert "claimed" in liar.void
    assert found.ratios == ()
    assert any("liar: void" in reason for reason in found.not_comparable)


def test_samples_that_are_missing_are_void(tmp_path: Path) -> None:
    runtime = Runtime()
    runtime.steps_reported = 3
    (arm,) = _measure(tmp_path, {"a": runtime}, noise_floor=False).arms
    assert arm.void == "4 decode steps were asked for, 3 reported"


@pytest.mark.parametrize("name", ["threads", "context", "compute", "kv_cache", "placement", "device"])
def test_arms_under_different_conditions_are_not_compared(tmp_path: Path, name: str) -> None:
    found = _measure(tmp_path, {"a": Runtime(**{name: "one"}), "b": Runtime(**{name: "two"})}, noise_floor=False)
    assert found.not_comparable == (f"a and b: {name} differs (one, two)",)
    assert found.ratios == ()
    assert found.arms[1].decode is not None
    varying = _measure(
        tmp_path, {"a": Runtime(**{name: "one"}), "b": Runtime(**{name: "two"})}, noise_floor=False, varying=[name]
    )
    assert varying.ratios


def test_arms_that_decoded_different_tokens_are_not_compared_unless_they_chose_them(tmp_path: Path) -> None:
    other = Runtime()
    other.tokens = (9, 9, 9, 9)
    found = _measure(tmp_path, {"a": Runtime(), "b": other}, noise_floor=False)
    assert found.not_comparable == ("a and b: they decoded different tokens",)
    greedy = _measure(
        tmp_path, {"a": Runtime(), "b": other}, noise_floor=False, workload=replace(WORKLOAD, mode="greedy")
    )
    assert greedy.ratios
    assert any("answers differ" in note for note in greedy.notes)


def test_a_visit_is_one_repetition_and_the_clock_is_checked_before_the_first(tmp_path: Path) -> None:
    runtime = Runtime(0.005)
    _measure(tmp_path, {"a": runtime}, pairs=6, noise_floor=False)
    assert runtime.visits[:3] == [1, 1, 4]
    assert runtime.visits[-6:] == [1] * 6


def test_progress_never_goes_back_and_ends_at_its_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    _measure(
        tmp_path,
        {"a": Runtime(), "b": Runtime()},
        on_progress=lambda d, t, s="": "bandwidth" in s or seen.append((d, t)),
    )
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


def test_arms_need_labels_of_their_own() -> None:
    with pytest.raises(BadRequest, match="arms"):
        measure([], WORKLOAD)


def test_a_worker_of_the_reference_is_measured_by_the_same_method(tmp_path: Path) -> None:
    """The whole way, nothing replaced: registry, worker process, session, the core's loop, the caller's clock."""
    from edgecore.registry import find

    from support.tiny import tiny_llama

    folder = tiny_llama(tmp_path / "tiny")
    entry = find(str(Path(__file__).parents[2] / "plugins" / "edgecore-reference"))
    artifact = Artifact(folder, "reference", "text", "huggingface", "f16", ())
    found = measure([Arm(entry, artifact, "cpu")], WORKLOAD, pairs=2)
    (arm,) = found.arms
    assert arm.void == ""
    assert not arm.native_loop
    assert arm.decode is not None
    assert arm.decode.median > 1
    assert {r.what for r in found.noise} == {"prefill", "decode"}
