"""A text model is a folder, and the IR is two files of it: here is everything else, for our sessions and for GenAI's.

    openvino_model.xml, .bin                              the IR: convert_text.py and quantize_text.py write it
    openvino_tokenizer.*, openvino_detokenizer.*          what openvino_genai reads: tokenizer_ir.py
    tokenizer.json or tokenizer.model, and their like     what our own sessions read
    config.json, generation_config.json, chat_template.jinja

Folders that optimum-intel made have the same names, so both are opened by the same functions.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgecore.checkpoint import Checkpoint, Tokenizer, folder_config, write_tokenizer
from edgecore.checkpoint.chat_source import optional_json
from edgecore.checkpoint.fields import Fields
from edgecore.checkpoint.tokenizer import load_tokenizer
from edgecore.checkpoint.tokenizer_kind import FILES
from edgecore.checkpoint.tokenizer_out import COPIED, has_tokenizer
from edgecore.checkpoint.tokenizer_special import ids
from edgecore.contract import Artifact, ModelNotFound, PayloadFile

MODEL, WEIGHTS = "openvino_model.xml", "openvino_model.bin"
TOKENIZER, DETOKENIZER = "openvino_tokenizer", "openvino_detokenizer"
"""Each an .xml and a .bin."""
TEMPLATE = "chat_template.jinja"
CONFIG, GENERATION = "config.json", "generation_config.json"
OPENVINO_TOKENIZER = tuple(f"{stem}.{end}" for stem in (TOKENIZER, DETOKENIZER) for end in ("xml", "bin"))
CONFIGS = (CONFIG, GENERATION, "openvino_config.json")
NOT_FOR_GENAI = "without openvino_tokenizer.xml openvino_genai does not load the folder"
_LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx")
"""How a config.json says the trained context; the later names are those of GPT-2, MPT, ChatGLM, GPT-J."""


def model_file(artifact: Artifact) -> Path:
    """The IR's .xml, of a made artifact and of a native folder. Raises `ModelNotFound`."""
    file = artifact.model
    if file.is_dir():
        file /= MODEL
    for needed in (file, file.with_suffix(".bin")):
        if not needed.is_file():
            raise ModelNotFound(f"{needed} does not exist", supported=f"{MODEL} with {WEIGHTS} beside it")
    return file


def write_beside(model: Checkpoint, out: Path) -> tuple[list[PayloadFile], list[str]]:
    """Everything of the folder but the IR, and what a person should know about it."""
    from edgecore_openvino import tokenizer_ir

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
    try:
        notes = tokenizer_ir.write(tokenizer, out, (TOKENIZER, DETOKENIZER), model.decoder.context_length)
        names += OPENVINO_TOKENIZER
    except tokenizer_ir.NotExpressible as why:
        notes = [f"no tokenizer for openvino_genai, which would give other ids ({why}): {NOT_FOR_GENAI}; edgecore does"]
    return payload(names), notes


def copy_beside(source: Path, out: Path) -> list[PayloadFile]:
    """The same files from one folder into another, for what only changes the IR."""
    known = (*COPIED, *CONFIGS, *OPENVINO_TOKENIZER)
    names = [name for name in dict.fromkeys(known) if (source / name).is_file()]
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
    if (folder / f"{TOKENIZER}.xml").is_file() and not any((folder / name).is_file() for name in FILES):
        raise ModelNotFound(
            f"{folder}: has {TOKENIZER}.xml, which says neither which bytes a token is nor which tokens are special",
            supported=f"{' or '.join(FILES)} beside it",
            hint=f"cp {FILES[0]} tokenizer_config.json {folder}  # from the model that the IR was made of",
        )
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


def _generation(tokenizer: Tokenizer, given: Mapping[str, Any]) -> dict[str, Any]:
    """generation_config.json: the source's own, with every token that ends our sessions, so that GenAI's end there."""
    first = [*ids(given.get("eos_token_id")), tokenizer.special.get("eos")]
    ends = [token for token in first if token in tokenizer.eos_ids]
    made = {
        "bos_token_id": tokenizer.bos_id,
        "pad_token_id": tokenizer.special.get("padding"),
        **given,
        "eos_token_id": list(dict.fromkeys([*ends, *sorted(tokenizer.eos_ids)])) or None,
    }
    return {key: value for key, value in made.items() if value is not None}


def _role(name: str) -> str:
    if name == MODEL:
        return "model"
    if name == WEIGHTS:
        return "weights"
    if name in CONFIGS:
        return "config"
    return "tokenizer" if name in (*COPIED, *OPENVINO_TOKENIZER) else "other"


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
