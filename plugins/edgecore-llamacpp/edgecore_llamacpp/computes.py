"""What llama.cpp's graphs compute, asked before a file is written that would load and answer something else.

From `src/models/{llama,qwen2,qwen3,gemma3,phi3,bitnet}.cpp` of the release that the plugin is written for.
"""

from __future__ import annotations

import math

from edgecore.checkpoint import Activation, Decoder, RopeScaling
from edgecore.checkpoint.families.gemma3 import LAYERS_OF_27B
from edgecore.contract import UnsupportedModel

LLAMAS = ("llama", "mistral")
SQUARE = ("qwen2", "phi3", "bitnet")
"""Graphs whose heads together must be as wide as the model."""


def check(decoder: Decoder, max_context: int | None = None) -> tuple[str, ...]:
    """What is computed differently in a way that one may want to know; raises `UnsupportedModel` for what is wrong
    everywhere. max_context: tokens that the model is converted for, where they were limited."""
    for wrong, what, supported in _faults(decoder):
        if wrong:
            raise UnsupportedModel(
                f"llama.cpp does not compute {what} (family {decoder.family!r})",
                supported=supported,
                hint="edgecore backends, and --backend with one that claims the family",
            )
    return tuple(_differences(decoder, max_context or decoder.context_length))


def _faults(d: Decoder) -> list[tuple[bool, str, str]]:
    """Whether it is there, what it is, what is computed instead."""
    llama, gemma = d.family in LLAMAS, d.family == "gemma3"
    activation = Activation.GELU_TANH if gemma else Activation.SILU
    scaling, scale = _allowed_scaling(d.family), _attention_scale(d)
    local = d.local_rope
    return [
        (d.activation is not activation, f"MLPs with {d.activation.value}", activation.value),
        (d.family == "bitnet" and not d.tied, "an output matrix of its own", "tied embeddings"),
        (bool(d.attention_softcap), "soft caps on attention scores", "models without"),
        (bool(d.logit_softcap) and not gemma, "soft caps on logits", "them in family 'gemma3'"),
        (
            not math.isclose(d.attention_scale, scale, rel_tol=1e-6),
            f"attention scores scaled by {d.attention_scale:g}",
            f"{scale:g}",
        ),
        (d.output_bias and not llama, "biases on the output projection", "them in families 'llama', 'mistral'"),
        (d.mlp_bias and not llama, "biases in the MLP", "them in families 'llama', 'mistral'"),
        (d.attention_bias and d.family in ("phi3", "bitnet"), "biases on q, k and v", "them in other families"),
        (
            d.rope.scaling not in scaling,
            f"rotary scaling {d.rope.scaling.value!r}",
            ", ".join(kind.value for kind in scaling),
        ),
        (
            d.rope.dim != d.head_dim and d.family != "phi3",
            f"rotary positions on {d.rope.dim} of {d.head_dim} elements",
            "whole heads, and parts of them in family 'phi3'",
        ),
        (
            local is not None and (local.scaling is not RopeScaling.NONE or local.dim != d.rope.dim),
            "rotary scaling in layers with a window",
            "it in the other layers",
        ),
        (local is not None and not gemma, "a second rotary base", "it in family 'gemma3'"),
        (
            d.family in SQUARE and d.heads * d.head_dim != d.hidden_size,
            f"{d.heads} heads of {d.head_dim} in a model {d.hidden_size} wide",
            "hidden_size / heads elements a head",
        ),
    ]


def _allowed_scaling(family: str) -> tuple[RopeScaling, ...]:
    plain = (RopeScaling.NONE, RopeScaling.LINEAR)
    if family in LLAMAS:
        return (*plain, RopeScaling.LLAMA3, RopeScaling.DIVISORS)
    return (*plain, RopeScaling.LONGROPE) if family == "phi3" else plain


def _attention_scale(d: Decoder) -> float:
    if d.family == "gemma3" and d.layers == LAYERS_OF_27B:
        return 1 / math.sqrt(d.hidden_size // d.heads)
    return 1 / math.sqrt(d.head_dim)


def _differences(d: Decoder, context: int) -> list[str]:
    notes = []
    if d.window and d.family != "gemma3" and context > d.window:
        notes.append(
            f"llama.cpp sees all positions where this model sees {d.window}: texts of more than {d.window} tokens are "
            "answered differently"
        )
    if d.rope.scaling is RopeScaling.LONGROPE and context > d.rope.original_context:
        notes.append(
            f"llama.cpp takes the long rotary factors when its context has more than {d.rope.original_context} tokens, "
            "the model when its text has"
        )
    if d.int8_activations:
        notes.append("llama.cpp does not round activations to 8 bits as the model was trained")
    return notes
