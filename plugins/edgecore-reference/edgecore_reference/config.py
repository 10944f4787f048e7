"""What stands beside the weights: `config.json` from the description of a decoder, and the tokenizer's files.

A Hugging Face source keeps its own tokenizer files, byte for byte. From a GGUF file they are made of the same tables.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, processors

from edgecore.checkpoint import Checkpoint, Decoder, Rope, Tokenizer
from edgecore.checkpoint.decoder import RopeScaling
from edgecore.contract import UnsupportedModel

ARCHITECTURES = {"llama": "LlamaForCausalLM"}
"""Family to transformers' class; the family's name is its `model_type`."""
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def decoder_config(decoder: Decoder, tokenizer: Tokenizer) -> dict[str, Any]:
    """`config.json`. Raises `UnsupportedModel` for what it cannot say."""
    if decoder.family not in ARCHITECTURES:
        raise UnsupportedModel(
            f"family {decoder.family!r} as a Hugging Face folder", supported=", ".join(ARCHITECTURES)
        )
    return {
        "architectures": [ARCHITECTURES[decoder.family]],
        "model_type": decoder.family,
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "head_dim": decoder.head_dim,
        "hidden_act": decoder.activation,
        "max_position_embeddings": decoder.context_length,
        "rms_norm_eps": decoder.norm_epsilon,
        "rope_theta": decoder.rope.theta,
        "rope_scaling": rope_scaling(decoder.rope),
        "tie_word_embeddings": decoder.tied,
        "attention_bias": decoder.attention_bias,
        "mlp_bias": decoder.mlp_bias,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": sorted(tokenizer.eos_ids),
    }


def rope_scaling(rope: Rope) -> dict[str, Any] | None:
    match rope.scaling:
        case RopeScaling.LINEAR:
            return {"rope_type": "linear", "factor": rope.factor}
        case RopeScaling.LLAMA3:
            return {
                "rope_type": "llama3",
                "factor": rope.factor,
                "low_freq_factor": rope.low_freq_factor,
                "high_freq_factor": rope.high_freq_factor,
                "original_max_position_embeddings": rope.original_context,
            }
        case RopeScaling.DIVISORS:
            return rope_scaling(as_llama3(rope))
    return None


def as_llama3(rope: Rope) -> Rope:
    """A GGUF file keeps only what Llama 3.1's rule came to; the rule is found again by the numbers of its releases."""
    known = replace(
        rope, scaling=RopeScaling.LLAMA3, factor=max(rope.divisors), low_freq_factor=1.0, high_freq_factor=4.0,
        original_context=8192, divisors=(),
    )  # fmt: skip
    if not np.allclose(known.frequency_divisors(), rope.frequency_divisors(), rtol=1e-5):
        raise UnsupportedModel("rotary frequencies that no `rope_scaling` describes", supported="linear, llama3")
    return known


def write_tokenizer(model: Checkpoint, out: Path) -> list[str]:
    """Writes the tokenizer's files; answers their names."""
    if model.source_format == "huggingface":
        names = [name for name in COPIED if (model.path / name).is_file()]
        for name in names:
            shutil.copyfile(model.path / name, out / name)
        return names
    tokenizer = model.tokenizer
    (out / "tokenizer.json").write_text(tokenizer_json(tokenizer), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": tokenizer.add_bos,
        "add_eos_token": tokenizer.add_eos,
        "chat_template": tokenizer.chat_template,
        **{f"{short}_token": tokenizer.tokens[token] for short, token in named(tokenizer).items()},
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return ["tokenizer.json", "tokenizer_config.json"]


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """`tokenizer.json` with what text alone does not need: how ids become text, and what stands around a prompt."""
    engine = Engine.from_str(tokenizer.to_json())
    if tokenizer.model == "gpt2":
        engine.decoder = decoders.ByteLevel()
    else:
        strip = [decoders.Strip(" ", 1, 0)] if tokenizer.add_space_prefix else []
        engine.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
    special = named(tokenizer)
    before = [tokenizer.tokens[special["bos"]]] if tokenizer.add_bos and "bos" in special else []
    after = [tokenizer.tokens[special["eos"]]] if tokenizer.add_eos and "eos" in special else []
    if before or after:
        engine.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            special_tokens=[(token, tokenizer.tokens.index(token)) for token in (*before, *after)],
        )
    return str(engine.to_str(pretty=True))


def named(tokenizer: Tokenizer) -> dict[str, int]:
    """Special ids by the first part of transformers' names: `bos`, `eos`, `unk`, `pad`."""
    short = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    return {short[role]: token for role, token in tokenizer.special.items() if role in short}
