"""Llama 2 and 3, and what shares their computation: SmolLM 1 and 2, TinyLlama, DeepSeek's Llama distillations, ..."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgecore.checkpoint.decoder import Decoder
from edgecore.checkpoint.families import Family, common
from edgecore.checkpoint.families.written import bias_of_attention, written_config
from edgecore.checkpoint.fields import Fields
from edgecore.contract.errors import UnsupportedModel


def _from_config(config: Fields) -> Decoder:
    sizes = common.config_sizes(config)
    bias = config.flag("attention_bias", False)
    return Decoder(
        family="llama",
        rope=common.config_rope(config, sizes["head_dim"]),
        tied=config.flag("tie_word_embeddings", False),
        activation=common.config_activation(config, common.SILU),
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=config.flag("mlp_bias", False),
        **sizes,
    )


def _from_gguf(metadata: Fields, tensors: Mapping[str, Any]) -> Decoder:
    if metadata.integer("expert_count", 0, least=0):
        raise UnsupportedModel(f"{metadata.file}: a mixture of experts", supported="dense models of family llama")
    sizes = common.gguf_sizes(metadata, tensors)
    rope = common.gguf_rope(metadata, tensors, sizes["head_dim"])
    if rope.dim != sizes["head_dim"]:
        raise UnsupportedModel(
            f"{metadata.file}: field 'llama.rope.dimension_count': {rope.dim} of {sizes['head_dim']} elements turn",
            supported="whole heads",
        )
    return Decoder(
        family="llama",
        rope=rope,
        attention_bias="blk.0.attn_q.bias" in tensors,
        output_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_up.bias" in tensors,
        **sizes,
    )


def _to_config(decoder: Decoder) -> dict[str, Any]:
    bias = bias_of_attention(decoder)
    return written_config(decoder, "LlamaForCausalLM", attention_bias=bias, mlp_bias=decoder.mlp_bias)


FAMILY = Family(
    name="llama",
    model_types=("llama",),
    gguf_architectures=("llama",),
    from_config=_from_config,
    from_gguf=_from_gguf,
    gguf_names=common.GGUF_NAMES,
    interleaved=True,
    to_config=_to_config,
)
