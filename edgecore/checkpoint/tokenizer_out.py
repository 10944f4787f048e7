"""The tokenizer's files beside the weights. A Hugging Face source keeps its own, byte for byte; from a GGUF file they
are made of its tables.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecore.checkpoint.mapping import read_bytes

if TYPE_CHECKING:
    from edgecore.checkpoint.opening import Checkpoint
    from edgecore.checkpoint.tokenizer import Tokenizer

COPIED = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
_LARGEST = 200_000_000
"""Bytes of one file; the largest tokenizer.json known has 33 million."""
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SHORT = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
"""Our roles by the first part of transformers' names."""


def write_tokenizer(model: Checkpoint, out: Path) -> list[str]:
    """Writes the tokenizer's files and answers their names: none for a source that has no tokenizer."""
    if model.source_format == "huggingface":
        names = [name for name in COPIED if (model.path / name).is_file()]
        for name in names:
            (out / name).write_bytes(read_bytes(model.path / name, _LARGEST))
        return names
    if not has_tokenizer(model):
        return []
    tokenizer = model.tokenizer
    (out / "tokenizer.json").write_text(tokenizer_json(tokenizer), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.decoder.context_length,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": tokenizer.add_bos,
        "add_eos_token": tokenizer.add_eos,
        "chat_template": tokenizer.chat_template,
        **{f"{short}_token": tokenizer.tokens[token] for short, token in _named(tokenizer).items()},
    }
    # A null is a fault to readers that take a key's presence for a text.
    said = {key: value for key, value in settings.items() if value is not None}
    (out / "tokenizer_config.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    return ["tokenizer.json", "tokenizer_config.json"]


def has_tokenizer(model: Checkpoint) -> bool:
    if model.source_format == "gguf":
        return "tokenizer.ggml.model" in model.metadata
    return any((model.path / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def special_ids(model: Checkpoint) -> dict[str, Any]:
    """What config.json says of special tokens: as a Hugging Face source says it, else from the tokenizer."""
    if model.source_format == "huggingface":
        return {key: model.metadata[key] for key in _IDS if key in model.metadata}
    if not has_tokenizer(model):
        return {}
    special, ends = model.tokenizer.special, model.tokenizer.eos_ids
    # The declared one first: readers that take a single id take that.
    eos = sorted(ends, key=lambda token: (token != special.get("eos"), token))
    ids = {"bos_token_id": special.get("bos"), "eos_token_id": eos or None, "pad_token_id": special.get("padding")}
    return {key: value for key, value in ids.items() if value is not None}


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """`tokenizer.json` with what text alone does not need: how ids become text, and what stands around a prompt."""
    from tokenizers import Tokenizer as Engine
    from tokenizers import decoders, processors

    engine = Engine.from_str(tokenizer.to_json())
    if tokenizer.model == "gpt2":
        engine.decoder = decoders.ByteLevel()
    else:
        strip = [decoders.Strip(" ", 1, 0)] if tokenizer.add_space_prefix else []
        engine.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
    special = _named(tokenizer)
    before = [tokenizer.tokens[special["bos"]]] if tokenizer.add_bos and "bos" in special else []
    after = [tokenizer.tokens[special["eos"]]] if tokenizer.add_eos and "eos" in special else []
    if before or after:
        engine.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            special_tokens=[(token, tokenizer.tokens.index(token)) for token in dict.fromkeys((*before, *after))],
        )
    return str(engine.to_str(pretty=True))


def _named(tokenizer: Tokenizer) -> dict[str, int]:
    """Special ids: `bos`, `eos`, `unk`, `pad`."""
    return {_SHORT[role]: token for role, token in tokenizer.special.items() if role in _SHORT}
