"""The decoder gives the oracle's logits for every field of the neutral model, in whatever pieces a sequence comes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from edgecore.checkpoint import Oracle, open_checkpoint
from edgecore.contract import UnsupportedModel
from edgecore_mlx import cache, loading
from edgecore_mlx.decoder import Model
from edgecore_mlx.loading import Kept
from edgecore_mlx.matrices import Dense, Packed, Split, split
from edgecore_mlx.network import Network

from support.divergence import divergence, some_tokens

GOLDENS = Path(__file__).parents[3] / "tests/checkpoint/goldens"
NAMES = sorted(path.parent.name for path in GOLDENS.glob("*/golden.npz"))
LLAMA, LONGROPE, TERNARY = "grouped-query-tied", "phi3-longrope-partial", "bitnet-packed"
CPU = Kept(mx.float32, turned=True)
CLOSE = 1e-9
"""KL of the worst position, of computing the same in float32 twice."""
Floats = NDArray[np.float32]


class Case:
    """A folder, the network that was made of it, and tokens enough to cross longrope's border."""

    def __init__(self, folder: Path, kept: Kept = CPU, kv: Mapping[str, Any] | None = None, **more: Any) -> None:
        self.folder = folder
        found = loading.find(folder)
        assert found is not None
        self.decoder = d = found.decoder
        self.loaded = loading.load(found, kept)
        self.border = d.rope.original_context if d.rope.is_long(d.context_length) else 0
        self.model = Model(d, self.loaded.matrices, self.loaded.vectors, kv=kv)
        self.network = Network(self.model, "cpu", self.border, **more)
        count = min(d.context_length, max(24, self.border + 12))
        self.tokens = np.array(some_tokens(d, count))

    def expected(self, count: int, folder: Path | None = None) -> Floats:
        """The oracle's logits of every position of the first `count` tokens."""
        with open_checkpoint(folder or self.folder) as model:
            return np.concatenate(list(Oracle(model.decoder, model.tensors).score(self.tokens[:count].tolist())))

    def scored(self, chunk: int) -> Floats:
        self.network.clear()
        pieces = [self.tokens[start : start + chunk] for start in range(0, len(self.tokens), chunk)]
        return np.concatenate([self.network.run(piece, len(self.tokens)) for piece in pieces])


def far(wanted: Floats, found: Floats) -> float:
    return float(divergence(np.atleast_2d(wanted), np.atleast_2d(found)).max())


@pytest.mark.parametrize("name", NAMES)
def test_every_family_gives_the_oracles_logits_whole_chunked_and_stepped(name: str) -> None:
    given = Case(GOLDENS / name)
    network, tokens, count = given.network, given.tokens, len(given.tokens)
    expected = given.expected(count)
    for chunk in (count, 5):
        assert far(expected, given.scored(chunk)) < CLOSE
    assert far(expected[-1], network.append(tokens, 0)) < CLOSE
    assert far(expected[-1], network.append(tokens[-3:], count - 3)) < CLOSE
    stepped = [network.append(tokens[i : i + 1], i) for i in range(count - 3, count)]
    assert far(expected[-3:], np.stack(stepped)) < CLOSE


@pytest.mark.parametrize("name", NAMES)
def test_every_family_gives_transformers_logits(name: str) -> None:
    given = Case(GOLDENS / name)
    golden = np.load(GOLDENS / name / "golden.npz")
    found = given.network.run(golden["tokens"], len(golden["tokens"]))
    assert far(golden["logits"], found) < 1e-6


def test_a_text_that_grows_past_longropes_border_is_turned_anew() -> None:
    given = Case(GOLDENS / LONGROPE)
    network, tokens, border = given.network, given.tokens, given.border
    network.append(tokens[:border], 0)
    assert network.usable(border, border) == border
    assert network.usable(border, border + 1) == 0  # every key was turned for a short text
    grown = network.append(tokens[: border + 1], 0)
    assert far(given.expected(border + 1)[-1], grown) < CLOSE
    assert network.usable(border - 4, border - 3) == 0
    again = network.append(tokens[: border - 3], 0)
    assert far(given.expected(border - 3)[-1], again) < CLOSE


