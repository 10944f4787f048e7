"""Mistral 7B and Nemo: Llama with a window over all layers, in the first release only.

A GGUF file calls it `llama` and drops the window, so one is read as that family.
"""

from __future__ import annotations

from typing import Any

from edgecore.checkpoint.decoder import Decoder
from edgecore.checkpoint.families import Family, common
from edgecore.checkpoint.families.llama import FAMILY as LLAMA
from edgecore.checkpoint.families.written import written_config
from edgecore.checkpoint.fields import Fields


def _from_config(config: Fields) -> Decoder:
    sizes = common.config_sizes(config, kv_heads=8)
    return Decoder(
        family="mistral",
        rope=common.config_rope(config, sizes["head_dim"]),
        tied=config.flag("tie_word_embeddings", False),
        activation=common.config_activation(config, common.SILU),
        window=common.config_window(config),
        **sizes,
    )


def _to_config(decoder: Decoder) -> dict[str, Any]:
    return written_config(decoder, "MistralForCausalLM", sliding_window=decoder.window or None)


FAMILY = Family(
    name="mistral",
    model_types=("mistral",),
    gguf_architectures=LLAMA.gguf_architectures,
    from_config=_from_config,
    from_gguf=LLAMA.from_gguf,
    gguf_names=LLAMA.gguf_names,
    interleaved=True,
    to_config=_to_config,
)
