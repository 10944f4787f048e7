"""The way out: what most families' config.json have in common, so that `to_config` of a family holds only what is its
own. common.py is the way in.

Rotary settings are written in the style that all releases of transformers, llama.cpp's converter and mlx-lm read:
`rope_theta` with `rope_scaling`, not the newer `rope_parameters`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from edgecore.checkpoint.decoder import Activation, Decoder, Rope, RopeScaling
from edgecore.contract.errors import UnsupportedModel

ACTIVATIONS = {Activation.SILU: "silu", Activation.GELU_TANH: "gelu_pytorch_tanh", Activation.RELU2: "relu2"}
"""transformers' names."""


def written_config(decoder: Decoder, architecture: str, **more: Any) -> dict[str, Any]:
    """config.json of a decoder as most families write it, and `more`.

    architecture: transformers' class. The family's name is the `model_type`. Raises `UnsupportedModel`.
    """
    return {
        "architectures": [architecture],
        "model_type": decoder.family,
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "head_dim": decoder.head_dim,
        "hidden_act": ACTIVATIONS[decoder.activation],
        "max_position_embeddings": decoder.context_length,
        "rms_norm_eps": short(decoder.norm_epsilon),
        "rope_theta": decoder.rope.theta,
        "rope_scaling": rope_scaling(decoder.rope, decoder.context_length),
        "tie_word_embeddings": decoder.tied,
        **({"partial_rotary_factor": partial(decoder)} if decoder.rope.dim != decoder.head_dim else {}),
        **more,
    }


def bias_of_attention(decoder: Decoder) -> bool:
    """`attention_bias` of configs that mean q, k, v and o by it. Raises `UnsupportedModel` where they differ."""
    if decoder.attention_bias != decoder.output_bias:
        raise UnsupportedModel(
            f"family {decoder.family!r}: biases on {'q, k and v' if decoder.attention_bias else 'o'} alone, which "
            "config.json cannot say",
            supported="biases on q, k, v and o, or on none",
        )
    return decoder.attention_bias


def written_windows(decoder: Decoder) -> dict[str, Any]:
    """`use_sliding_window` and what belongs to it, in the style of Qwen."""
    windowed = decoder.windowed or (bool(decoder.window),) * decoder.layers
    if not decoder.window:
        return {"use_sliding_window": False}
    return {
        "use_sliding_window": True,
        "sliding_window": decoder.window,
        # The first windowed layer: older readers know no `layer_types`, and windows from a layer on are all they know.
        "max_window_layers": windowed.index(True),
        "layer_types": layer_types(decoder),
    }


def layer_types(decoder: Decoder) -> list[str]:
    return ["sliding_attention" if decoder.layer_window(layer) else "full_attention" for layer in range(decoder.layers)]


def partial(decoder: Decoder) -> float:
    """`partial_rotary_factor`: transformers multiplies by it and cuts the fraction off."""
    share = decoder.rope.dim / decoder.head_dim
    return share if int(decoder.head_dim * share) == decoder.rope.dim else math.nextafter(share, 1.0)


def short(number: float) -> float:
    """A number that is a float32's, as people write it: a GGUF file has 1e-5 as 9.999999747378752e-06."""
    return float(str(np.float32(number))) if number == float(np.float32(number)) else number


def rope_scaling(rope: Rope, context_length: int) -> dict[str, Any] | None:
    """The `rope_scaling` of a config; `rope_type` is the newer name of `type`, and readers know one or the other."""
    match rope.scaling:
        case RopeScaling.LINEAR:
            return {"type": "linear", "rope_type": "linear", "factor": rope.factor}
        case RopeScaling.LLAMA3:
            return {
                "rope_type": "llama3",
                "factor": rope.factor,
                "low_freq_factor": rope.low_freq_factor,
                "high_freq_factor": rope.high_freq_factor,
                "original_max_position_embeddings": rope.original_context,
            }
        case RopeScaling.DIVISORS:
            return rope_scaling(as_rule(rope, context_length), context_length)
        case RopeScaling.LONGROPE:
            # Three keys and no more: releases of transformers before 5 refuse a fourth that they do not need.
            written: dict[str, Any] = {
                "type": "longrope",
                "short_factor": [float(d) for d in rope.divisors],
                "long_factor": [float(d) for d in rope.long_divisors],
            }
            usual = longrope_attention(context_length, rope.original_context)
            if not math.isclose(rope.attention_factor, usual, rel_tol=1e-6):
                written["attention_factor"] = rope.attention_factor
            return written
    return None


def rope_parameters(rope: Rope, context_length: int) -> dict[str, Any]:
    """The newer style of the same: base and scaling in one."""
    scaling = rope_scaling(rope, context_length) or {}
    return {**scaling, "rope_type": scaling.get("rope_type", scaling.get("type", "default")), "rope_theta": rope.theta}


def longrope_attention(context_length: int, original: int) -> float:
    """What cosines and sines are multiplied by where a config does not say (`_longrope` in common.py)."""
    factor = context_length / original if original else 1.0
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def as_rule(rope: Rope, context_length: int) -> Rope:
    """Divisors by a rule that a config can name. A GGUF file keeps only what Llama 3.1's came to: it is found again by
    trying. Divisors that follow no such rule are longrope's, the same for short sequences and for long ones."""
    divisors = np.asarray(rope.divisors)
    llama3 = replace(
        rope, scaling=RopeScaling.LLAMA3, factor=float(divisors.max()), low_freq_factor=1.0, high_freq_factor=4.0,
        divisors=(),
    )  # fmt: skip
    for original in _original_contexts(llama3, divisors):
        known = replace(llama3, original_context=original)
        if np.allclose(known.frequency_divisors(), divisors, rtol=1e-5):
            return known
    return replace(
        rope, scaling=RopeScaling.LONGROPE, long_divisors=rope.divisors, original_context=context_length,
        attention_factor=1.0,
    )  # fmt: skip


def _original_contexts(rope: Rope, divisors: np.ndarray) -> list[int]:
    """Contexts from which the divisors may come: Llama 3.1's, what an interpolated frequency says, powers of two."""
    between = np.flatnonzero((divisors > 1.001) & (divisors < rope.factor * 0.999))
    found = []
    if len(between):
        i = int(between[0])
        smooth = (1 / divisors[i] - 1 / rope.factor) / (1 - 1 / rope.factor)
        turns = rope.low_freq_factor + smooth * (rope.high_freq_factor - rope.low_freq_factor)
        found.append(round(turns * 2 * math.pi * rope.theta ** (2 * i / rope.dim)))
    return [8192, *found, *(1 << n for n in range(5, 21))]
