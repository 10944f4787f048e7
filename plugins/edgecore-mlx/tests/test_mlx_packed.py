"""Blocks of a GGUF file become MLX's packed groups without losing a bit; what MLX cannot hold so is dequantized."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import pytest

from edgecore.checkpoint import open_checkpoint
from edgecore.checkpoint.storage import GGML, dequantize
from edgecore.contract import Artifact, CorruptModel, Made, UnsupportedPrecision
from edgecore_conformance.fixtures import random_models
from edgecore_mlx import folder, packed
from edgecore_mlx.recipe import Packing
from edgecore_mlx.weights import dequantized

from support.gguf_files import write_gguf
from support.tiny import tiny_llama

BITS = {"Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8}


def as_gguf(source: Path, out: Path, storage: str) -> Path:
    with open_checkpoint(source) as model:
        return write_gguf(model, out, storage)


def weights_of(out: Path, made: Made) -> Any:
    return dequantized(Artifact(out, "mlx", "text", "mlx", "f16", made.files, id="x"))


@pytest.mark.parametrize("precision", ["f16", "f32"])
@pytest.mark.parametrize("storage", BITS)
def test_every_kind_of_block_keeps_every_bit(
    mlx: Any, tiny: Path, tmp_path: Path, storage: str, precision: str
) -> None:
    """Rows of q and k change places: a GGUF file has them in another order."""
    source, out = as_gguf(tiny, tmp_path / "tiny.gguf", storage), tmp_path / "out"
    made = mlx.convert(source, out, precision)
    with open_checkpoint(source) as model:
        assert any(tensor.order is not None for tensor in model.tensors.values())
        weights = weights_of(out, made)
        assert list(weights) == list(model.tensors)
        for name, tensor in model.tensors.items():
            assert np.array_equal(weights[name], tensor.read()), name
    stored = folder.tensors(out)
    matrices = [name.removesuffix(".scales") for name in stored if name.endswith(".scales")]
    assert len(matrices) == 15  # the table too
    assert {stored[f"{m}.{kind}"].dtype for m in matrices for kind in ("scales", "biases")} == {precision.upper()}
    size = {"f16": 16, "f32": 32}[precision]
    assert made.weights.eligible_bits_per_weight == BITS[storage] + 2 * size / 32
    assert made.notes[0] == f"matrices kept packed as they were, nothing lost: 15 of {storage}"
    assert "dequantized" not in " ".join(made.notes)
    said = json.loads((out / "config.json").read_text())
    assert said["quantization"] == said["quantization_config"] == Packing(BITS[storage], 32).config()


@pytest.mark.parametrize("storage", packed.BLOCKS)
def test_level_scale_and_bias_of_any_block_give_its_numbers(storage: str) -> None:
    """Of random bits, but for scales, which are numbers."""
    kind = next(k for k in GGML.values() if k.name == storage)
    random, block = np.random.default_rng(3), packed.BLOCKS[storage]
    stored = random.integers(0, 256, (300, kind.size), np.uint8)
    for at in kind.scales:
        stored[:, at : at + 2] = random.standard_normal((300, 1)).astype("<f2").view(np.uint8)
    group = block.packing.group_size
    levels = block.levels(stored).reshape(300, -1, group).astype(np.float32)
    assert levels.max() < 1 << block.packing.bits
    found = block.scales(stored)[..., None] * levels + block.biases(stored)[..., None]
    assert np.array_equal(found.reshape(300, -1), dequantize(kind, stored))


@pytest.mark.parametrize("family", ["gemma3", "phi3", "bitnet"])
def test_fused_matrices_and_families_of_their_own_names_keep_theirs(mlx: Any, tmp_path: Path, family: str) -> None:
    source, out = as_gguf(random_models.family(family), tmp_path / "it.gguf", "Q8_0"), tmp_path / "out"
    made = mlx.convert(source, out, "f32")
    with open_checkpoint(source) as model:
        weights = weights_of(out, made)
        for name, tensor in model.tensors.items():
            assert np.array_equal(weights[name], tensor.read()), name
    if family == "phi3":
        assert folder.tensors(out)["model.layers.0.self_attn.qkv_proj.weight"].dtype == "U32"


def test_types_differ_by_matrix_and_config_names_those_that_are_not_the_commonest(
    mlx: Any, tiny: Path, tmp_path: Path
) -> None:
    """As llama.cpp mixes them; of a type that MLX cannot hold come plain numbers."""
    kinds = {"token_embd": "Q8_0", "blk.1.ffn_down": "Q6_K", "blk.0.attn_v": "Q5_0", "blk.0.ffn_up": "BF16"}
    kinds |= {"blk.0.attn_k": "Q4_K", "blk.1.ffn_gate": "TQ2_0"}
    source, out = mixed(tiny, tmp_path / "mixed.gguf", kinds, "Q4_1"), tmp_path / "out"
    made = mlx.convert(source, out)
    quantization = json.loads((out / "config.json").read_text())["quantization"]
    assert quantization == Packing(4, 32).config() | {
        "model.embed_tokens": Packing(8, 32).config(),
        "model.layers.0.self_attn.v_proj": Packing(5, 32).config(),
        "model.layers.1.mlp.gate_proj": Packing(2, 128).config(),
    }
    stored = folder.tensors(out)
    assert stored["model.layers.1.mlp.down_proj.weight"].dtype == "F16"
    assert stored["model.layers.0.mlp.up_proj.weight"].dtype == "F16"
    assert made.notes[0].endswith("1 of Q8_0, 9 of Q4_1, 1 of Q5_0, 1 of TQ2_0")
    assert made.notes[1].startswith("dequantized from Q4_K, Q6_K:")
    wide = mlx.convert(source, tmp_path / "wide", "f32")
    assert folder.tensors(tmp_path / "wide")["model.layers.0.self_attn.k_proj.scales"].dtype == "F32"
    assert wide.notes[1].startswith("dequantized from Q6_K:")
    with open_checkpoint(source) as model:
        weights = weights_of(tmp_path / "wide", wide)
        assert all(np.array_equal(weights[name], tensor.read()) for name, tensor in model.tensors.items())


def test_a_fused_matrix_of_parts_in_different_types_is_dequantized(mlx: Any, tmp_path: Path) -> None:
    source = as_gguf(random_models.family("phi3"), tmp_path / "phi3.gguf", "Q8_0")
    with open_checkpoint(source) as model:
        entries = [packed.Entry("model.layers.0.self_attn.qkv_proj.weight", "F16", (512, 256), lambda: iter([]))]
        assert packed.keep(model, entries, "f16").kinds == {"model.layers.0.self_attn.qkv_proj": "Q8_0"}
        other = model.tensors["model.norm.weight"].type
        part = model.tensors["model.layers.0.self_attn.k_proj.weight"]
        model.tensors = {**model.tensors, part.name: replace(part, type=other)}
        kept = packed.keep(model, entries, "f16")
    assert (kept.entries, kept.kinds) == (entries, {})


def test_bfloat16_would_round_scales_so_it_gets_numbers(mlx: Any, tiny: Path, tmp_path: Path) -> None:
    source = as_gguf(tiny, tmp_path / "tiny.gguf", "Q4_1")
    made = mlx.convert(source, tmp_path / "out", "bf16")
    assert {array.dtype for array in folder.tensors(tmp_path / "out").values()} == {"BF16"}
    assert made.notes[0].startswith("dequantized from Q4_1:")


def test_the_option_dequantizes(mlx: Any, tiny: Path, tmp_path: Path) -> None:
    source = as_gguf(tiny, tmp_path / "tiny.gguf", "Q8_0")
    made = mlx.convert(source, tmp_path / "out", packed=False)
    assert {array.dtype for array in folder.tensors(tmp_path / "out").values()} == {"F16"}
    assert "quantization" not in json.loads((tmp_path / "out/config.json").read_text())
    assert made.weights.bits_per_weight == 16


def test_a_scale_whose_bias_float16_cannot_hold_is_refused_with_what_can(mlx: Any, tmp_path: Path) -> None:
    """128 times a scale of 512 is more than 65504."""
    source = as_gguf(tiny_llama(tmp_path / "hf"), tmp_path / "tiny.gguf", "Q8_0")
    poke(source, "blk.0.ffn_up.weight", np.array([512.0], "<f2"))
    with pytest.raises(UnsupportedPrecision, match=r"layers\.0\.mlp\.up_proj") as caught:
        mlx.convert(source, tmp_path / "out")
    assert caught.value.supported == "f32, or -O packed=false"
    assert not list((tmp_path / "out").iterdir())
    assert mlx.convert(source, tmp_path / "f32", "f32").weights
    assert mlx.convert(source, tmp_path / "loose", packed=False).weights


def test_a_scale_that_is_no_number_is_corrupt(mlx: Any, tmp_path: Path) -> None:
    source = as_gguf(tiny_llama(tmp_path / "hf"), tmp_path / "tiny.gguf", "Q4_1")
    poke(source, "blk.0.ffn_up.weight", np.array([np.nan], "<f2"))
    with pytest.raises(CorruptModel, match=r"layers\.0\.mlp\.up_proj"):
        mlx.convert(source, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_levels_are_packed_as_mlx_packs_them(bits: int) -> None:
    levels = np.random.default_rng(bits).integers(0, 1 << bits, (6, 64)).astype(np.uint8)
    words = packed.pack(levels, bits).view("<u4")
    with mx.stream(mx.cpu):
        ones, zeros = mx.ones((6, 2)), mx.zeros((6, 2))
        found = np.array(mx.dequantize(mx.array(words), ones, zeros, group_size=32, bits=bits))
    assert np.array_equal(found, levels)


def mixed(source: Path, out: Path, kinds: dict[str, str], others: str) -> Path:
    """A GGUF file of several types; of those that the gguf package does not quantize to, random bits."""
    plain = as_gguf(source, out.with_suffix(".f32"), "F32")
    reader = gguf.GGUFReader(plain)
    writer = gguf.GGUFWriter(out, "llama")
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            sub = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub)
    for tensor in reader.tensors:
        wanted = kinds.get(tensor.name.removesuffix(".weight"), others if len(tensor.shape) > 1 else "F32")
        kind = gguf.GGMLQuantizationType[wanted]
        if wanted in ("Q4_K", "Q6_K"):
            size, scales = {"Q4_K": (144, (0, 2)), "Q6_K": (210, (208,))}[wanted]
            data = np.random.default_rng(1).integers(
                0, 256, (tensor.data.shape[0] * tensor.data.shape[1] // 256, size), np.uint8
            )
            for at in scales:
                data[:, at : at + 2] = np.float16(0.01).reshape(1).view(np.uint8)
            data = data.reshape(tensor.data.shape[0], -1)
        else:
            data = gguf.quants.quantize(np.ascontiguousarray(tensor.data), kind)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def poke(file: Path, tensor: str, scale: np.ndarray[Any, Any]) -> None:
    """Another scale in the first block of a tensor."""
    start = next(int(t.data_offset) for t in gguf.GGUFReader(file).tensors if t.name == tensor)
    with file.open("r+b") as handle:
        handle.seek(start)
        handle.write(scale.tobytes())
