"""The network gives the oracle's logits for every field of the neutral model, in whatever pieces a sequence comes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from numpy.typing import NDArray
from openvino import opset13 as ops

from edgecore.checkpoint import Oracle, open_checkpoint
from edgecore.contract import BadRequest, EdgecoreError, UnsupportedModel, no_progress
from edgecore_openvino import graph, ir_file, network
from edgecore_openvino.network import LAST, Ids, Network, slice_hidden

GOLDENS = Path(__file__).parents[3] / "tests/checkpoint/goldens"
NAMES = sorted(path.parent.name for path in GOLDENS.glob("*/golden.npz"))
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "INFERENCE_NUM_THREADS": "1",
}
LONGROPE = "phi3-longrope-partial"
CLOSE = {"rtol": 1e-3, "atol": 2e-3}
Floats = NDArray[np.float32]


class Case:
    """A golden checkpoint, the network that was made of it, and tokens enough to cross longrope's border."""

    def __init__(self, name: str, out: Path, **properties: str) -> None:
        self.folder = GOLDENS / name
        with open_checkpoint(self.folder) as model:
            self.decoder = decoder = model.decoder
            ir_file.write(graph.build(decoder, "f32"), model, out / "openvino_model.xml", no_progress)
        length, rope = decoder.context_length, decoder.rope
        self.border = rope.original_context if rope.is_long(length) else 0
        self.network = Network(out / "openvino_model.xml", "cpu", {**EXACT, **properties}, length, self.border)
        count = min(length, max(24, self.border + 12))
        self.tokens = np.random.default_rng(1).integers(0, decoder.vocab_size, count)

    def expected(self, count: int) -> Floats:
        """The oracle's logits of every position of the first `count` tokens."""
        with open_checkpoint(self.folder) as model:
            return np.concatenate(list(Oracle(model.decoder, model.tensors).score(self.tokens[:count].tolist())))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    made = Case("grouped-query-tied", tmp_path_factory.mktemp("ir"))
    yield made
    made.network.close()


def scored(net: Network, tokens: Ids, chunk: int) -> Floats:
    net.clear()
    pieces = [tokens[start : start + chunk] for start in range(0, len(tokens), chunk)]
    return np.concatenate([net.run(piece, len(piece), len(tokens)).copy() for piece in pieces])


@pytest.mark.parametrize("name", NAMES)
def test_every_family_gives_the_oracles_logits_whole_chunked_and_stepped(name: str, tmp_path: Path) -> None:
    given = Case(name, tmp_path)
    net, tokens, count = given.network, given.tokens, len(given.tokens)
    expected = given.expected(count)
    assert net.sliced
    assert net.vocab_size == given.decoder.vocab_size
    for chunk in (count, 5):
        np.testing.assert_allclose(scored(net, tokens, chunk), expected, **CLOSE)
    np.testing.assert_allclose(net.append(tokens, 0), expected[-1], **CLOSE)
    np.testing.assert_allclose(net.append(tokens[-3:], count - 3), expected[-1], **CLOSE)
    stepped = [net.append(tokens[i : i + 1], i).copy() for i in range(count - 3, count)]
    np.testing.assert_allclose(stepped, expected[-3:], **CLOSE)
    net.close()


def test_the_keys_of_a_longrope_sequence_serve_no_shorter_one(tmp_path: Path) -> None:
    given = Case(LONGROPE, tmp_path)
    net, tokens, border = given.network, given.tokens, given.border
    net.append(tokens[:border], 0)
    assert net.usable(border, border) == border
    assert net.usable(border, border + 1) == 0
    across = net.append(tokens[: border + 1], 0)
    np.testing.assert_allclose(across, given.expected(border + 1)[-1], **CLOSE)
    assert net.usable(border, border + 2) == border
    assert net.usable(3, 4) == 0
    net.close()


@pytest.mark.parametrize("cache", ["f32", "f16", "u8"])
def test_what_was_cut_off_leaves_no_trace(cache: str, tmp_path: Path) -> None:
    given = Case("grouped-query-tied", tmp_path, KV_CACHE_PRECISION=cache)
    net, tokens = given.network, given.tokens
    net.append(tokens[:10], 0)
    wanted = net.append(tokens[10:14], 10).copy()
    net.append(tokens[:6][::-1], 14)
    kept = net.usable(10, 14)
    assert kept == (0 if cache == "u8" else 10)
    again = net.append(tokens[kept:14], kept)
    if cache == "u8":  # Rounded to 8 bits in other pieces.
        np.testing.assert_allclose(again, wanted, atol=0.05 * wanted.std())
    else:
        assert np.array_equal(again, wanted)
    net.close()


def test_what_was_before_a_clear_leaves_no_trace(llama: Case) -> None:
    net, tokens = llama.network, llama.tokens
    net.clear()
    fresh = net.append(tokens[:9], 0).copy()
    net.append(tokens[9:20], 9)
    assert np.array_equal(net.append(tokens[:9], 0), fresh)


def test_a_stopped_computation_leaves_nothing_to_be_used(llama: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    net, tokens = llama.network, llama.tokens
    wanted = net.append(tokens[:8], 0).copy()

    def stop() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(net, "_infer", stop)
        with pytest.raises(KeyboardInterrupt):
            net.append(tokens[8:9], 8)
    assert net.usable(8, 9) == 0
    assert np.array_equal(net.append(tokens[:8], 0), wanted)


def test_a_prompt_is_computed_in_chunks_of_bounded_size(llama: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    net, tokens = llama.network, llama.tokens
    expected = net.append(tokens, 0).copy()
    sizes: list[int] = []
    run = net.run
    monkeypatch.setattr(net, "run", lambda ids, rows, total: (sizes.append(len(ids)), run(ids, rows, total))[1])
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


def test_a_graph_whose_head_is_not_found_runs_as_it_is() -> None:
    ids = ops.parameter([-1, -1], np.int64, name="input_ids")
    model = ov.Model([ops.convert(ids, "f32")], [ids])
    assert not slice_hidden(model)
    assert [port.any_name for port in model.inputs if LAST in port.get_names()] == []


def test_a_graph_without_cache_or_with_other_inputs_is_unsupported(tmp_path: Path) -> None:
    for name in ("input_ids", "pixels"):
        values = ops.parameter([-1, -1], np.int64, name=name)
        values.output(0).set_names({name})
        file = tmp_path / f"{name}.xml"
        ov.save_model(ov.Model([ops.convert(values, "f32")], [values]), file)
        with pytest.raises(UnsupportedModel, match="KV cache" if name == "input_ids" else "pixels"):
            Network(file, "cpu", EXACT, 8)


def test_failures_of_the_runtime_are_typed() -> None:
    assert "smaller -c" in str(network.failed(RuntimeError("std::bad_alloc")))
    assert type(network.failed(RuntimeError("Check 'x' failed"))) is EdgecoreError


def test_ids_outside_the_vocabulary_are_refused_and_closing_is_for_good(tmp_path: Path) -> None:
    net = Case("grouped-query-tied", tmp_path).network
    for bad in (-1, net.vocab_size):
        with pytest.raises(BadRequest, match=f"token id {bad}"):
            net.checked([1, bad])
    net.close()
    net.close()
    with pytest.raises(BadRequest, match="closed"):
        net.clear()
