"""The network gives the oracle's logits for every field of the neutral model, in whatever pieces a sequence comes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgecore.checkpoint import Oracle, open_checkpoint
from edgecore.contract import Artifact, BadRequest, ConvertLimits, EdgecoreError, no_progress
from edgecore_onnxruntime import cache, convert_text, folder, layout, network, runtime
from edgecore_onnxruntime.network import Ids, Network

GOLDENS = Path(__file__).parents[3] / "tests/checkpoint/goldens"
NAMES = sorted(path.parent.name for path in GOLDENS.glob("*/golden.npz"))
LONGROPE = "phi3-longrope-partial"
CLOSE = {"rtol": 1e-3, "atol": 1e-3}
Floats = NDArray[np.float32]


class Case:
    """A golden checkpoint, the network that was made of it, and tokens enough to cross longrope's border."""

    def __init__(self, name: str, out: Path, **changed: Any) -> None:
        self.folder = GOLDENS / name
        with open_checkpoint(self.folder) as model:
            self.decoder = decoder = model.decoder
            convert_text.convert(model, out, "f32", {}, ConvertLimits(), no_progress)
        length = decoder.context_length
        artifact = Artifact(out, "onnxruntime", "text", "onnx-genai", "f32", ())
        self.border = folder.longrope_context(out) if decoder.rope.is_long(length) else 0
        self.network = Network(layout.read(artifact), runtime.session_options(1, changed), length, self.border)
        count = min(length, max(24, self.border + 12))
        self.tokens = np.random.default_rng(1).integers(0, decoder.vocab_size, count)

    def expected(self, count: int) -> Floats:
        """The oracle's logits of every position of the first `count` tokens."""
        with open_checkpoint(self.folder) as model:
            return np.concatenate(list(Oracle(model.decoder, model.tensors).score(self.tokens[:count].tolist())))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    made = Case("grouped-query-tied", tmp_path_factory.mktemp("onnx"))
    yield made
    made.network.close()


