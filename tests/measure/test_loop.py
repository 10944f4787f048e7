"""The core's loop decodes what it was asked to, counts what it should, and leaves warm-up out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgecore.checkpoint import open_checkpoint
from edgecore.contract.errors import BadRequest, Cancelled, DoesNotFit
from edgecore.contract.measurement import Workload
from edgecore.contract.placement import Placement
from edgecore.contract.sessions import TensorSession, TensorSpec
from edgecore.measure import loop
from edgecore.measure.loop import make_feeds, run_workload

from support.oracle_session import OracleSession
from support.tiny import tiny_llama

PROMPT = (1, 20, 30, 40)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OracleSession]:
    with open_checkpoint(tiny_llama(tmp_path_factory.mktemp("models") / "tiny")) as model:
        yield OracleSession(model)


def test_every_repetition_has_its_prefill_and_one_duration_a_token(session: OracleSession) -> None:
    found = run_workload(session, Workload(PROMPT, decode=6, repetitions=3, warmup=2), load_seconds=0.5)
    assert len(found.repetitions) == 3
    assert all(len(r.steps) == 6 and r.prefill > 0 and min(r.steps) > 0 for r in found.repetitions)
    assert found.load == 0.5
    assert not found.native_loop
    assert found.conditions["compute"] == "f32"
    assert found.conditions["placement"] == "cpu"


def test_bare_decodes_the_prompt_again_and_greedy_what_generate_would(session: OracleSession) -> None:
    assert run_workload(session, Workload(PROMPT, decode=6, repetitions=1), 0).tokens == (1, 20, 30, 40, 1, 20)
    greedy = run_workload(session, Workload(PROMPT, decode=6, repetitions=1, mode="greedy"), 0).tokens
    context = session.context()
    context.reset()
    logits, expected = context.prefill(PROMPT), []
    for _ in range(6):
        expected.append(int(np.argmax(logits)))
        logits = context.step(expected[-1])
    assert greedy == tuple(expected)


def test_prefill_alone_can_be_measured(session: OracleSession) -> None:
    found = run_workload(session, Workload(PROMPT, decode=0, repetitions=2), 0)
    assert [r.steps for r in found.repetitions] == [(), ()]


def test_what_cannot_be_measured_is_refused(session: OracleSession) -> None:
    with pytest.raises(DoesNotFit):
        run_workload(session, Workload(PROMPT, decode=5000), 0)
    with pytest.raises(BadRequest, match="no tokens"):
        run_workload(session, Workload((), decode=5), 0)
    with pytest.raises(BadRequest, match="0 repetitions"):
        run_workload(session, Workload(PROMPT, decode=5, repetitions=0), 0)
    with pytest.raises(BadRequest, match="'fast'"):
        run_workload(session, Workload(PROMPT, decode=5, mode="fast"), 0)


def test_progress_ends_at_its_total_and_can_stop_the_loop(
    session: OracleSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "REPORT_EVERY", 0)
    seen: list[tuple[int, int]] = []
    workload = Workload(PROMPT, decode=3, repetitions=2, warmup=1)
    run_workload(session, workload, 0, lambda done, total, stage="": seen.append((done, total)))
    assert seen == [*((n, 12) for n in range(1, 13)), (12, 12)]

    def stop(done: int, total: int, stage: str = "") -> None:
        raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        run_workload(session, workload, 0, stop)


class _Doubler(TensorSession):
    inputs = (
        TensorSpec("x", "float32", ("n", 3)),
        TensorSpec("index", "int64", (2,)),
        TensorSpec("b", "bfloat16", (1,)),
    )
    outputs = (TensorSpec("y", "float32", ("n", 3)),)
    placement = Placement()
    calls = 0

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.calls += 1
        return {"y": feeds["x"] * 2}

    def close(self) -> None:
        pass


def test_a_tensor_session_is_called_on_the_same_feeds_every_time(tmp_path: Path) -> None:
    session = _Doubler()
    found = run_workload(session, Workload((), decode=4, repetitions=2, warmup=1), 0)
    assert session.calls == 12
    assert [len(r.steps) for r in found.repetitions] == [4, 4]
    assert [r.prefill for r in found.repetitions] == [0, 0]
    feeds = make_feeds(session.inputs)
    assert feeds["x"].shape == (1, 3)
    assert feeds["x"].dtype == np.float32
    assert feeds["index"].tolist() == [0, 0]
    assert feeds["b"].dtype.name == "bfloat16"
    assert np.array_equal(feeds["x"], make_feeds(session.inputs)["x"])


def test_a_persons_own_feeds_are_taken_from_an_archive(tmp_path: Path) -> None:
    np.savez(tmp_path / "feeds.npz", x=np.ones((5, 3), np.float32))
    assert make_feeds(_Doubler.inputs, str(tmp_path / "feeds.npz"))["x"].shape == (5, 3)
    (tmp_path / "bad.npz").write_bytes(b"not an archive")
    for name in ("bad.npz", "missing.npz"):
        with pytest.raises(BadRequest, match=name):
            make_feeds(_Doubler.inputs, str(tmp_path / name))
