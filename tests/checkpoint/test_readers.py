"""A model is the same whatever file it comes in, and opening it costs next to nothing."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest

from edgecore.checkpoint import (
    Checkpoint,
    Oracle,
    RopeScaling,
    folder_decoder,
    half_rotation_order,
    open_checkpoint,
)
from edgecore.checkpoint.storage import GGML
from edgecore.contract.errors import ModelNotFound, UnsupportedModel

from support.gguf_files import interleave, write_gguf
from support.peak import run_measured
from support.tiny import tiny_llama

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(tiny_llama(tmp_path_factory.mktemp("tiny")))


def test_the_description_says_what_the_config_says(tiny: Checkpoint) -> None:
    d = tiny.decoder
    assert (d.family, d.vocab_size, d.hidden_size, d.layers) == ("llama", 512, 256, 2)
    assert (d.heads, d.kv_heads, d.head_dim, d.intermediate_size) == (4, 2, 64, 512)
    assert (d.norm_epsilon, d.tied, d.context_length, d.activation) == (1e-5, True, 512, "silu")
    assert (d.rope.theta, d.rope.dim, d.rope.scaling) == (10000.0, 64, RopeScaling.NONE)
    assert tiny.source_format == "huggingface"
    assert tiny.parameters == sum(np.prod(t.shape) for t in tiny.tensors.values()) == 1311872 + 128
    assert tiny.storage == {"F16": 2 * tiny.parameters}


def test_a_config_alone_says_what_is_computed_however_weights_are_packed(tiny: Checkpoint, tmp_path: Path) -> None:
    config = json.loads((tiny.path / "config.json").read_text())
    packed = config | {"quantization": {"bits": 4, "group_size": 64}, "quantization_config": {"bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(packed))
    assert folder_decoder(tmp_path) == tiny.decoder
    ternary = config | {"model_type": "bitnet", "quantization_config": {"bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(ternary))
    assert (found := folder_decoder(tmp_path)) is not None
    assert not found.int8_activations  # which BitNet says under this key, and this is not BitNet's
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "mamba2"}))
    assert folder_decoder(tmp_path) is None
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelNotFound, match=r"config\.json"):
        folder_decoder(tmp_path)


@pytest.mark.parametrize("storage", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
@pytest.mark.parametrize("rope", [None, {"type": "linear", "factor": 2.0}, LLAMA3], ids=["plain", "linear", "llama3"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_is_the_same_model_as_its_folder(storage: str, rope: object, tied: bool, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "tiny", layers=1, rope=rope, tied=tied)  # type: ignore[arg-type]
    with open_checkpoint(folder) as source, open_checkpoint(write_gguf(source, tmp_path / "m.gguf", storage)) as copy:
        assert list(copy.tensors) == list(source.tensors)
        assert copy.source_format == "gguf"
        assert set(copy.storage) == {storage, "F32"}
        assert copy.name == source.name
        kind = gguf.GGMLQuantizationType[storage]
        for name, tensor in source.tensors.items():
            expected = tensor.read()
            if len(tensor.shape) > 1:
                expected = gguf.quants.dequantize(gguf.quants.quantize(expected, kind), kind)
            assert np.array_equal(copy.tensors[name].read(), expected), name
        a, b = source.decoder, copy.decoder
        for field in ("vocab_size", "heads", "kv_heads", "head_dim", "layers", "tied", "context_length"):
            assert getattr(a, field) == getattr(b, field)
        assert np.allclose(a.rope.frequencies(), b.rope.frequencies(), rtol=1e-6)


def test_own_head_dim_and_multi_query_survive_gguf(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "tiny", heads=4, kv_heads=1, head_dim=128)
    with open_checkpoint(folder) as source, open_checkpoint(write_gguf(source, tmp_path / "m.gguf", "F32")) as copy:
        tokens = list(range(40))
        a = np.concatenate(list(Oracle(source.decoder, source.tensors).score(tokens)))
        b = np.concatenate(list(Oracle(copy.decoder, copy.tensors).score(tokens)))
    assert np.abs(a - b).max() < 1e-4


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_one_file_and_many_shards_are_the_same_model(dtype: str, tmp_path: Path) -> None:
    whole = open_checkpoint(tiny_llama(tmp_path / "whole", dtype=dtype))
    sharded = open_checkpoint(tiny_llama(tmp_path / "sharded", dtype=dtype, shards=3))
    assert set(whole.storage) == {dtype}
    assert whole.decoder == sharded.decoder
    assert list(whole.tensors) == list(sharded.tensors)
    for name, tensor in whole.tensors.items():
        assert tensor.read().dtype == np.float32
        assert np.array_equal(tensor.read(), sharded.tensors[name].read())


def test_rows_are_slices_of_the_whole(tiny: Checkpoint, tmp_path: Path) -> None:
    with open_checkpoint(write_gguf(tiny, tmp_path / "m.gguf", "Q8_0")) as copy:
        for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight", "model.norm.weight"):
            tensor = copy.tensors[name]
            assert np.array_equal(tensor.rows(3, 70), tensor.read()[3:70])


def test_stored_bytes_are_in_canonical_order_too(tiny: Checkpoint, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.k_proj.weight"
    with open_checkpoint(write_gguf(tiny, tmp_path / "m.gguf", "Q8_0")) as copy:
        expected = gguf.quants.quantize(tiny.tensors[name].read(), gguf.GGMLQuantizationType.Q8_0)
        assert np.array_equal(copy.tensors[name].raw(), expected)
    assert np.array_equal(tiny.tensors[name].raw().view(np.float16), tiny.tensors[name].read().astype(np.float16))


def test_the_order_of_rows_is_what_llama_cpps_converter_makes() -> None:
    rows = np.arange(4 * 8, dtype=np.float32)[:, None]
    assert np.array_equal(interleave(rows, 4)[half_rotation_order(4, 8)], rows)


def test_stored_bytes_cannot_be_written(tiny: Checkpoint) -> None:
    with pytest.raises(ValueError, match="read-only"):
        tiny.tensors["model.norm.weight"].raw()[0] = 1


def test_arrays_outlive_the_checkpoint(tmp_path: Path) -> None:
    model = open_checkpoint(tiny_llama(tmp_path, dtype="F32"))
    weight = model.tensors["model.norm.weight"].read()
    total = weight.sum()
    model.close()
    model.close()
    assert weight.sum() == total


def test_reading_needs_little_more_memory_than_the_answer(tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="needs Unix, whose way peak memory is read")
    folder = tiny_llama(tmp_path / "big", layers=1, hidden=2048, heads=32, intermediate=8192)
    with open_checkpoint(folder) as model:
        file = write_gguf(model, tmp_path / "big.gguf", "Q4_1")
    code = (
        "import sys; from pathlib import Path; from edgecore.checkpoint import open_checkpoint\n"
        "import gguf\n"
        "m = open_checkpoint(Path(sys.argv[1])); before = peak()\n"
        "for t in m.tensors.values(): t.read()\n"
        "print(peak() - before)"
    )
    largest = 2048 * 8192 * 4
    assert int(run_measured(code, file)) < largest + (100 << 20)


def test_our_table_of_storage_types_is_that_of_the_gguf_package() -> None:
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    ours = {number: (storage.name, storage.block, storage.size) for number, storage in GGML.items()}
    assert all(theirs[number] == sizes for number, sizes in ours.items() if number in theirs)
    readable = {storage.name for storage in GGML.values() if storage.readable}
    supported = {"F32", "F16", *(kind.name for kind in gguf.quants._type_traits)}
    assert {name for name in readable if name in gguf.GGMLQuantizationType.__members__} <= supported


@pytest.mark.parametrize("storage", [s for s in GGML.values() if s.readable and s.block > 1], ids=lambda s: s.name)
def test_every_block_type_is_dequantized_as_the_gguf_package_does(storage: object) -> None:
    from edgecore.checkpoint.storage import Storage, dequantize

    assert isinstance(storage, Storage)
    if storage.name not in gguf.GGMLQuantizationType.__members__:
        pytest.skip(f"needs a newer gguf package, one that knows {storage.name}: pip install -U gguf")
    stored = np.random.default_rng(0).integers(0, 60, (3, 2 * storage.size), np.uint8)
    expected = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[storage.name])
    assert np.array_equal(dequantize(storage, stored), expected, equal_nan=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gpt_neox"}, "'gpt_neox' .LlamaForCausalLM. is not a family"),
        ({"model_type": None}, "is not a family"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
    ],
)
def test_what_is_not_supported_is_refused_from_the_config_alone(
    change: dict[str, object], words: str, tmp_path: Path
) -> None:
    folder = tiny_llama(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModel, match=words) as caught:
        open_checkpoint(folder)
    assert caught.value.supported


def test_an_unknown_gguf_architecture_is_refused_with_the_families_that_are_known(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedModel, match="'mamba'") as caught:
        open_checkpoint(tmp_path / "m.gguf")
    assert "llama" in caught.value.supported


def test_what_does_not_exist_is_not_found(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(ModelNotFound):
            open_checkpoint(path)
    (tmp_path / "config.json").write_text((tiny_llama(tmp_path / "t") / "config.json").read_text())
    with pytest.raises(ModelNotFound, match="no weights"):
        open_checkpoint(tmp_path)