@pytest.fixture
def few_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that has to grow in every test."""
    monkeypatch.setattr(cache, "FIRST", 4)


def scored(net: Network, tokens: Ids, chunk: int) -> Floats:
    net.clear()
    pieces = [tokens[start : start + chunk] for start in range(0, len(tokens), chunk)]
    return np.concatenate([net.run(piece, len(piece), len(tokens)).copy() for piece in pieces])


def compare(given: Case) -> None:
    net, tokens, count = given.network, given.tokens, len(given.tokens)
    expected = given.expected(count)
    assert net.vocab_size == given.decoder.vocab_size
    for chunk in (count, 5):
        np.testing.assert_allclose(scored(net, tokens, chunk), expected, **CLOSE)
    np.testing.assert_allclose(net.append(tokens, 0), expected[-1], **CLOSE)
    np.testing.assert_allclose(net.append(tokens[-3:], count - 3), expected[-1], **CLOSE)
    stepped = [net.append(tokens[i : i + 1], i).copy() for i in range(count - 3, count)]
    np.testing.assert_allclose(stepped, expected[-3:], **CLOSE)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("few_positions")
def test_every_family_gives_the_oracles_logits_whole_chunked_and_stepped(name: str, tmp_path: Path) -> None:
    given = Case(name, tmp_path)
    assert given.network.shared
    assert given.network.sliced
    compare(given)
    given.network.close()


@pytest.mark.parametrize("name", ["grouped-query-tied", "mistral-window", "gemma3-old-style"])
def test_a_cache_that_is_handed_on_gives_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_appends_in_place", lambda *_: False)
    given = Case(name, tmp_path)
    assert isinstance(given.network._cache, cache.Handed)
    compare(given)
    given.network.close()


def test_a_long_text_is_turned_otherwise_from_its_beginning(tmp_path: Path) -> None:
    given = Case(LONGROPE, tmp_path)
    net, tokens, border = given.network, given.tokens, given.border
    assert border
    net.append(tokens[:border], 0)
    assert net.usable(border, border) == border
    assert net.usable(border, border + 1) == 0, "the keys of a short text serve no long one"
    across = net.append(tokens[: border + 1], 0, 5)
    np.testing.assert_allclose(across, given.expected(border + 1)[-1], **CLOSE)
    assert net.usable(border, border + 2) == border
    assert net.usable(3, 4) == 0
    net.close()


@pytest.mark.parametrize("shared", [True, False])
def test_what_was_cut_off_leaves_no_trace(shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_appends_in_place", lambda *_: shared)
    given = Case("grouped-query-tied", tmp_path)
    net, tokens = given.network, given.tokens
    net.append(tokens[:10], 0)
    wanted = net.append(tokens[10:14], 10).copy()
    net.append(tokens[:6][::-1], 14)
    assert net.usable(10, 14) == 10
    assert np.array_equal(net.append(tokens[10:14], 10), wanted)
    net.close()


def test_what_was_before_a_clear_leaves_no_trace(llama: Case) -> None:
    net, tokens = llama.network, llama.tokens
    net.clear()
    fresh = net.append(tokens[:9], 0).copy()
    net.append(tokens[9:20], 9)
    assert np.array_equal(net.append(tokens[:9], 0), fresh)


@pytest.mark.parametrize("shared", [True, False])
def test_a_call_that_fails_leaves_the_past_as_it_was(
    shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "_appends_in_place", lambda *_: shared)
    given = Case("grouped-query-tied", tmp_path)
    net, tokens = given.network, given.tokens
    net.append(tokens[:8], 0)
    wanted = net.append(tokens[8:10], 8).copy()
    infer = net._infer

    def stop(when: str) -> None:
        if when == "after":
            infer()
        raise KeyboardInterrupt

    for when in ("before", "after"):
        net.truncate(8)
        monkeypatch.setattr(net, "_infer", lambda when=when: stop(when))
        with pytest.raises(KeyboardInterrupt):
            net.append(tokens[3:7], 8)
        monkeypatch.setattr(net, "_infer", infer)
        assert net.filled == net.usable(8, 10) == 8
        assert np.array_equal(net.append(tokens[8:10], 8), wanted)
    net.close()


def test_a_failure_of_the_runtime_is_typed_and_harms_nothing(llama: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    net, tokens = llama.network, llama.tokens
    wanted = net.append(tokens[:8], 0).copy()
    with monkeypatch.context() as patched:
        patched.setattr(net._cache, "give", lambda *_: (_ for _ in ()).throw(MemoryError("too much")))
        with pytest.raises(EdgecoreError, match="ran out of memory"):
            net.append(tokens[8:9], 8)
    net.truncate(7)
    assert np.array_equal(net.append(tokens[7:8], 7).argmax(), wanted.argmax())


def test_a_prompt_is_computed_in_chunks_of_bounded_size(llama: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    net, tokens = llama.network, llama.tokens
    expected = net.append(tokens, 0).copy()
    sizes: list[int] = []
    run = net._run
    monkeypatch.setattr(net, "_run", lambda ids, rows, long: (sizes.append(len(ids)), run(ids, rows, long))[1])
    np.testing.assert_allclose(net.append(tokens, 0, 10), expected, **CLOSE)
    assert sizes == [10, 10, 4]
    assert net.rows_at_once(4 * net.vocab_size * 3) == 3
    assert net.rows_at_once(1) == 1
    assert net.rows_at_once(1 << 40) == network.CHUNK


def test_only_the_last_positions_have_logits(llama: Case) -> None:
    net, tokens = llama.network, llama.tokens
    net.clear()
    assert net.run(tokens[:8], 1, 8).shape == (1, net.vocab_size)
    assert net.run(tokens[8:16], 3, 16).shape == (3, net.vocab_size)


def test_ids_outside_the_vocabulary_are_refused_and_closing_is_for_good(tmp_path: Path) -> None:
    net = Case("grouped-query-tied", tmp_path).network
    for bad in (-1, net.vocab_size):
        with pytest.raises(BadRequest, match=f"token id {bad}"):
            net.checked([1, bad])
    where = net.placement()
    net.close()
    net.close()
    with pytest.raises(BadRequest, match="closed"):
        net.clear()
    assert net.placement() == where
