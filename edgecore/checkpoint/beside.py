"""What stands beside the weights of a text model's folder, whoever's format the weights are in: tokenizer, chat
template, what ends a text, how long it may be. Plugins whose own formats are such folders share it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecore.checkpoint.chat_source import optional_json
from edgecore.checkpoint.fields import Fields
from edgecore.checkpoint.tokenizer_out import COPIED, has_tokenizer, write_tokenizer
from edgecore.checkpoint.tokenizer_special import ids

if TYPE_CHECKING:
    from edgecore.checkpoint.opening import Checkpoint
    from edgecore.checkpoint.tokenizer import Tokenizer

CONFIG, GENERATION, TEMPLATE = "config.json", "generation_config.json", "chat_template.jinja"
BESIDE = tuple(dict.fromkeys((*COPIED, GENERATION, TEMPLATE)))
"""What `write_beside` may write."""
LIMIT = "edgecore_max_context"
"""Of a config.json that says more for others' sake: tokens that the weights and settings beside it hold for."""
_LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx")
"""How a config.json says the trained context; the later names are those of GPT-2, MPT, ChatGLM, GPT-J."""


def write_beside(model: Checkpoint, out: Path) -> list[str]:
    """Writes all of it but config.json, and answers the files' names."""
    names = write_tokenizer(model, out)
    if not has_tokenizer(model):
        return names
    tokenizer = model.tokenizer
    write_json(out / GENERATION, _generation(tokenizer, optional_json(out / GENERATION).values))
    names.append(GENERATION)
    if tokenizer.chat_template:
        (out / TEMPLATE).write_text(tokenizer.chat_template, encoding="utf-8")
        names.append(TEMPLATE)
    return list(dict.fromkeys(names))


def open_tokenizer(folder: Path, vocab_size: int | None = None) -> Tokenizer:
    """The neutral tokenizer of such a folder, whoever made it.

    vocab_size: rows of the logits; config.json's number where it is not given.
    Raises `ModelNotFound` without one, `UnsupportedModel` for kinds that are not supported, `CorruptModel`.
    """
    from edgecore.checkpoint.tokenizer import load_tokenizer

    config = text_config(folder)
    return load_tokenizer(folder, "huggingface", config.values, vocab_size or config.integer("vocab_size"))


def trained_context(folder: Path) -> int:
    """Tokens that the model was trained for as config.json says; 0 where it does not. Raises `CorruptModel`."""
    config = text_config(folder)
    return next((config.integer(key) for key in (LIMIT, *_LENGTHS) if config.has(key)), 0)


def longrope_context(folder: Path) -> int:
    """Tokens after which longrope turns a whole sequence by its other frequencies; 0 for a model without it."""
    config = text_config(folder)
    scaling = config.section("rope_parameters") or config.section("rope_scaling") or Fields(config.file, {})
    if scaling.text("rope_type", scaling.text("type", "")) not in ("longrope", "su"):
        return 0
    key = "original_max_position_embeddings"
    return (config if config.has(key) else scaling).integer(key, trained_context(folder))


def text_config(folder: Path) -> Fields:
    """config.json, with what a model of several kinds says of its text part put on top; empty where there is none."""
    config = optional_json(folder / CONFIG)
    text = config.section("text_config")
    return Fields(config.file, {**config.values, **text.values}) if text else config


def ends(tokenizer: Tokenizer, first: Iterable[int] = ()) -> list[int]:
    """Every token that ends our sessions: `first` as far as they do, then the declared one."""
    wanted = [*first, tokenizer.special.get("eos")]
    return list(dict.fromkeys([*(t for t in wanted if t in tokenizer.eos_ids), *sorted(tokenizer.eos_ids)]))


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _generation(tokenizer: Tokenizer, given: Mapping[str, Any]) -> dict[str, Any]:
    """generation_config.json: the source's own, with every token that ends our sessions, so that others' end there."""
    made = {
        "bos_token_id": tokenizer.bos_id,
        "pad_token_id": tokenizer.special.get("padding"),
        **given,
        "eos_token_id": ends(tokenizer, ids(given.get("eos_token_id"))) or None,
    }
    return {key: value for key, value in made.items() if value is not None}
