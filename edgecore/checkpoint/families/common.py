"""What most families' headers have in common, so that a family's own file holds only what is its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgecore.checkpoint.decoder import Activation, Rope, RopeScaling
from edgecore.checkpoint.fields import Fields
from edgecore.checkpoint.gguf_file import GgufArray
from edgecore.contract.errors import UnsupportedModel

MOST_LAYERS = 4096
MOST_HEADS = 65536
LAYER_TYPES = ("full_attention", "sliding_attention")
SILU = {"silu": Activation.SILU, "swish": Activation.SILU}

GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
    "output_norm": "model.norm",
    "output": "lm_head",
}


def config_sizes(config: Fields, head_dim: int | None = None, kv_heads: int | None = None) -> dict[str, Any]:
    """The sizes of a `Decoder` from a Hugging Face config in the style that nearly all share.

    head_dim: transformers' own for the family, for a config that does not say; without it hidden_size / heads.
    kv_heads: the same for a config that does not mention them; one that says null means as many as heads.
    """
    hidden = config.integer("hidden_size")
    heads = config.integer("num_attention_heads", most=MOST_HEADS)
    said = "num_key_value_heads" in config.values
    kv_heads = config.integer("num_key_value_heads", heads if said or not kv_heads else kv_heads, most=MOST_HEADS)
    if heads % kv_heads:
        raise config.wrong("num_key_value_heads", f"{kv_heads} does not divide the {heads} heads")
    if not config.has("head_dim") and head_dim is None and hidden % heads:
        raise config.wrong(
            "num_attention_heads", f"{heads} does not divide hidden_size {hidden}, and head_dim is missing"
        )
    return {
        "vocab_size": config.integer("vocab_size"),
        "hidden_size": hidden,
        "layers": config.integer("num_hidden_layers", most=MOST_LAYERS),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": config.integer("head_dim", head_dim or hidden // heads),
        "intermediate_size": config.integer("intermediate_size"),
        "norm_epsilon": config.number("rms_norm_eps"),
        "context_length": config.integer("max_position_embeddings"),
    }


def config_activation(config: Fields, supported: Mapping[str, Activation], key: str = "hidden_act") -> Activation:
    """The MLP's activation, one of `supported`; the first where the config does not say."""
    name = config.text(key, next(iter(supported)))
    if name not in supported:
        raise UnsupportedModel(f"{config.file}: field {key!r}: {name!r}", supported=", ".join(supported))
    return supported[name]


def config_rope(
    config: Fields, head_dim: int, layer_type: str = "full_attention", theta: float = 10000.0, original: int = 0
) -> Rope:
    """`rope_theta` with `rope_scaling`, or the newer `rope_parameters` that holds both, perhaps by layer type.

    theta, original: base and, for longrope, context before stretching, where the config gives none.
    """
    key = "rope_parameters" if config.has("rope_parameters") else "rope_scaling"
    scaling = config.section(key) or Fields(config.file, {})
    scaling = (scaling.section(layer_type) if scaling.has(layer_type) else scaling) or scaling
    theta = (scaling if scaling.has("rope_theta") else config).number("rope_theta", theta)
    share = (scaling if scaling.has("partial_rotary_factor") else config).number("partial_rotary_factor", 1.0)
    dim = int(head_dim * min(share, 2.0))
    if dim % 2 or not 2 <= dim <= head_dim:
        raise config.wrong("head_dim", f"{dim} of {head_dim} elements would turn; an even number must")
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    match kind:
        case "default":
            return Rope(theta, dim)
        case "linear":
            return Rope(theta, dim, RopeScaling.LINEAR, factor=scaling.number("factor"))
        case "llama3":
            low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
            if low >= high:
                raise scaling.wrong("low_freq_factor", f"{low} is not below high_freq_factor {high}")
            return Rope(
                theta, dim, RopeScaling.LLAMA3, scaling.number("factor"), low, high,
                scaling.integer("original_max_position_embeddings", config.integer("max_position_embeddings")),
            )  # fmt: skip
        case "longrope" | "su":
            return _longrope(config, scaling, theta, dim, original)
    raise UnsupportedModel(
        f"{config.file}: field {key!r}: rope type {kind!r}", supported="default, linear, llama3, longrope"
    )


