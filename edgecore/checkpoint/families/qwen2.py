"""Qwen2 and Qwen2.5: Llama with biases on q, k and v, and windows in the upper layers where the config wants them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgecore.checkpoint.decoder import Decoder
from edgecore.checkpoint.families import Family, common
from edgecore.checkpoint.families.written import written_config, written_windows
from edgecore.checkpoint.fields import Fields


def _from_config(config: Fields) -> Decoder:
    sizes = common.config_sizes(config, kv_heads=32)
    return Decoder(
        family="qwen2",
        rope=common.config_rope(config, sizes["head_dim"]),
        tied=config.flag("tie_word_embeddings", False),
        activation=common.config_activation(config, common.SILU),
        attention_bias=True,
        **common.config_windows(config, sizes["layers"]),
        **sizes,
    )


def _from_gguf(metadata: Fields, tensors: Mapping[str, Any]) -> Decoder:
    sizes = common.gguf_sizes(metadata, tensors)
    return Decoder(
        family="qwen2", rope=common.gguf_rope(metadata, tensors, sizes["head_dim"]), attention_bias=True, **sizes
    )


def _to_config(decoder: Decoder) -> dict[str, Any]:
    return written_config(decoder, "Qwen2ForCausalLM", **written_windows(decoder))


FAMILY = Family(
    name="qwen2",
    model_types=("qwen2",),
    gguf_architectures=("qwen2",),
    from_config=_from_config,
    from_gguf=_from_gguf,
    gguf_names=common.GGUF_NAMES,
    to_config=_to_config,
)
