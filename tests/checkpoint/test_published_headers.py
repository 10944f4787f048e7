"""Headers as people publish them: configs of real models, and what converters of other years wrote or left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edgecore.checkpoint import Decoder, RopeScaling, open_checkpoint
from edgecore.checkpoint.families import known
from edgecore.checkpoint.fields import Fields
from edgecore.contract.errors import CorruptModel, UnsupportedModel
from edgecore.sources import detect

from support.gguf_files import write_gguf
from support.tiny import tiny_llama

LLAMA3 = {
    "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}  # fmt: skip
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}


def config(
    kind: str, hidden: int, ffn: int, layers: int, heads: int, kv: int, context: int, vocab: int, **more: Any
) -> Any:
    return {
        "model_type": kind, "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv, "max_position_embeddings": context,
        "vocab_size": vocab, "rms_norm_eps": 1e-5, **more,
    }  # fmt: skip


PUBLISHED: dict[str, tuple[dict[str, Any], Callable[[Decoder], bool]]] = {
    "Llama-2-7b": (
        config("llama", 4096, 11008, 32, 32, 32, 4096, 32000, hidden_act="silu", pretraining_tp=1, rope_scaling=None),
        lambda d: (d.head_dim, d.tied, d.rope.theta) == (128, False, 10000.0),
    ),
    "Llama-3.2-1B": (
        config("llama", 2048, 8192, 16, 32, 8, 131072, 128256, head_dim=64, hidden_act="silu", rope_scaling=LLAMA3,
               rope_theta=500000.0, tie_word_embeddings=True, eos_token_id=[128001, 128008, 128009]),
        lambda d: (d.tied, d.rope.scaling, d.rope.original_context) == (True, RopeScaling.LLAMA3, 8192),
    ),
    "SmolLM2-135M": (
        config("llama", 576, 1536, 30, 9, 3, 8192, 49152, is_llama_config=True, rope_interleaved=False,
               rope_theta=100000, tie_word_embeddings=True),
        lambda d: (d.kv_heads, d.head_dim) == (3, 64),
    ),
    "Mistral-7B-v0.1": (
        config("mistral", 4096, 14336, 32, 32, 8, 32768, 32000, sliding_window=4096, rope_theta=10000.0),
        lambda d: (d.window, d.windowed) == (4096, ()),
    ),
    "Mistral-Nemo": (
        config("mistral", 5120, 14336, 40, 32, 8, 131072, 131072, head_dim=128, sliding_window=None, rope_theta=1e6),
        lambda d: (d.window, d.query_size) == (0, 4096),
    ),
    "Qwen2.5-1.5B": (
        config("qwen2", 1536, 8960, 28, 12, 2, 32768, 151936, max_window_layers=21, sliding_window=32768,
               use_sliding_window=False, tie_word_embeddings=True, use_mrope=False, rope_theta=1e6),
        lambda d: (d.window, d.attention_bias, d.output_bias) == (0, True, False),
    ),
    "Qwen3-0.6B": (
        config("qwen3", 1024, 3072, 28, 16, 8, 40960, 151936, head_dim=128, attention_bias=False, sliding_window=None,
               use_sliding_window=False, max_window_layers=28, tie_word_embeddings=True, rope_theta=1000000),
        lambda d: (d.query_size, d.query_key_norm, d.attention_bias) == (2048, True, False),
    ),
    "gemma-3-270m": (
        config("gemma3_text", 640, 2048, 18, 4, 1, 32768, 262144, head_dim=256, query_pre_attn_scalar=256,
               layer_types=(["sliding_attention"] * 5 + ["full_attention"]) * 3, sliding_window=512, rope_theta=1e6,
               rope_local_base_freq=10000.0, hidden_activation="gelu_pytorch_tanh", _sliding_window_pattern=6),
        lambda d: (sum(d.windowed), d.window, d.tied, d.local_rope is not None) == (15, 512, True, True),
    ),
    "gemma-3-1b": (
        config("gemma3_text", 1152, 6912, 26, 4, 1, 32768, 262144, head_dim=256, query_pre_attn_scalar=256,
               sliding_window_pattern=6, sliding_window=512, rope_theta=1000000, rope_local_base_freq=10000),
        lambda d: (sum(d.windowed), d.rope.theta) == (22, 1e6),
    ),
    "Phi-3-mini-128k": (
        config("phi3", 3072, 8192, 32, 32, 32, 131072, 32064, original_max_position_embeddings=4096,
               rope_scaling=LONGROPE, sliding_window=262144),
        lambda d: (d.rope.original_context, round(d.rope.attention_factor, 4)) == (4096, 1.1902),
    ),
    "Phi-4-mini": (
        config("phi3", 3072, 8192, 32, 24, 8, 131072, 200064, original_max_position_embeddings=4096,
               partial_rotary_factor=0.75, rope_scaling=LONGROPE, sliding_window=262144, tie_word_embeddings=True),
        lambda d: (d.head_dim, d.rope.dim) == (128, 96),
    ),
    "bitnet-b1.58-2B-4T": (
        config("bitnet", 2560, 6912, 30, 20, 5, 4096, 128256, hidden_act="relu2", rope_theta=500000.0, auto_map={},
               tie_word_embeddings=True, quantization_config={"quant_method": "bitnet"}),
        lambda d: d.int8_activations and d.activation == "relu2",
    ),
}  # fmt: skip


def decoder_of(values: dict[str, Any]) -> Decoder:
    family = next(f for f in known() if values["model_type"] in f.model_types)
    return family.from_config(Fields(Path("config.json"), json.loads(json.dumps(values))))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_says_what_its_model_computes(name: str) -> None:
    values, right = PUBLISHED[name]
    assert right(decoder_of(values)), decoder_of(values)


@pytest.mark.parametrize(
    ("name", "without", "right"),
    [
        ("Mistral-7B-v0.1", ["num_key_value_heads", "sliding_window"], lambda d: (d.kv_heads, d.window) == (8, 4096)),
        ("Qwen2.5-1.5B", ["rope_theta"], lambda d: d.rope.theta == 10000.0),
        ("bitnet-b1.58-2B-4T", ["num_key_value_heads"], lambda d: (d.kv_heads, d.activation) == (5, "relu2")),
        ("Phi-3-mini-128k", ["original_max_position_embeddings"], lambda d: d.rope.original_context == 4096),
        ("gemma-3-1b", ["rope_local_base_freq", "head_dim"], lambda d: (d.local_rope.theta, d.head_dim) == (1e4, 256)),
    ],
)  # fmt: skip
def test_what_a_config_leaves_out_is_transformers_own_default(
    name: str, without: list[str], right: Callable[[Decoder], bool]
) -> None:
    values = {key: value for key, value in PUBLISHED[name][0].items() if key not in without}
    assert right(decoder_of(values)), decoder_of(values)


def test_a_window_that_is_null_is_none_and_an_unknown_kind_of_layer_is_refused() -> None:
    values = PUBLISHED["Qwen2.5-1.5B"][0] | {"use_sliding_window": True}
    assert decoder_of(values).window == 32768
    assert decoder_of(values | {"sliding_window": None}).window == 0
    with pytest.raises(UnsupportedModel, match="linear_attention"):
        decoder_of(values | {"layer_types": ["linear_attention"] * 28})
    with pytest.raises(UnsupportedModel, match="chunked_attention"):
        decoder_of(PUBLISHED["gemma-3-270m"][0] | {"layer_types": ["chunked_attention"] * 18})


@pytest.mark.parametrize(
    ("entries", "factors"),
    [
        ({"rope.scaling.factor": 8.0}, 8.0),
        ({"rope.scale_linear": 8.0}, 8.0),
        ({"rope.scaling.type": "linear", "rope.scale_linear": 4.0}, 4.0),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 0.0}, 1.0),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 8.0}, 1.0),
        ({}, 1.0),
    ],
)
def test_a_gguf_file_is_stretched_as_llama_cpp_stretches_it(
    entries: dict[str, Any], factors: float, tmp_path: Path
) -> None:
    file = _with(tmp_path, {f"llama.{key}": value for key, value in entries.items()})
    with open_checkpoint(file) as model:
        assert np.allclose(model.decoder.rope.frequency_divisors(), factors)


def test_divisors_and_a_factor_in_one_gguf_file_both_count(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}  # fmt: skip
    with (
        open_checkpoint(_with(tmp_path / "a", {}, rope)) as plain,
        open_checkpoint(_with(tmp_path / "b", {"llama.rope.scaling.factor": 2.0}, rope)) as stretched,
    ):
        divisors = plain.decoder.rope.frequency_divisors()
        assert divisors.max() == 8
        assert np.allclose(stretched.decoder.rope.frequency_divisors(), 2 * divisors)


def test_one_file_of_a_split_model_is_refused_with_the_way_to_join_it(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="one file of 2") as caught:
        open_checkpoint(_with(tmp_path, {"split.count": 2}))
    assert "llama-gguf-split --merge" in caught.value.hint


def test_heads_that_differ_by_layer_are_said_and_not_shown_as_a_python_object(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="layers differ"):
        open_checkpoint(_with(tmp_path, {"llama.attention.head_count": [4, 2]}))
    with pytest.raises(CorruptModel, match=r"llama\.attention\.head_count"):
        open_checkpoint(_with(tmp_path / "b", {"llama.attention.head_count": "four"}))


def test_an_index_left_over_beside_a_whole_file_is_not_asked(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "tiny")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"model.norm.weight": "gone.safetensors"}}')
    open_checkpoint(folder).close()
    assert detect(folder) == "huggingface"


def _with(folder: Path, entries: dict[str, Any], rope: dict[str, Any] | None = None) -> Path:
    """A GGUF file with these entries in the place of what the writer had under their keys."""
    folder.mkdir(exist_ok=True)
    with open_checkpoint(tiny_llama(folder / "tiny", rope=rope)) as model:
        reader = gguf.GGUFReader(write_gguf(model, folder / "plain.gguf", "F16"))
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture" or key in entries:
            continue
        kind, inner = field.types[0], field.types[-1]
        writer.add_key_value(key, field.contents(), kind, inner if kind == gguf.GGUFValueType.ARRAY else None)
    for key, value in entries.items():
        match value:
            case str():
                writer.add_string(key, value)
            case list():
                writer.add_array(key, value)
            case float():
                writer.add_float32(key, value)
            case _:
                writer.add_uint32(key, value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "m.gguf"
