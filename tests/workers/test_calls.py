"""Hooks and sessions through a worker answer what they answer in this process."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import psutil
import pytest

from edgecore import registry
from edgecore.contract.errors import (
    BadRequest,
    CannotDo,
    DoesNotFit,
)
from edgecore.contract.hookspecs import ConvertLimits
from edgecore.contract.measurement import Workload
from edgecore.contract.sampling import GREEDY, Sampling
from edgecore.contract.sessions import TensorSession, TextSession
from edgecore.workers import Backend, connect

from support.plugins import install_plugin, toy_artifact, write_metadata, write_plugin

Connect = Callable[..., Backend]


def text(backend: Backend, folder: Path, **options: Any) -> TextSession:
    session = backend.open(toy_artifact(folder), device="cpu", options=options)
    assert isinstance(session, TextSession)
    return session


@pytest.mark.parametrize("isolated", [True, False])
def test_every_hook_answers_the_contracts_own_types(plugin: Connect, tmp_path: Path, isolated: bool) -> None:
    backend = plugin(isolated=isolated)
    assert (backend.pid == os.getpid()) is not isolated
    probe = backend.probe(deadline=30)
    assert [d.available for d in probe.devices] == [True, False]
    assert probe.versions["numpy"] == np.__version__
    (tmp_path / "source").write_bytes(b"abc")
    (tmp_path / "out").mkdir()
    seen: list[tuple[int, int, str]] = []
    made = backend.convert(
        source=tmp_path / "source", out=tmp_path / "out", format="toy", precision="f16",
        limits=ConvertLimits(max_context=99), on_progress=lambda *report: seen.append(report),
    )  # fmt: skip
    assert made.notes == ("max_context 99",)
    assert made.files[0].role == "model"
    assert (tmp_path / "out" / "model.toy").read_bytes() == b"abc"
    assert seen[0] == (0, 4, "converting")
    assert seen[-1] == (4, 4, "converting")
    samples = backend.benchmark(
        artifact=toy_artifact(tmp_path / "a"), device="cpu", workload=Workload((1, 2, 3), decode=4, repetitions=2)
    )
    assert not samples.native_loop
    assert [len(r.steps) for r in samples.repetitions] == [4, 4]
    assert samples.load > 0
    weights = backend.weights(toy_artifact(tmp_path / "a"))
    assert weights is not None
    assert list(weights) == ["a", "b"]
    assert weights["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(KeyError):
        weights["c"]
    with pytest.raises(CannotDo, match="cannot quantize") as caught:
        backend.quantize(artifact=toy_artifact(tmp_path / "a"), out=tmp_path, precision="f16")
    assert "convert" in caught.value.supported
    assert not backend.has_hook("quantize")
    assert backend.has_hook("convert")


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize("length", [0, -1])
def test_a_context_of_no_tokens_is_refused_before_a_backend_can_take_it_for_its_default(
    plugin: Connect, tmp_path: Path, isolated: bool, length: int
) -> None:
    backend, artifact = plugin(isolated=isolated), toy_artifact(tmp_path)
    with pytest.raises(BadRequest, match=f"context of {length} tokens") as refused:
        backend.open(artifact, device="cpu", context_length=length)
    assert "None" in refused.value.supported
    with pytest.raises(BadRequest, match=f"context of {length} tokens"):
        backend.benchmark(artifact=artifact, device="cpu", workload=Workload((1,), decode=1, context_length=length))
    assert backend.open(artifact, device="cpu").context_length == 4096  # type: ignore[union-attr]


@pytest.mark.parametrize("isolated", [True, False])
def test_a_text_session_is_whole(plugin: Connect, tmp_path: Path, isolated: bool) -> None:
    session = text(plugin(isolated=isolated), tmp_path / "a")
    assert session.tokenize("hé") == [104, 195, 169]
    assert session.detokenize([104, 195, 169]) == "hé"
    assert session.token_bytes(195) == session.token_bytes(195) == b"\xc3"
    assert session.apply_chat([{"role": "user", "content": "x"}]) == "<user>x"
    assert session.encode_chat([{"role": "user", "content": "x"}]) == session.tokenize("<user>x")
    assert (session.context_length, session.vocab_size, session.eos_ids) == (4096, 256, frozenset({0}))
    assert session.placement.share("cpu") == 1
    assert session.conditions == {"device": "cpu", "threads": "1"}
    context = session.context()
    assert context is session.context()
    logits = context.prefill([1, 2])
    assert logits.dtype == np.float32
    assert logits.shape == (256,)
    assert np.argmax(context.step(9)) == 10
    assert list(context.tokens) == [1, 2, 9]
    context.rewind(2)
    assert (context.position, list(context.tokens)) == (1, [1])
    with pytest.raises(BadRequest, match="fewer"):
        context.rewind(9)
    context.reset()
    assert context.position == 0
    rows = np.concatenate(list(session.score(list(range(10)))))
    assert np.argmax(rows, axis=1).tolist() == list(range(1, 11))
    pieces = list(session.generate([ord("a")], max_tokens=4, sampling=GREEDY, stop=["e"]))
    assert "".join(p.text for p in pieces) == "bcd"
    assert pieces[-1].finish == "stop"
    with pytest.raises(DoesNotFit):
        session.generate([1] * 4096, max_tokens=1)
    assert [p.token for p in session.generate([253], sampling=GREEDY)][-1] == 0
    seeded = [[p.token for p in session.generate([7], max_tokens=9, sampling=Sampling(9.0, seed=3))] for _ in "ab"]
    assert seeded[0] == seeded[1]
    session.close()
    session.close()


def test_a_closed_session_says_so(plugin: Connect, tmp_path: Path) -> None:
    session = text(plugin(), tmp_path / "a")
    session.close()
    for call in (lambda: session.tokenize("x"), lambda: session.generate([1]), lambda: session.score([1])):
        with pytest.raises(BadRequest, match="closed"):
            call()


def test_closing_an_owned_session_ends_its_worker(plugin: Connect, tmp_path: Path) -> None:
    backend = plugin()
    session = backend.open(toy_artifact(tmp_path / "a"), device="cpu", owned=True)
    session.close()
    assert not psutil.pid_exists(backend.pid)


@pytest.mark.parametrize(
    "dtype",
    ["float32", "int64", "uint8", "bool", "float16", ">f4", "<U3", "bfloat16", "float8_e4m3fn", "int4", "complex64"],
)
@pytest.mark.parametrize("shape", [(3, 5), (), (0, 4), (300, 400)])
def test_arrays_of_every_type_and_shape_come_back_as_they_went(
    echo: TensorSession, dtype: str, shape: tuple[int, ...]
) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype)) if hasattr(ml_dtypes, dtype) else np.dtype(dtype)
    sent = (np.arange(int(np.prod(shape)), dtype=np.int64) % 7).astype(kind).reshape(shape)
    got = echo({"x": sent})["x"]
    assert got.dtype == sent.dtype
    assert got.shape == shape
    assert got.tobytes() == sent.tobytes()
    assert got.flags.writeable


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TensorSession]:
    folder = tmp_path_factory.mktemp("echo")
    write_plugin(folder / "p", "echo", hooks=ECHO)
    with connect(registry.find(folder / "p")) as backend:
        session = backend.open(toy_artifact(folder / "a", "tensor"), device="cpu")
        assert isinstance(session, TensorSession)
        yield session


ECHO = """
class Echo(Doubler):
    def __call__(self, feeds):
        return dict(feeds)

