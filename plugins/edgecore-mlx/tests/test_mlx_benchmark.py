"""The native loop: raw samples; tokens agree with the contract's own loop, durations with another clock."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import pytest

from edgecore.contract import GREEDY, Artifact, BadRequest, Cancelled, DoesNotFit, Samples, Workload, no_progress
from edgecore.contract.options import resolve
from edgecore.measure.loop import run_workload
from edgecore.workers.host import Host
from edgecore_mlx import benchmarking

PROMPT = (5, 6, 7, 8)


@pytest.fixture(scope="module")
def host() -> Host:
    return Host("mlx", "edgecore_mlx.hooks")


def measure(host: Host, mlx: Any, artifact: Artifact, progress: Any = no_progress, **given: Any) -> Samples:
    options = resolve(mlx.manifest.options_of("run"), {}, "run", "mlx") | given.pop("options", {})
    workload = Workload(**{"prompt": PROMPT, "decode": 6, "repetitions": 2, "threads": 1, **given})
    samples: Samples = host.call(
        "edgecore_benchmark",
        {"artifact": artifact, "device": "cpu", "workload": workload, "options": options, "progress": progress},
    )
    return samples


def test_samples_are_raw_and_as_many_as_asked(host: Host, mlx: Any, tiny_mlx: Artifact) -> None:
    samples = measure(host, mlx, tiny_mlx, context_length=32)
    assert samples.native_loop
    assert len(samples.repetitions) == 2
    assert all(len(r.steps) == 6 and r.prefill > 0 and min(r.steps) > 0 for r in samples.repetitions)
    assert samples.load > 0
    assert samples.tokens == (5, 6, 7, 8, 5, 6)
    assert samples.conditions.items() >= {"threads": "1", "context": "32", "device": "cpu", "kv_cache": "f32"}.items()
    assert samples.counters["mlx_peak_memory"] >= samples.counters["mlx_active_memory"] > 0


@pytest.mark.parametrize("ahead", [(), ("cpu",)], ids=["one by one", "ahead, as on a GPU"])
@pytest.mark.parametrize("mode", ["bare", "greedy"])
def test_it_decodes_what_the_contracts_loop_decodes_under_the_same_conditions(
    host: Host, mlx: Any, tiny_mlx: Artifact, mode: str, ahead: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarking, "AHEAD", ahead)
    workload = Workload(PROMPT, 20, repetitions=1, mode=mode)
    with mlx.run(tiny_mlx) as session:
        theirs = run_workload(session, workload, 0.0)
        if mode == "greedy":
            pieces = list(session.generate(PROMPT, max_tokens=20, sampling=GREEDY))
            assert theirs.tokens[: len(pieces) - 1] == tuple(p.token for p in pieces[:-1])
    ours = measure(host, mlx, tiny_mlx, mode=mode, decode=20)
    assert ours.tokens == theirs.tokens
    assert ours.conditions.items() <= theirs.conditions.items()


@pytest.mark.parametrize("ahead", [(), ("cpu",)], ids=["one by one", "ahead, as on a GPU"])
def test_durations_add_up_to_what_passed(
    host: Host, mlx: Any, tiny_mlx: Artifact, ahead: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarking, "AHEAD", ahead)
    start = perf_counter()
    samples = measure(host, mlx, tiny_mlx, decode=200, repetitions=4, warmup=0, context_length=256)
    passed = perf_counter() - start - samples.load
    claimed = sum(r.prefill + sum(r.steps) for r in samples.repetitions)
    assert 0.5 * passed < claimed <= passed


def test_a_long_prompt_is_read_in_pieces_and_a_long_answer_gives_memory_back(
    host: Host, mlx: Any, tiny_mlx: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the pieces are changes nothing of the answer."""
    prompt = tuple(range(5, 45))
    whole = measure(host, mlx, tiny_mlx, prompt=prompt, decode=12, mode="greedy")
    monkeypatch.setattr(benchmarking, "FORGET", 4)
    pieces = measure(
        host, mlx, tiny_mlx, prompt=prompt, decode=12, mode="greedy", options={"prefill_step_size": 16}
    )  # fmt: skip
    assert pieces.tokens == whole.tokens


def test_prefill_alone_can_be_measured(host: Host, mlx: Any, tiny_mlx: Artifact) -> None:
    samples = measure(host, mlx, tiny_mlx, decode=0)
    assert [r.steps for r in samples.repetitions] == [(), ()]
    assert all(r.prefill > 0 for r in samples.repetitions)
    assert samples.tokens == ()


def test_what_makes_no_sense_is_refused_and_a_run_can_be_cancelled(
    host: Host, mlx: Any, tiny_mlx: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadRequest, match="fastest"):
        measure(host, mlx, tiny_mlx, mode="fastest")
    with pytest.raises(BadRequest, match="0 repetitions"):
        measure(host, mlx, tiny_mlx, repetitions=0)
    with pytest.raises(BadRequest, match="warm-ups"):
        measure(host, mlx, tiny_mlx, warmup=-1)
    with pytest.raises(DoesNotFit):
        measure(host, mlx, tiny_mlx, context_length=8)
    with pytest.raises(BadRequest):
        measure(host, mlx, tiny_mlx, prompt=())
    with pytest.raises(BadRequest, match="token id 999999"):
        measure(host, mlx, tiny_mlx, prompt=(999999,))

    def cancel(done: int, total: int, stage: str = "") -> None:
        raise Cancelled("enough")

    monkeypatch.setattr(benchmarking, "REPORT_EVERY", 0.0)
    with pytest.raises(Cancelled):
        measure(host, mlx, tiny_mlx, progress=cancel)
    assert len(measure(host, mlx, tiny_mlx).repetitions) == 2, "what was stopped is in nobody's way"


def test_progress_is_told_to_its_end(host: Host, mlx: Any, tiny_mlx: Artifact) -> None:
    told: list[tuple[int, int]] = []
    measure(host, mlx, tiny_mlx, progress=lambda done, total, stage="": told.append((done, total)), warmup=1)
    assert told[-1] == (21, 21)
