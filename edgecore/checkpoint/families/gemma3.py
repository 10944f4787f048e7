"""Gemma 3, its text models: windows in most layers with a rotary base of their own, norms before and after, scaled
embeddings. Folders keep norm weights as their distance from one, GGUF files as they are used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgecore.checkpoint.decoder import Activation, Decoder, Rope, RopeScaling
from edgecore.checkpoint.derived import Offset
from edgecore.checkpoint.families import Family, common
from edgecore.checkpoint.families.written import (
    ACTIVATIONS,
    bias_of_attention,
    layer_types,
    rope_parameters,
    written_config,
)
from edgecore.checkpoint.fields import Fields
from edgecore.checkpoint.gguf_file import GgufArray
from edgecore.checkpoint.tensors import Tensor
from edgecore.contract.errors import UnsupportedModel

PATTERN = 6
"""Every sixth layer sees everything, where a file does not say which."""
LAYERS_OF_27B = 62
"""llama.cpp knows by it that the scores of this one are scaled by hidden_size / heads, which a GGUF file cannot say."""


def _from_config(config: Fields) -> Decoder:
    if config.has("use_bidirectional_attention") and config.flag("use_bidirectional_attention"):
        raise UnsupportedModel(f"{config.file}: field 'use_bidirectional_attention': true", supported="causal models")
    sizes = common.config_sizes(config, head_dim=256, kv_heads=4)
    hidden, head_dim, layers = sizes["hidden_size"], sizes["head_dim"], sizes["layers"]
    local = Fields(config.file, {**config.values, "rope_theta": config.values.get("rope_local_base_freq")})
    if config.has("rope_parameters"):
        local_rope = common.config_rope(local, head_dim, "sliding_attention")
    else:  # the old style scales the layers that see everything, and no others
        local_rope = Rope(local.number("rope_theta", 10000.0), head_dim)
    return Decoder(
        family="gemma3",
        rope=common.config_rope(config, head_dim, theta=1e6),
        local_rope=local_rope,
        tied=config.flag("tie_word_embeddings", True),
        activation=common.config_activation(config, {"gelu_pytorch_tanh": Activation.GELU_TANH}, "hidden_activation"),
        attention_bias=config.flag("attention_bias", False),
        output_bias=config.flag("attention_bias", False),
        query_key_norm=True,
        post_norms=True,
        embedding_scale=math.sqrt(hidden),
        query_scale=config.number("query_pre_attn_scalar", 256.0) ** -0.5,
        attention_softcap=config.number("attn_logit_softcapping", 0.0, above=-1e-9),
        logit_softcap=config.number("final_logit_softcapping", 0.0, above=-1e-9),
        **_windows(config, layers),
        **sizes,
    )


def _windows(config: Fields, layers: int) -> dict[str, Any]:
    pattern = _every(config.integer("sliding_window_pattern", PATTERN), layers)
    windowed, window = common.config_layer_types(config, layers) or pattern, common.config_window(config)
    return {"window": window, "windowed": windowed} if window and any(windowed) else {}


def _every(pattern: int, layers: int) -> tuple[bool, ...]:
    """All layers but each `pattern`-th have a window."""
    return tuple((layer + 1) % pattern != 0 for layer in range(layers))


def _from_gguf(metadata: Fields, tensors: Mapping[str, Any]) -> Decoder:
    sizes = common.gguf_sizes(metadata, tensors)
    hidden, heads, head_dim, layers = (sizes[k] for k in ("hidden_size", "heads", "head_dim", "layers"))
    window = metadata.integer("attention.sliding_window", 0, least=0)
    pattern = metadata.values.get(metadata.prefix + "attention.sliding_window_pattern", PATTERN)
    if isinstance(pattern, GgufArray):
        windowed = tuple(map(bool, pattern.read()))
        if len(windowed) != layers:
            raise metadata.wrong("attention.sliding_window_pattern", f"{len(windowed)} items for {layers} layers")
    else:
        windowed = _every(metadata.integer("attention.sliding_window_pattern", PATTERN), layers)
    rope = common.gguf_rope(metadata, tensors, head_dim)
    return Decoder(
        family="gemma3",
        rope=rope,
        local_rope=Rope(metadata.number("rope.freq_base_swa", 10000.0), rope.dim) if window else None,
        activation=Activation.GELU_TANH,
        query_key_norm=True,
        post_norms=True,
        embedding_scale=math.sqrt(hidden),
        query_scale=(hidden // heads if layers == LAYERS_OF_27B else head_dim) ** -0.5,
        logit_softcap=metadata.number("final_logit_softcapping", 0.0, above=-1e-9),
        window=window,
        windowed=windowed if window else (),
        **sizes,
    )


def _adopt(config: Fields, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: replace(t, derive=Offset(1.0)) if n.endswith("norm.weight") else t for n, t in tensors.items()}


def _to_config(decoder: Decoder) -> dict[str, Any]:
    types = layer_types(decoder)
    config = written_config(
        decoder,
        "Gemma3ForCausalLM",
        model_type="gemma3_text",
        hidden_activation=ACTIVATIONS[decoder.activation],
        attention_bias=bias_of_attention(decoder),
        query_pre_attn_scalar=_scalar(decoder),
        attn_logit_softcapping=decoder.attention_softcap or None,
        final_logit_softcapping=decoder.logit_softcap or None,
        sliding_window=decoder.window or 4096,
        layer_types=types,
        **_pattern(decoder),
    )
    del config["hidden_act"]
    local = decoder.local_rope or Rope(10000.0, decoder.head_dim)
    if local.scaling is RopeScaling.NONE:
        return config | {"rope_local_base_freq": local.theta}
    # Windows whose frequencies are stretched too: only the newer style can say that.
    ropes = {"full_attention": decoder.rope, "sliding_attention": local}
    config |= {"rope_theta": None, "rope_scaling": None}
    return config | {"rope_parameters": {k: rope_parameters(r, decoder.context_length) for k, r in ropes.items()}}


def _scalar(decoder: Decoder) -> float:
    """`query_pre_attn_scalar`, a whole number in every release, though the file may not say so."""
    scalar = decoder.attention_scale**-2
    return round(scalar) if round(scalar) ** -0.5 == decoder.attention_scale else scalar


def _pattern(decoder: Decoder) -> dict[str, int]:
    """`sliding_window_pattern`, where there is one: readers that know no `layer_types` go by it."""
    found = [p for p in range(2, decoder.layers + 2) if decoder.windowed == _every(p, decoder.layers)]
    return {"sliding_window_pattern": found[0]} if decoder.window and found else {}


FAMILY = Family(
    name="gemma3",
    model_types=("gemma3_text",),
    gguf_architectures=("gemma3",),
    from_config=_from_config,
    from_gguf=_from_gguf,
    gguf_names=common.GGUF_NAMES
    | {
        "blk.{}.attn_q_norm": "model.layers.{}.self_attn.q_norm",
        "blk.{}.attn_k_norm": "model.layers.{}.self_attn.k_norm",
        "blk.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
        "blk.{}.ffn_norm": "model.layers.{}.pre_feedforward_layernorm",
        "blk.{}.post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
    },
    adopt=_adopt,
    to_config=_to_config,
    norm_offset=1.0,
)
