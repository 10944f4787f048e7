"""A text model is a folder, and the IR is two files of it: here is everything else, for our sessions and for GenAI's.

    openvino_model.xml, .bin                              the IR: convert_text.py and quantize_text.py write it
    openvino_tokenizer.*, openvino_detokenizer.*          what openvino_genai reads: tokenizer_ir.py
    tokenizer.json or tokenizer.model, and their like     what our own sessions read
    config.json, generation_config.json, chat_template.jinja

Folders that optimum-intel made have the same names, so both are opened by the same functions.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from edgecore.checkpoint import Checkpoint, Tokenizer, beside, folder_config
from edgecore.checkpoint.beside import CONFIG, GENERATION, longrope_context, trained_context
from edgecore.checkpoint.tokenizer_kind import FILES
from edgecore.checkpoint.tokenizer_out import COPIED, has_tokenizer
from edgecore.contract import Artifact, ModelNotFound, PayloadFile

__all__ = ["CONFIG", "GENERATION", "longrope_context", "trained_context"]
MODEL, WEIGHTS = "openvino_model.xml", "openvino_model.bin"
TOKENIZER, DETOKENIZER = "openvino_tokenizer", "openvino_detokenizer"
"""Each an .xml and a .bin."""
OPENVINO_TOKENIZER = tuple(f"{stem}.{end}" for stem in (TOKENIZER, DETOKENIZER) for end in ("xml", "bin"))
CONFIGS = (CONFIG, GENERATION, "openvino_config.json")
NOT_FOR_GENAI = "without openvino_tokenizer.xml openvino_genai does not load the folder"


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

    names = [CONFIG, *beside.write_beside(model, out)]
    beside.write_json(out / CONFIG, folder_config(model, "f16"))
    if not has_tokenizer(model):
        return payload(names), [f"the source has no tokenizer: {NOT_FOR_GENAI}"]
    try:
        notes = tokenizer_ir.write(model.tokenizer, out, (TOKENIZER, DETOKENIZER), model.decoder.context_length)
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
    return beside.open_tokenizer(folder, vocab_size)


def _role(name: str) -> str:
    if name == MODEL:
        return "model"
    if name == WEIGHTS:
        return "weights"
    if name in CONFIGS:
        return "config"
    return "tokenizer" if name in (*COPIED, *OPENVINO_TOKENIZER) else "other"
