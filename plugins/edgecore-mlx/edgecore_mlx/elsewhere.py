"""What mlx_lm makes of a folder that edgecore computes as its model means: where mlx_lm (0.32) does otherwise a person
is told, and where config.json can be said so that it does right, it is said so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgecore.checkpoint import Checkpoint, Decoder, RopeScaling, folder_config
from edgecore.checkpoint.beside import LIMIT

_SIZED = ("qwen2", "phi3")
"""Architectures that mlx_lm computes with heads of hidden_size / heads."""
_UNBIASED = ("qwen3", "gemma3")
"""Those that have no biases there."""


def config_of(model: Checkpoint, precision: str, context: int) -> dict[str, Any]:
    """config.json of a folder whose texts are at most `context` tokens long."""
    config, rope = folder_config(model, precision), model.decoder.rope
    scaling = config.get("rope_scaling")
    if isinstance(scaling, dict) and scaling.get("type") == "longrope":
        if model.decoder.family != "phi3":
            # Where mlx_lm looks for it in every family but Phi-3.
            scaling["original_max_position_embeddings"] = rope.original_context or model.decoder.context_length
        if not rope.is_long(context):
            # mlx_lm turns by the long factors whatever the text's length: here the short ones are the only ones.
            config["rope_scaling"] = scaling | {"long_factor": scaling["short_factor"]}
            config |= {LIMIT: context} if context < model.decoder.context_length else {}
    return config


def computed_otherwise(decoder: Decoder, config: Mapping[str, Any], context: int) -> Iterator[str]:
    """What a person should know of how mlx_lm computes what `config` says, for texts of up to `context` tokens."""
    rope, family = decoder.rope, decoder.family
    window = min((w for layer in range(decoder.layers) if (w := decoder.layer_window(layer))), default=0)
    if why := _not_loaded(decoder):
        yield f"mlx_lm does not load the folder: {why}; edgecore does"
        return
    if rope.is_long(context) and rope.divisors != rope.long_divisors:
        yield (
            f"mlx_lm turns positions of texts up to {rope.original_context} tokens by the factors of longer ones: its "
            f"answers differ from the model's; edgecore's do not, and --max-context {rope.original_context} makes a "
            "folder that both compute alike"
        )
    if family != "gemma3" and 0 < window < context:
        yield f"mlx_lm does not know this model's windows: its answers differ in texts longer than {window} tokens"
    pattern = config.get("sliding_window_pattern", 6)  # mlx_lm's own number
    if family == "gemma3" and any(
        bool(decoder.layer_window(n)) != bool((n + 1) % pattern) for n in range(decoder.layers)
    ):
        yield "mlx_lm takes other layers of this model for windowed: its answers differ"
    if decoder.attention_softcap or decoder.logit_softcap:
        yield "mlx_lm does not cap scores or logits as this model does: its answers differ"
    if family == "bitnet":
        rounds = ", and rounds no activations to 8 bits" if decoder.int8_activations else ""
        yield f"mlx_lm computes BitNet on a Mac's GPU alone{rounds}; edgecore does it everywhere"


def _not_loaded(decoder: Decoder) -> str:
    """Why mlx_lm does not, in words; empty where it does."""
    if decoder.family == "bitnet" and not decoder.int8_activations:
        return "it takes BitNet with packed ternary weights only"
    if decoder.family in _SIZED and decoder.head_dim * decoder.heads != decoder.hidden_size:
        return f"it takes heads of {decoder.hidden_size // decoder.heads} for granted, and here they have another size"
    if decoder.family in _UNBIASED and (decoder.attention_bias or decoder.output_bias):
        return "it has no biases in this family"
    if decoder.family == "gemma3" and decoder.local_rope and decoder.local_rope.scaling is not RopeScaling.NONE:
        return "it does not stretch the positions of windowed layers"
    return ""