@pytest.mark.parametrize("name", [LLAMA, LONGROPE, "gemma3-old-style", TERNARY, "qwen2-biases"])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=["bf16", "f16"])
def test_numbers_of_a_gpu_lose_little(name: str, dtype: mx.Dtype) -> None:
    """The way that a GPU computes, in matrices as they lie in the folder; here on the CPU."""
    given = Case(GOLDENS / name, Kept(dtype))
    assert {array.dtype for array in given.loaded.vectors.values()} == {dtype}
    assert divergence(given.expected(20), given.scored(7)[:20] if given.border == 0 else given.network.run(
        given.tokens[:20], 20
    )).mean() < 0.02  # fmt: skip


def test_ternary_weights_stay_two_bits_and_exact() -> None:
    given = Case(GOLDENS / TERNARY)
    matrices = given.loaded.matrices
    projections = {name: matrix for name, matrix in matrices.items() if name.endswith("_proj")}
    assert projections
    assert all(isinstance(matrix, Packed) and matrix.bits == 2 for matrix in projections.values())
    down = matrices["model.layers.0.mlp.down_proj"]
    assert isinstance(down, Packed)
    with open_checkpoint(given.folder) as model:
        assert np.array_equal(np.array(down.numbers()), model.tensors["model.layers.0.mlp.down_proj.weight"].read())


def test_matrices_with_one_input_are_one() -> None:
    matrices = Case(GOLDENS / LLAMA).loaded.matrices
    first = sorted(name for name in matrices if name.startswith("model.layers.0."))
    assert [name.rpartition(".")[2] for name in first] == ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]


PACKINGS = [("affine", bits, 32) for bits in (2, 3, 4, 5, 6, 8)] + [
    ("mxfp4", 4, 32),
    ("mxfp8", 8, 32),
    ("nvfp4", 4, 16),
]


def pack(source: Path, out: Path, mode: str, bits: int, group: int, *, but: str = "") -> Path:
    """A folder as mlx_lm writes it, packed where rows divide, and `out`-plain, the numbers that it stands for.

    but: a module that config.json names with 8 bits in groups of 32.
    """
    plain = out.with_name(out.name + "-plain")
    for folder in (out, plain):
        shutil.copytree(source, folder)
    weights = mx.load(str(source / "model.safetensors"))
    assert isinstance(weights, dict)
    packed, numbers = {}, {}
    said: dict[str, Any] = {"group_size": group, "bits": bits, "mode": mode}
    for name, weight in weights.items():
        weight = weight.astype(mx.float32)
        path = name.removesuffix(".weight")
        how = {"group_size": 32, "bits": 8, "mode": "affine"} if path == but else dict(said) if weight.ndim == 2 else {}
        if not how or weight.shape[1] % how["group_size"]:
            packed[name] = numbers[name] = weight
            continue
        how = {key: how[key] for key in ("group_size", "bits", "mode")}
        levels, scales, *biases = mx.quantize(weight, **how)
        packed |= {name: levels, f"{path}.scales": scales} | ({f"{path}.biases": biases[0]} if biases else {})
        numbers[name] = mx.dequantize(levels, scales, *biases, **how).astype(mx.float32)
        if path == but:
            said[path] = how
    mx.save_safetensors(str(out / "model.safetensors"), packed, {"format": "mlx"})
    mx.save_safetensors(str(plain / "model.safetensors"), numbers, {"format": "mlx"})
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"quantization": said, "quantization_config": said}))
    return plain


@pytest.mark.parametrize(("mode", "bits", "group"), PACKINGS)
def test_packed_matrices_stay_packed_and_mean_what_mlx_means(mode: str, bits: int, group: int, tmp_path: Path) -> None:
    plain = pack(GOLDENS / LLAMA, tmp_path / "packed", mode, bits, group)
    given = Case(tmp_path / "packed")
    matrix = given.loaded.matrices["model.layers.0.self_attn.qkv_proj"]
    assert isinstance(matrix, Packed)
    assert (matrix.mode, matrix.bits, matrix.group_size) == (mode, bits, group)
    expected = given.expected(24, plain)
    assert far(expected, given.scored(24)) < CLOSE
    assert far(expected, Case(tmp_path / "packed", Kept(mx.float32, True, unpacked=True)).scored(5)) < CLOSE


