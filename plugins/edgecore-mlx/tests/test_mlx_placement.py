"""Where it ran: MLX's stream and the CPU time, which must agree; what nobody knows is never said."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from edgecore.contract import Artifact, PlacementSource
from edgecore_mlx import placement
from edgecore_mlx.placement import Watched, judged

ASSIGNED, NONE = PlacementSource.RUNTIME_ASSIGNMENT, PlacementSource.NONE


@pytest.mark.parametrize(
    ("device", "stream", "has_gpu", "wall", "others", "operators"),
    [
        ("cpu", "cpu", True, 1.0, 0.98, {"cpu": 1.0}),
        ("gpu", "gpu", True, 1.0, 0.02, {"gpu": 1.0}),
        ("cpu", "cpu", False, 1.0, 0.3, {"cpu": 1.0}),  # there is nothing else, and the machine is busy
        ("cpu", "cpu", False, 0.0, 0.0, {"cpu": 1.0}),
        ("cpu", "cpu", True, 1.0, 0.1, {}),  # something else computed
        ("gpu", "gpu", True, 1.0, 0.95, {}),  # the CPU was as busy as if it computed
        ("gpu", "gpu", True, 1.0, 0.5, {}),
        ("gpu", "gpu", True, 0.0, 0.0, {}),  # nothing was computed
        ("cpu", "cpu", True, 0.0, 0.0, {}),
        ("gpu", "cpu", True, 1.0, 0.98, {}),  # somebody changed the device
        ("cpu", "gpu", True, 1.0, 0.02, {}),
    ],
)
def test_the_stream_is_believed_where_cpu_time_agrees(
    device: str, stream: str, has_gpu: bool, wall: float, others: float, operators: dict[str, float]
) -> None:
    found = judged(device, stream, has_gpu, wall, others)
    assert dict(found.operators) == operators
    assert found.source is (ASSIGNED if operators else NONE)
    assert f"MLX's stream is on {stream}" in found.detail


def test_the_cpu_seconds_are_those_of_other_threads_than_the_callers() -> None:
    """MLX computes in a thread of its own; what Python does meanwhile is not its work."""
    mlx, python = Watched("cpu"), Watched("cpu")
    x = mx.random.normal((256, 256))
    mx.eval(x)
    with mx.stream(mx.cpu):
        while mlx.others < 0.05:
            with mlx:
                mx.eval(x @ x)
        with python:
            sum(i * i for i in range(200_000))
    assert mlx.wall >= mlx.others * 0.5
    assert python.others < 0.5 * python.wall
    assert mlx.placement().share("cpu") == (1.0 if not mx.is_available(mx.gpu) or mlx.others > 0.6 * mlx.wall else None)


def test_the_stream_is_the_one_that_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not the default of whoever asks afterwards, with another session open on another device."""
    watched = Watched("gpu")
    monkeypatch.setattr(placement, "stream_device", lambda: "cpu")
    with watched:
        pass
    monkeypatch.setattr(placement, "stream_device", lambda: "gpu")
    assert watched.placement().source is NONE
    assert "on cpu" in watched.placement().detail
    assert "gpu was asked for" in watched.placement().detail


def test_watching_costs_less_than_a_tenth_of_a_millisecond() -> None:
    from time import perf_counter

    watched, best = Watched("cpu"), 1.0
    for _ in range(20):
        start = perf_counter()
        for _ in range(100):
            with watched:
                pass
        best = min(best, (perf_counter() - start) / 100)
    assert best < 1e-4


@pytest.mark.skipif(mx.is_available(mx.gpu), reason="MLX has a GPU here")
def test_a_session_tells_where_it_computed(mlx: Any, tiny_mlx: Artifact) -> None:
    with mlx.run(tiny_mlx) as session:
        session.context().prefill([5, 6, 7])
        assert session.placement.source is ASSIGNED
        assert session.placement.share("cpu") == 1.0
        assert "no other device" in session.placement.detail
