"""What most families' headers have in common, so that a family's own file holds only what is its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgecore.checkpoint.decoder import Rope, RopeScaling
from edgecore.checkpoint.fields import Fields
from edgecore.checkpoint.gguf_file import GgufArray
from edgecore.contract.errors import UnsupportedModel

MOST_LAYERS = 4096
MOST_HEADS = 65536

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


def config_sizes(config: Fields) -> dict[str, Any]:
    """The sizes of a `Decoder` from a Hugging Face config in the style that nearly all share."""
    hidden = config.integer("hidden_size")
    heads = config.integer("num_attention_heads", most=MOST_HEADS)
    kv_heads = config.integer("num_key_value_heads", heads, most=MOST_HEADS)
    if heads % kv_heads:
        raise config.wrong("num_key_value_heads", f"{kv_heads} does not divide the {heads} heads")
    if not config.has("head_dim") and hidden % heads:
        raise config.wrong(
            "num_attention_heads", f"{heads} does not divide hidden_size {hidden}, and head_dim is missing"
        )
    return {
        "vocab_size": config.integer("vocab_size"),
        "hidden_size": hidden,
        "layers": config.integer("num_hidden_layers", most=MOST_LAYERS),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": config.integer("head_dim", hidden // heads),
        "intermediate_size": config.integer("intermediate_size"),
        "norm_epsilon": config.number("rms_norm_eps"),
        "context_length": config.integer("max_position_embeddings"),
    }


def config_rope(config: Fields, head_dim: int) -> Rope:
    """`rope_theta` with `rope_scaling`, or the newer `rope_parameters` that holds both."""
    key = "rope_parameters" if config.has("rope_parameters") else "rope_scaling"
    scaling = config.section(key) or Fields(config.file, {})
    theta = scaling.number("rope_theta", None) if scaling.has("rope_theta") else config.number("rope_theta", 10000.0)
    share = (scaling if scaling.has("partial_rotary_factor") else config).number("partial_rotary_factor", 1.0)
    dim = int(head_dim * share)
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
    raise UnsupportedModel(f"{config.file}: field {key!r}: rope type {kind!r}", supported="default, linear, llama3")


def gguf_sizes(metadata: Fields, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of a `Decoder` from GGUF metadata. The vocabulary is what the embedding table holds."""
    hidden = metadata.integer("embedding_length")
    heads = metadata.integer("attention.head_count", most=MOST_HEADS)
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
    """Base, dimension and scaling. llama3's scheme is kept in GGUF as a tensor of divisors, `rope_freqs.weight`."""
    theta = metadata.number("rope.freq_base", 10000.0)
    dim = metadata.integer("rope.dimension_count", head_dim)
    if dim % 2 or dim > head_dim:
        raise metadata.wrong("rope.dimension_count", f"{dim} is not an even number up to {head_dim}")
    kind = metadata.text("rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise UnsupportedModel(
            f"{metadata.file}: field {metadata.prefix + 'rope.scaling.type'!r}: {kind!r}", supported="none, linear"
        )
    if (freqs := tensors.get("rope_freqs.weight")) is not None:
        if freqs.shape != (dim // 2,) or freqs.type.name != "F32":
            raise metadata.wrong(
                "rope_freqs.weight", f"{freqs.type.name} of shape {freqs.shape} is not F32 of ({dim // 2},)"
            )
        divisors = tuple(float(d) for d in freqs.data.view("<f4"))
        if not all(1e-6 < d < 1e6 for d in divisors):
            raise metadata.wrong("rope_freqs.weight", "a divisor is not a positive number")
        return Rope(theta, dim, RopeScaling.DIVISORS, divisors=divisors)
    factor = metadata.number("rope.scaling.factor", 1.0)
    return Rope(theta, dim, RopeScaling.LINEAR if kind == "linear" else RopeScaling.NONE, factor=factor)


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