def _longrope(config: Fields, scaling: Fields, theta: float, dim: int, original: int) -> Rope:
    """Phi's: the original context stands beside the scaling, and the factor follows from both contexts (transformers,
    `_compute_longrope_parameters`)."""
    key = "original_max_position_embeddings"
    whole = config.integer("max_position_embeddings")
    original = (config if config.has(key) else scaling).integer(key, original or whole, least=2)
    factor = scaling.number("factor", whole / original)
    attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return Rope(
        theta,
        dim,
        RopeScaling.LONGROPE,
        original_context=original,
        divisors=scaling.numbers("short_factor", dim // 2),
        long_divisors=scaling.numbers("long_factor", dim // 2),
        attention_factor=scaling.number("attention_factor", attention),
    )


def config_windows(config: Fields, layers: int) -> dict[str, Any]:
    """`window` and `windowed` from `sliding_window` with `layer_types`, in the style of Qwen."""
    if not config.flag("use_sliding_window", False):
        return {}
    first = config.integer("max_window_layers", 28, least=0)
    windowed = config_layer_types(config, layers) or tuple(i >= first for i in range(layers))
    window = config_window(config)
    return {"window": window, "windowed": windowed} if window and any(windowed) else {}


def config_window(config: Fields) -> int:
    """`sliding_window`: transformers' 4096 where a config does not mention it, none where it says null."""
    return config.integer("sliding_window", 0 if "sliding_window" in config.values else 4096, least=0)


def config_layer_types(config: Fields, layers: int) -> tuple[bool, ...]:
    """Which layers have a window by `layer_types`; empty where the config has none. Raises `UnsupportedModel`."""
    if not config.has("layer_types"):
        return ()
    kinds = config.texts("layer_types", layers)
    if other := next((k for k in kinds if k not in LAYER_TYPES), None):
        raise UnsupportedModel(f"{config.file}: field 'layer_types': {other[:60]!r}", supported=", ".join(LAYER_TYPES))
    return tuple(kind == "sliding_attention" for kind in kinds)


def gguf_sizes(metadata: Fields, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of a `Decoder` from GGUF metadata. The vocabulary is what the embedding table holds."""
    hidden = metadata.integer("embedding_length")
    heads = _uniform(metadata, "attention.head_count", None)
    if heads > MOST_HEADS:
        raise metadata.wrong("attention.head_count", f"{heads} is not within 1 and {MOST_HEADS}")
    kv_heads = _uniform(metadata, "attention.head_count_kv", heads)
    if heads % kv_heads:
        raise metadata.wrong("attention.head_count_kv", f"{kv_heads} does not divide the {heads} heads")
    if not metadata.has("attention.key_length") and hidden % heads:
        raise metadata.wrong("attention.head_count", f"{heads} does not divide embedding_length {hidden}")
    head_dim = metadata.integer("attention.key_length", hidden // heads)
    if metadata.integer("attention.value_length", head_dim) != head_dim:
        raise UnsupportedModel(f"{metadata.file}: values of another length than keys", supported="one head length")
    table = tensors.get("token_embd.weight")
    if table is None:
        raise metadata.wrong("token_embd.weight", "the tensor is missing")
    return {
        "vocab_size": table.shape[0],
        "hidden_size": hidden,
        "layers": metadata.integer("block_count", most=MOST_LAYERS),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": _uniform(metadata, "feed_forward_length", None),
        "norm_epsilon": metadata.number("attention.layer_norm_rms_epsilon"),
        "context_length": metadata.integer("context_length"),
        "tied": "output.weight" not in tensors,
    }


def gguf_rope(metadata: Fields, tensors: Mapping[str, Any], head_dim: int) -> Rope:
    """Base, dimension and scaling. llama3's scheme is kept in GGUF as a tensor of divisors, `rope_freqs.weight`;
    longrope's as two, `rope_factors_short.weight` and `rope_factors_long.weight`."""
    theta = metadata.number("rope.freq_base", 10000.0)
    dim = metadata.integer("rope.dimension_count", head_dim)
    if dim % 2 or dim > head_dim:
        raise metadata.wrong("rope.dimension_count", f"{dim} is not an even number up to {head_dim}")
    # llama.cpp's defaults: the kind is linear, and files of 2023 keep the factor under another name.
    kind = metadata.text("rope.scaling.type", "linear")
    factor = _gguf_factor(metadata) if kind == "linear" else 1.0
    if kind not in ("none", "linear", "longrope"):
        raise UnsupportedModel(
            f"{metadata.file}: field {metadata.prefix + 'rope.scaling.type'!r}: {kind!r}",
            supported="none, linear, longrope",
        )
    if "rope_factors_long.weight" in tensors:
        return Rope(
            theta,
            dim,
            RopeScaling.LONGROPE,
            original_context=metadata.integer("rope.scaling.original_context_length", least=2),
            divisors=_divisors(metadata, tensors, "rope_factors_short.weight", dim),
            long_divisors=_divisors(metadata, tensors, "rope_factors_long.weight", dim),
            attention_factor=metadata.number("rope.scaling.attn_factor", 1.0),
        )
    if kind == "longrope":
        raise metadata.wrong("rope_factors_long.weight", "the tensor is missing")
    if "rope_freqs.weight" in tensors:
        divisors = tuple(factor * d for d in _divisors(metadata, tensors, "rope_freqs.weight", dim))
        return Rope(theta, dim, RopeScaling.DIVISORS, divisors=divisors)
    if factor == 1:
        return Rope(theta, dim)
    return Rope(theta, dim, RopeScaling.LINEAR, factor=factor)


def _gguf_factor(metadata: Fields) -> float:
    """What positions are divided by; 0 stands for 1."""
    key = "rope.scaling.factor" if metadata.has("rope.scaling.factor") else "rope.scale_linear"
    return metadata.number(key, 1.0, above=-1e-9) or 1.0


def _divisors(metadata: Fields, tensors: Mapping[str, Any], name: str, dim: int) -> tuple[float, ...]:
    found = tensors.get(name)
    if found is None:
        raise metadata.wrong(name, "the tensor is missing")
    if found.shape != (dim // 2,) or found.type.name != "F32":
        raise metadata.wrong(name, f"{found.type.name} of shape {found.shape} is not F32 of ({dim // 2},)")
    divisors = tuple(float(d) for d in found.data.view("<f4"))
    if not all(1e-6 < d < 1e6 for d in divisors):
        raise metadata.wrong(name, "a divisor is not a positive number")
    return divisors


def _uniform(metadata: Fields, key: str, default: int | None) -> int:
    """A number that GGUF may give by layer: accepted when all layers agree."""
    value = metadata.values.get(metadata.prefix + key)
    if isinstance(value, GgufArray):
        values = set(value.read())
        if len(values) != 1:
            raise UnsupportedModel(
                f"{metadata.file}: field {metadata.prefix + key!r}: layers differ", supported="one value"
            )
        return Fields(metadata.file, {key: values.pop()}).integer(key)
    return metadata.integer(key) if default is None else metadata.integer(key, default)
