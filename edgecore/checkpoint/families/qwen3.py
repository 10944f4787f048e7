"""Qwen3, dense: no biases, but each head of q and k is normed before it turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgecore.checkpoint.decoder import Decoder
from edgecore.checkpoint.families import Family, common
from edgecore.checkpoint.families.written import bias_of_attention, written_config, written_windows
from edgecore.checkpoint.fields import Fields


def _from_config(config: Fields) -> Decoder:
    sizes = common.config_sizes(config, head_dim=128, kv_heads=32)
    bias = config.flag("attention_bias", False)
    return Decoder(
        family="qwen3",
        rope=common.config_rope(config, sizes["head_dim"]),
        tied=config.flag("tie_word_embeddings", False),
        activation=common.config_activation(config, common.SILU),
        attention_bias=bias,
        output_bias=bias,
        query_key_norm=True,
        **common.config_windows(config, sizes["layers"]),
        **sizes,
    )


def _from_gguf(metadata: Fields, tensors: Mapping[str, Any]) -> Decoder:
    sizes = common.gguf_sizes(metadata, tensors)
    return Decoder(
        family="qwen3",
        rope=common.gguf_rope(metadata, tensors, sizes["head_dim"]),
        attention_bias="blk.0.attn_q.bias" in tensors,
        output_bias="blk.0.attn_output.bias" in tensors,
        query_key_norm=True,
        **sizes,
    )


def _to_config(decoder: Decoder) -> dict[str, Any]:
    bias = bias_of_attention(decoder)
    return written_config(decoder, "Qwen3ForCausalLM", attention_bias=bias, **written_windows(decoder))


FAMILY = Family(
    name="qwen3",
    model_types=("qwen3",),
    gguf_architectures=("qwen3",),
    from_config=_from_config,
    from_gguf=_from_gguf,
    gguf_names=common.GGUF_NAMES
    | {
        "blk.{}.attn_q_norm": "model.layers.{}.self_attn.q_norm",
        "blk.{}.attn_k_norm": "model.layers.{}.self_attn.k_norm",
    },
    to_config=_to_config,
)
