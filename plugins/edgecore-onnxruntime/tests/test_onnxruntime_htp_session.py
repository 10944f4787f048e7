"""An NPU's text folder as a text backend keeps the contract, on the emulator: the same answers however a text comes,
no position beyond the context, and typed errors for what is damaged or not here."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from edgecore.checkpoint import Oracle, open_checkpoint
from edgecore.contract import (
    GREEDY,
    Artifact,
    BadRequest,
    ConvertLimits,
    CorruptModel,
    DeviceUnavailable,
    DoesNotFit,
    EdgecoreError,
    ModelNotFound,
    PlacementSource,
)
from edgecore_onnxruntime import htp_cache, qnn
from edgecore_onnxruntime.chips import EMULATOR
from edgecore_onnxruntime.htp_folder import DECODE, DESCRIPTION, EMBEDDING, PREFILL, WEIGHTS

from support.divergence import divergence
from support.tiny import TEXT, tiny_llama

CONTEXT, CHUNK = 32, 8
emulated = pytest.mark.skipif(bool(qnn.missing(EMULATOR)), reason="onnxruntime-qnn is not here")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return tiny_llama(folder, layers=1, hidden=64, intermediate=64, heads=2, kv_heads=1, context=64)


@pytest.fixture(scope="module")
def made(onnxruntime: Any, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("models") / "htp"
    limits = ConvertLimits(max_context=CONTEXT, prefill_chunk=CHUNK)
    files = onnxruntime.convert(source, out, format="onnx-htp", limits=limits).files
    return Artifact(out, "onnxruntime", "text", "onnx-htp", "f16", files)


@pytest.fixture(scope="module")
def opened(onnxruntime: Any, made: Artifact) -> Iterator[Any]:
    with onnxruntime.run(made, device=EMULATOR, compile_cache=False) as session:
        yield session


@pytest.fixture
def session(opened: Any) -> Any:
    opened.context().reset()
    return opened


def copied(artifact: Artifact, to: Path) -> Artifact:
    """The artifact's folder, to be damaged."""
    shutil.copytree(artifact.path, to)
    return dataclasses.replace(artifact, path=to)