@hookimpl
def edgecore_run(artifact, device, context_length, threads, options):
    return Echo()
"""


def test_many_large_arrays_at_once_and_growing_ones_keep_their_contents(echo: TensorSession) -> None:
    random = np.random.default_rng(0)
    for size in (10_000, 3_000_000, 40_000, 5_000_000):
        sent = {f"x{i}": random.standard_normal(size).astype(np.float32) for i in range(3)}
        got = echo(sent)
        for name, array in sent.items():
            assert np.array_equal(got[name], array)


def test_arrays_that_are_not_contiguous_and_arrays_of_text_travel(echo: TensorSession) -> None:
    strided = np.arange(400_000, dtype=np.float32).reshape(400, 1000).T[::2]
    texts = np.array([["a", "bé"], ["", "d"]], dtype=object)
    got = echo({"s": strided, "t": texts})
    assert np.array_equal(got["s"], strided)
    assert got["t"].tolist() == texts.tolist()
    with pytest.raises(BadRequest, match="cannot travel"):
        echo({"x": np.array([object()])})
    assert echo({"x": strided})["x"].shape == strided.shape


def test_an_argument_that_cannot_travel_is_the_callers_fault(plugin: Connect, tmp_path: Path) -> None:
    session = text(plugin(), tmp_path / "a")
    knot: list[Any] = []
    knot.append(knot)
    for call in (
        lambda: session.context().step(2**70),
        lambda: session.generate([2**70]),
        lambda: session.token_bytes(object()),  # type: ignore[arg-type]
        lambda: session.apply_chat([{"role": "user", "content": knot}]),  # type: ignore[dict-item]
        lambda: session.tokenize("\ud800"),
    ):
        with pytest.raises(BadRequest):
            call()
    assert session.tokenize("a") == [97]


# ---- streams ----


def test_nothing_is_kept_of_calls_and_streams_that_have_ended(plugin: Connect, tmp_path: Path) -> None:
    session = text(plugin(), tmp_path / "a")
    assert len(list(session.generate([1], max_tokens=3, sampling=GREEDY))) == 4
    assert len(list(session.score([1, 2, 3, 4, 5]))) == 2
    next(session.generate([1], sampling=GREEDY))
    for failing in (lambda: list(session.generate([999])), lambda: session.tokenize("\ud800")):
        with pytest.raises(BadRequest):
            failing()
    gc.collect()
    assert session.tokenize("a") == [97]
    assert session._remote.channel._line.inboxes == {}  # type: ignore[attr-defined]


def test_closing_a_generation_leaves_the_context_where_its_reader_stopped(plugin: Connect, tmp_path: Path) -> None:
    session = text(plugin(), tmp_path / "a")
    stream = session.generate([100], max_tokens=100)
    seen = [next(stream).token for _ in range(5)]
    stream.close()  # type: ignore[attr-defined]
    assert list(session.context().tokens) == [100, *seen[:-1]]
    with pytest.raises(StopIteration):
        next(stream)


def test_a_generation_that_is_dropped_is_cancelled(plugin: Connect, tmp_path: Path) -> None:
    session = text(plugin(), tmp_path / "a", step_seconds=0.01)
    for piece in session.generate([1], sampling=GREEDY):
        if piece.token > 5:
            break
    gc.collect()
    start = time.monotonic()
    assert session.context().position == 5
    assert time.monotonic() - start < 1


def test_what_the_garbage_collector_finds_is_given_back_without_a_deadlock(plugin: Connect, tmp_path: Path) -> None:
    session = text(plugin(), tmp_path / "a")
    gc.disable()
    try:
        for _ in range(20):
            stream = session.generate([1], sampling=GREEDY)
            next(stream)
            knot: list[Any] = [stream]
            knot.append(knot)  # only the collector can free it
            del stream, knot
    finally:
        gc.enable()
    gc.collect()
    assert [p.token for p in session.generate([50], max_tokens=3, sampling=GREEDY)] == [51, 52, 53, -1]


def test_nothing_is_computed_before_the_first_piece_is_asked_for(plugin: Connect, tmp_path: Path) -> None:
    session = text(plugin(), tmp_path / "a")
    session.context().prefill([1, 2, 3])
    stream = session.generate([9], max_tokens=3)
    assert session.context().position == 3
    assert [p.token for p in stream] == [10, 11, 12, -1]


def test_a_second_generation_does_not_meet_the_first_ones_leftovers(plugin: Connect, tmp_path: Path) -> None:
    session = text(plugin(), tmp_path / "a")
    first = session.generate([1], max_tokens=200, sampling=GREEDY)
    next(first)
    assert [p.token for p in session.generate([50], max_tokens=60, sampling=GREEDY)][:-1] == list(range(51, 111))
    first.close()  # type: ignore[attr-defined]
    assert session.context().tokens[0] == 50


def test_other_calls_are_answered_while_an_answer_streams(plugin: Connect, tmp_path: Path) -> None:
    session = text(plugin(), tmp_path / "a")
    tokens = []
    for piece in session.generate([1], max_tokens=150, sampling=GREEDY):
        tokens.append(piece.token)
        if len(tokens) % 40 == 0:
            assert session.context().position >= len(tokens)
            assert session.tokenize("a") == [97]
    assert tokens == [*range(2, 152), -1]


def test_a_slow_reader_bounds_how_far_the_worker_goes(plugin: Connect, tmp_path: Path) -> None:
    session = text(plugin(), tmp_path / "a")
    stream = session.generate([1], sampling=GREEDY)
    next(stream)
    time.sleep(0.3)
    assert session.context().position < 40


# ---- wrappers ----


def test_a_wrapper_sees_every_call_and_an_implementation_among_wrappers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    install_plugin(site, "wrapped")
    (site / "meter_for_test.py").write_text(
        "from edgecore.contract import hookimpl\n"
        "SEEN = []\n"
        "@hookimpl(wrapper=True)\n"
        "def edgecore_probe():\n"
        "    answer = yield\n"
        "    SEEN.append(answer.devices[0].name)\n"
        "    return answer\n"
    )
    (site / "usurper_for_test.py").write_text(
        "from edgecore.contract import hookimpl\n@hookimpl\ndef edgecore_probe():\n    return 'mine'\n"
    )
    points = {"meter": "meter_for_test", "usurper": "usurper_for_test"}
    write_metadata(site, "wrappers", "1", {"edgecore.wrappers": points})
    monkeypatch.syspath_prepend(str(site))
    from edgecore.workers import wrapping

    wrapping._wrappers.cache_clear()
    try:
        with connect(registry.find("wrapped")) as backend, pytest.warns(UserWarning, match="not a wrapper"):
            assert backend.probe().devices[0].name == "cpu"
        assert sys.modules["meter_for_test"].SEEN == ["cpu"]
    finally:
        wrapping._wrappers.cache_clear()