@pytest.mark.parametrize("name", [LONGROPE, "gemma3-old-style", "multi-head-untied-bf16"])
def test_a_matrix_that_the_config_names_is_packed_in_its_own_way(name: str, tmp_path: Path) -> None:
    but = "model.layers.0.self_attn.o_proj"
    plain = pack(GOLDENS / name, tmp_path / "packed", "affine", 4, 32, but=but)
    given = Case(tmp_path / "packed")
    matrix = given.loaded.matrices[but]
    assert isinstance(matrix, Packed)
    assert matrix.bits == 8
    expected = given.expected(len(given.tokens), plain)
    assert far(expected, given.scored(len(given.tokens))) < CLOSE


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["gemma3-old-style", "gemma3-new-style-soft-caps"])
def test_a_packed_cache_is_what_packing_each_position_makes_of_it(
    name: str, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"bits": bits, "group_size": 32}
    given = Case(GOLDENS / name, kv=how)
    tokens, found = given.tokens, given.scored(5)
    given.network.append(tokens, 0)
    rewound = given.network.append(tokens[-3:], len(tokens) - 3)
    plain = Case(GOLDENS / name)
    put = cache.Cache.put

    def rounded(self: cache.Cache, layer: int, keys: mx.array, values: mx.array, window: int = 0) -> Any:
        keys, values = (mx.dequantize(*mx.quantize(new, **how), **how) for new in (keys, values))
        return put(self, layer, keys, values, window)

    monkeypatch.setattr(cache.Cache, "put", rounded)
    expected = plain.scored(5)
    assert far(expected, found) < 1e-7
    assert far(found[-1], rewound) < CLOSE
    assert far(plain.expected(len(tokens)), found) > 1e-7  # what it costs


def test_the_cache_grows_and_shrinks_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "STEP", 4)
    given = Case(GOLDENS / LLAMA)
    network, tokens = given.network, given.tokens
    expected = given.expected(24)
    for keep, stop in ((0, 3), (3, 4), (4, 5), (2, 9), (8, 24)):
        assert far(expected[stop - 1], network.append(tokens[keep:stop], keep)) < CLOSE
    kept = given.model.new_cache()
    given.model(mx.array(tokens[:9]), kept)
    assert [array.shape[2] for array in kept.arrays] == [12] * 2 * given.decoder.layers


def test_a_prefill_in_steps_is_the_prefill_at_once() -> None:
    given = Case(GOLDENS / LLAMA, chunk=5)
    assert [len(piece) for piece in given.network.pieces(given.tokens)] == [5, 5, 5, 5, 4]
    assert far(given.expected(24)[-1], given.network.append(given.tokens, 0)) < CLOSE


def test_logits_of_the_last_positions_alone_are_those_of_all() -> None:
    given = Case(GOLDENS / LLAMA)
    tokens = mx.array(given.tokens)
    whole = np.array(given.model(tokens, given.model.new_cache()))
    last = np.array(given.model(tokens, given.model.new_cache(), 3))
    assert last.shape == (3, given.decoder.vocab_size)
    assert far(whole[-3:], last) < CLOSE


@pytest.mark.parametrize("kind", ["turned", "plain", "packed"])
def test_streams_share_a_matrix(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgecore_mlx.matrices.SMALL", 0)
    weight = mx.random.normal((37, 64), key=mx.random.key(1))
    whole = Dense(mx.contiguous(weight.T), turned=True) if kind == "turned" else Dense(weight)
    matrix = Packed(*mx.quantize(weight, group_size=32, bits=4), 32, 4) if kind == "packed" else whole
    parted = split(matrix, tuple(mx.new_thread_local_stream(mx.cpu) for _ in range(2)))
    assert isinstance(parted, Split)
    assert [part.rows for part in parted.parts] == [12, 12, 13]
    assert parted.rows == 37
    x, ids = mx.random.normal((1, 3, 64), key=mx.random.key(2)), mx.array([0, 11, 12, 24, 36])
    np.testing.assert_allclose(np.array(parted.product(x)), np.array(matrix.product(x)), rtol=1e-5, atol=1e-5)
    assert np.array_equal(np.array(parted.lookup(ids)), np.array(matrix.lookup(ids)))
    assert split(matrix, ()) is matrix


def test_a_folder_of_another_architecture_is_not_ours(tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(GOLDENS / LLAMA, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    assert loading.find(folder) is None
    (folder / "config.json").write_text(json.dumps(config | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}))
    with pytest.raises(UnsupportedModel, match="yarn"):
        loading.find(folder)