@emulated
def test_every_way_to_a_position_gives_the_oracles_logits(session: Any, source: Path) -> None:
    tokens = session.tokenize(TEXT)[:CONTEXT]
    with open_checkpoint(source) as model:
        wanted = np.concatenate(list(Oracle(model.decoder, model.tensors).score(tokens)))
    scored = list(session.score(tokens))
    assert [len(rows) for rows in scored] == [CHUNK] * (CONTEXT // CHUNK)
    assert divergence(wanted, np.concatenate(scored)).mean() < 1e-4  # the gate for float16
    context = session.context()
    for cuts in ([CONTEXT], [CHUNK, 19, 5], [13, *[1] * 3, 16]):
        context.reset()
        ends = np.cumsum(cuts)
        found = [context.prefill(tokens[end - count : end]) for end, count in zip(ends, cuts, strict=True)]
        assert divergence(wanted[ends - 1], np.stack(found)).max() < 4e-4
        assert list(context.tokens) == tokens[: sum(cuts)]


@emulated
def test_a_full_context_takes_no_more_and_loses_nothing(session: Any) -> None:
    context, tokens = session.context(), session.tokenize(TEXT)[:CONTEXT]
    context.prefill(tokens[:-3])
    with pytest.raises(DoesNotFit, match="4 tokens after 29; the context holds 32"):
        context.prefill([5, 6, 7, 8])
    filled = context.prefill(tokens[-3:])  # of the chunk that these are part of the rest lies behind the context
    with pytest.raises(DoesNotFit):
        context.step(5)
    context.rewind(3)
    assert np.array_equal(context.prefill(tokens[-3:]), filled)


@emulated
def test_what_was_forgotten_leaves_no_trace(session: Any) -> None:
    context = session.context()
    fresh = context.prefill([5, 6, 7])
    context.prefill(list(range(10, 30)))
    context.rewind(22)
    assert list(context.tokens) == [5]
    assert np.array_equal(context.prefill([6, 7]), _after_one(session, [5, 6, 7]))
    context.reset()
    assert np.array_equal(context.prefill([5, 6, 7]), fresh)
    with pytest.raises(BadRequest):
        context.rewind(4)


def _after_one(session: Any, tokens: list[int]) -> Any:
    """The last logits where the first token came alone, then the others together."""
    session.context().reset()
    session.context().prefill(tokens[:1])
    return session.context().prefill(tokens[1:])


@emulated
def test_a_failure_leaves_the_cache_as_it_was(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    context = session.context()
    context.prefill([5, 6, 7])
    graphs = context.network._graphs
    with monkeypatch.context() as broken:
        broken.setattr(graphs[1], "session", None)
        broken.setattr(type(graphs[1]), "compute", lambda self: (_ for _ in ()).throw(EdgecoreError("no")))
        with pytest.raises(EdgecoreError):
            context.step(8)
        with pytest.raises(EdgecoreError):
            context.prefill([8, 9, 10])
    assert list(context.tokens) == [5, 6, 7]
    found = context.step(8)
    context.reset()
    context.prefill([5, 6, 7])
    assert np.array_equal(context.step(8), found)


@emulated
def test_an_answer_is_generated_within_the_context(session: Any) -> None:
    prompt = session.tokenize("The lighthouse")
    pieces = list(session.generate(prompt, max_tokens=4, sampling=GREEDY))
    again = list(session.generate(prompt, max_tokens=4, sampling=GREEDY))
    assert pieces == again
    assert 1 <= len([piece for piece in pieces if piece.token >= 0]) <= 4
    with pytest.raises(DoesNotFit):
        list(session.generate(prompt, max_tokens=CONTEXT, sampling=GREEDY))


@emulated
def test_a_session_says_where_it_runs_and_on_what_terms(onnxruntime: Any, made: Artifact, session: Any) -> None:
    assert session.placement.source is PlacementSource.RUNTIME_ASSIGNMENT
    assert session.placement.operators == {EMULATOR: 1.0}
    stated = {"device": EMULATOR, "threads": "unknown", "context": str(CONTEXT), "compute": "f16", "kv_cache": "f16"}
    assert session.conditions == stated
    assert session.context_length == CONTEXT
    with onnxruntime.run(dataclasses.replace(made, precision=""), device=EMULATOR) as native:
        assert native.conditions == stated
    for wrong in ([session.vocab_size], [-1], [0.5]):
        with pytest.raises(BadRequest):
            session.context().prefill(wrong)


@emulated
def test_a_shorter_context_is_a_limit_and_a_longer_one_is_refused(onnxruntime: Any, made: Artifact) -> None:
    with pytest.raises(DoesNotFit, match="the graphs were made for 32"):
        onnxruntime.run(made, CONTEXT + 1, device=EMULATOR)
    with onnxruntime.run(made, 4, device=EMULATOR) as short:
        short.context().prefill([5, 6, 7, 8])
        with pytest.raises(DoesNotFit):
            short.context().step(9)
    with pytest.raises(BadRequest, match="closed"):
        short.context()


def test_a_cpu_is_refused_and_an_npu_that_is_not_here(onnxruntime: Any, made: Artifact) -> None:
    with pytest.raises(DeviceUnavailable, match="fixed for an NPU"):
        onnxruntime.run(made, device="cpu")
    if qnn.missing("npu"):
        with pytest.raises(DeviceUnavailable, match="npu is not here"):
            onnxruntime.run(made, device="npu")


@emulated
def test_what_was_compiled_is_kept_for_the_next_time(
    onnxruntime: Any, made: Artifact, session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECORE_HOME", str(tmp_path / "home"))
    tokens = session.tokenize(TEXT)[:CHUNK]
    wanted = session.context().prefill(tokens)
    onnxruntime.run(made, device=EMULATOR).close()
    with monkeypatch.context() as without:
        without.setattr(ort, "ModelCompiler", None)
        with onnxruntime.run(made, device=EMULATOR) as again:
            assert np.array_equal(again.context().prefill(tokens), wanted)
    binaries = list((tmp_path / "home").rglob("*.bin"))
    assert len(binaries) == 2
    for damage in (lambda kept: b"damaged", lambda kept: kept[:-4096] + bytes(4096)):
        onnxruntime.run(made, device=EMULATOR).close()
        for binary in binaries:
            binary.write_bytes(damage(binary.read_bytes()))
        with onnxruntime.run(made, device=EMULATOR) as mended:
            assert np.array_equal(mended.context().prefill(tokens), wanted)
        assert not any(binary.exists() for binary in binaries), "QNN loads what is damaged and answers otherwise"


def test_of_what_is_kept_the_least_recently_used_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ages = {"newest": 0, "older": 1, "oldest": 2, "making-by-another": 9, "making-by-one-that-was-killed": 200000}
    for name, age in ages.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "graph.bin").write_bytes(bytes(10))
        os.utime(tmp_path / name, (1e6 - age, 1e6 - age))
    monkeypatch.setattr(htp_cache, "MOST", 20)
    htp_cache._prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["making-by-another", "newest", "older"]
    monkeypatch.setattr(htp_cache, "MOST", 5)
    htp_cache._prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["making-by-another", "newest"]


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _say(folder: Path, **values: Any) -> None:
    said = json.loads((folder / DESCRIPTION).read_text())
    (folder / DESCRIPTION).write_text(json.dumps(said | values))


def _turn(folder: Path, **values: Any) -> None:
    _say(folder, turnings=[turning | values for turning in json.loads((folder / DESCRIPTION).read_text())["turnings"]])


DAMAGES: dict[str, tuple[Callable[[Path], object], type[EdgecoreError]]] = {
    "no prefill": (lambda folder: (folder / PREFILL).unlink(), ModelNotFound),
    "no decode": (lambda folder: (folder / DECODE).unlink(), ModelNotFound),
    "no table": (lambda folder: (folder / EMBEDDING).unlink(), ModelNotFound),
    "no description": (lambda folder: (folder / DESCRIPTION).unlink(), ModelNotFound),
    "half a graph": (lambda folder: _cut(folder / DECODE), CorruptModel),
    "half a table": (lambda folder: _cut(folder / EMBEDDING), CorruptModel),
    "half a description": (lambda folder: _cut(folder / DESCRIPTION), CorruptModel),
    "a list for a description": (lambda folder: (folder / DESCRIPTION).write_text("[]"), CorruptModel),
    "another version": (lambda folder: _say(folder, version=2), CorruptModel),
    "no layers": (lambda folder: _say(folder, layers=0), CorruptModel),
    "more layers than there are": (lambda folder: _say(folder, layers=10**9), CorruptModel),
    "a context that no memory holds": (lambda folder: _say(folder, context=10**7), CorruptModel),
    "a scale that is no number": (lambda folder: _say(folder, embedding_scale=float("nan")), CorruptModel),
    "a scale of nothing": (lambda folder: _say(folder, embedding_scale=0), CorruptModel),
    "a mask that hides nothing": (lambda folder: _say(folder, masked=0), CorruptModel),
    "a window of less than nothing": (lambda folder: _say(folder, masks={"mask": -5}), CorruptModel),
    "a table of another type": (lambda folder: _say(folder, embedding_type="int8"), CorruptModel),
    "a frequency beyond floats": (lambda folder: _turn(folder, frequencies=[1e308] * 16), CorruptModel),
    "a frequency of text": (lambda folder: _turn(folder, frequencies=["1"] * 16), CorruptModel),
    "a frequency too few": (lambda folder: _turn(folder, frequencies=[1.0] * 15), CorruptModel),
    "another context": (lambda folder: _say(folder, context=16), CorruptModel),
    "another mask": (lambda folder: _say(folder, masks={"mask_window": 4}), CorruptModel),
    "a turning of text": (lambda folder: _say(folder, turnings=["cos"]), CorruptModel),
    "one graph for both": (lambda folder: shutil.copy(folder / DECODE, folder / PREFILL), CorruptModel),
}


@emulated
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_by_name(onnxruntime: Any, made: Artifact, tmp_path: Path, damage: str) -> None:
    broken = copied(made, tmp_path / "broken")
    spoil, error = DAMAGES[damage]
    spoil(broken.path)
    with pytest.raises(error, match=str(broken.path)):
        onnxruntime.run(broken, device=EMULATOR, compile_cache=False)


@emulated
@pytest.mark.parametrize("spoil", [_cut, Path.unlink])
def test_weights_that_are_not_there_are_not_hidden_by_what_was_kept(
    onnxruntime: Any, made: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]
) -> None:
    monkeypatch.setenv("EDGECORE_HOME", str(tmp_path / "home"))
    broken = copied(made, tmp_path / "broken")
    onnxruntime.run(broken, device=EMULATOR).close()
    spoil(broken.path / WEIGHTS)
    with pytest.raises((CorruptModel, ModelNotFound)):
        onnxruntime.run(broken, device=EMULATOR)
