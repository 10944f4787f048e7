"""A text model is a folder, and the ONNX is two files of it: here is everything else, for our sessions and for GenAI's.

    model.onnx, model.onnx.data                           the graph: convert_text.py and quantize_text.py write it
    genai_config.json                                     what onnxruntime_genai reads of all this
    tokenizer.json or tokenizer.model, and their like     the tokenizer, for both
    config.json, generation_config.json, chat_template.jinja

Folders that onnxruntime_genai's model builder made have the same names, so both are opened by the same functions.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgecore.checkpoint import Checkpoint, Decoder, RopeScaling, Tokenizer, folder_config, write_tokenizer
from edgecore.checkpoint.chat_source import optional_json
from edgecore.checkpoint.fields import Fields
from edgecore.checkpoint.tokenizer import load_tokenizer
from edgecore.checkpoint.tokenizer_out import COPIED, has_tokenizer
from edgecore.checkpoint.tokenizer_special import ids
from edgecore.contract import Artifact, PayloadFile
from edgecore_onnxruntime import layout
from edgecore_onnxruntime.layout import GENAI

MODEL, WEIGHTS = "model.onnx", "model.onnx.data"
TEMPLATE = "chat_template.jinja"
CONFIG, GENERATION = "config.json", "generation_config.json"
JSON = "tokenizer.json"
NOT_FOR_GENAI = "without it onnxruntime_genai takes and gives token ids, no text"
CONFIGS = (CONFIG, GENERATION, GENAI)
_BORDERS = {"phi3": 4096, "phi3small": 8192}
"""Model types by which onnxruntime_genai knows where longrope turns a text otherwise."""
_LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx")
"""How a config.json says the trained context; the later names are those of GPT-2, MPT, ChatGLM, GPT-J."""


def model_file(artifact: Artifact) -> Path:
    """The .onnx, of a made artifact and of a native folder. Raises as `layout.read`."""
    return layout.read(artifact).model


def write_beside(model: Checkpoint, out: Path) -> tuple[list[PayloadFile], list[str]]:
    """Everything of the folder but the graph and genai_config.json, and what a person should know about it."""
    tokenizer = model.tokenizer if has_tokenizer(model) else None
    names = [CONFIG, *write_tokenizer(model, out)]
    _write_json(out / CONFIG, folder_config(model, "f16"))
    if tokenizer is None:
        return payload(names), [f"the source has no tokenizer: {NOT_FOR_GENAI}"]
    _write_json(out / GENERATION, _generation(tokenizer, optional_json(out / GENERATION).values))
    names.append(GENERATION)
    if tokenizer.chat_template:
        (out / TEMPLATE).write_text(tokenizer.chat_template, encoding="utf-8")
        names.append(TEMPLATE)
    return payload(names), [] if JSON in names else [f"the source has no {JSON}: {NOT_FOR_GENAI}; edgecore does"]


def write_genai(model: Checkpoint, out: Path, context: int) -> PayloadFile:
    """genai_config.json: where onnxruntime_genai finds what, and how it stops."""
    special, ends = _special(model)
    decoder = model.decoder
    config = {
        "model": {
            "type": _genai_type(decoder),
            "vocab_size": decoder.vocab_size,
            "context_length": context,
            "bos_token_id": special.get("bos", 0),
            "eos_token_id": ends or [0],
            "pad_token_id": special.get("padding", ends[0] if ends else 0),
            "decoder": {
                "filename": MODEL,
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "hidden_size": decoder.hidden_size,
                "head_size": decoder.head_dim,
                "num_attention_heads": decoder.heads,
                "num_key_value_heads": decoder.kv_heads,
                "num_hidden_layers": decoder.layers,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {"do_sample": False, "max_length": context, "past_present_share_buffer": True},
    }
    _write_json(out / GENAI, config)
    return payload([GENAI])[0]


def copy_beside(source: Path, out: Path) -> list[PayloadFile]:
    """The same files from one folder into another, for what only changes the graph."""
    names = [name for name in dict.fromkeys((*COPIED, *CONFIGS)) if (source / name).is_file()]
    for name in names:
        shutil.copyfile(source / name, out / name)
    return payload(names)


def payload(names: list[str]) -> list[PayloadFile]:
    """Files of the folder with their roles."""
    return [PayloadFile(name, _role(name)) for name in dict.fromkeys(names)]


def open_tokenizer(folder: Path, vocab_size: int | None = None) -> Tokenizer:
    """The neutral tokenizer of such a folder, whoever made it.

    vocab_size: rows of the logits; config.json's number where it is not given.
    Raises `ModelNotFound` without one, `UnsupportedModel` for kinds that are not supported, `CorruptModel`.
    """
    config = _config(folder)
    return load_tokenizer(folder, "huggingface", config.values, vocab_size or config.integer("vocab_size"))


def trained_context(folder: Path) -> int:
    """Tokens that the model was trained for as config.json says; 0 where it does not. Raises `CorruptModel`."""
    config = _config(folder)
    return next((config.integer(key) for key in _LENGTHS if config.has(key)), 0)


def longrope_context(folder: Path) -> int:
    """Tokens after which longrope turns a whole sequence by its other frequencies; 0 for a model without it."""
    config = _config(folder)
    scaling = config.section("rope_parameters") or config.section("rope_scaling") or Fields(config.file, {})
    if scaling.text("rope_type", scaling.text("type", "")) not in ("longrope", "su"):
        return 0
    key = "original_max_position_embeddings"
    return (config if config.has(key) else scaling).integer(key, trained_context(folder))


def _config(folder: Path) -> Fields:
    """config.json, with what a model of several kinds says of its text part put on top."""
    config = optional_json(folder / CONFIG)
    text = config.section("text_config")
    return Fields(config.file, {**config.values, **text.values}) if text else config


def genai_border(decoder: Decoder) -> int:
    """Tokens after which onnxruntime_genai computes a longrope text anew, as it should; 0: it never does."""
    return decoder.rope.original_context if _genai_type(decoder) in _BORDERS else 0


def _genai_type(decoder: Decoder) -> str:
    """What onnxruntime_genai does by a model's type, ours needs in one thing only: longrope's border."""
    longrope = decoder.rope.scaling is RopeScaling.LONGROPE
    known = [type for type, border in _BORDERS.items() if longrope and border == decoder.rope.original_context]
    return known[0] if known else "decoder"


def _special(model: Checkpoint) -> tuple[Mapping[str, int], list[int]]:
    """Special tokens by role, and every token that ends our sessions, so that GenAI's end there."""
    if not has_tokenizer(model):
        return {}, []
    tokenizer = model.tokenizer
    return tokenizer.special, _ends(tokenizer, [])


def _ends(tokenizer: Tokenizer, given: Any) -> list[int]:
    first = [*ids(given), tokenizer.special.get("eos")]
    return list(dict.fromkeys([*(t for t in first if t in tokenizer.eos_ids), *sorted(tokenizer.eos_ids)]))


def _generation(tokenizer: Tokenizer, given: Mapping[str, Any]) -> dict[str, Any]:
    """generation_config.json: the source's own, with every token that ends our sessions."""
    made = {
        "bos_token_id": tokenizer.bos_id,
        "pad_token_id": tokenizer.special.get("padding"),
        **given,
        "eos_token_id": _ends(tokenizer, given.get("eos_token_id")) or None,
    }
    return {key: value for key, value in made.items() if value is not None}


def _role(name: str) -> str:
    if name == MODEL:
        return "model"
    if name == WEIGHTS:
        return "weights"
    if name in CONFIGS:
        return "config"
    return "tokenizer" if name in COPIED else "other"


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
