"""Phi-3, Phi-3.5 and Phi-4-mini: q, k and v in one matrix, gate and up in another, rotary positions on part of a head,
and two sets of frequencies, for short sequences and for long ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgecore.checkpoint.decoder import Decoder
from edgecore.checkpoint.families import Family, common
from edgecore.checkpoint.families.written import written_config
from edgecore.checkpoint.fields import Fields


def _from_config(config: Fields) -> Decoder:
    sizes = common.config_sizes(config)
    return Decoder(
        family="phi3",
        rope=common.config_rope(config, sizes["head_dim"], original=4096),
        tied=config.flag("tie_word_embeddings", False),
        activation=common.config_activation(config, common.SILU),
        window=config.integer("sliding_window", 0, least=0),
        **sizes,
    )


def _from_gguf(metadata: Fields, tensors: Mapping[str, Any]) -> Decoder:
    sizes = common.gguf_sizes(metadata, tensors)
    return Decoder(
        family="phi3",
        rope=common.gguf_rope(metadata, tensors, sizes["head_dim"]),
        window=metadata.integer("attention.sliding_window", 0, least=0),
        **sizes,
    )


def _to_config(decoder: Decoder) -> dict[str, Any]:
    return written_config(
        decoder,
        "Phi3ForCausalLM",
        sliding_window=decoder.window or None,
        original_max_position_embeddings=decoder.rope.original_context or decoder.context_length,
    )


FAMILY = Family(
    name="phi3",
    model_types=("phi3",),
    gguf_architectures=("phi3",),
    from_config=_from_config,
    from_gguf=_from_gguf,
    gguf_names={n: c for n, c in common.GGUF_NAMES.items() if n not in ("blk.{}.ffn_gate", "blk.{}.ffn_up")}
    | {
        "blk.{}.attn_qkv": "model.layers.{}.self_attn.qkv_proj",
        "blk.{}.ffn_up": "model.layers.{}.mlp.gate_up_proj",
    },
    fused={
        "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    },
    ignored=("rotary_emb.inv_freq", "rope_factors_long.weight", "rope_factors_short.weight"),
    to_config=_to_config,
)
