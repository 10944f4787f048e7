"""Which kind of tokenizer a model has, from headers alone: what is not supported is refused before anything is built.

Imports no tokenizer library and reads no table, so that opening a model can ask.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgecore.checkpoint.fields import Fields, short
from edgecore.checkpoint.mapping import read_bytes
from edgecore.checkpoint.pretokenizers import PRE_TOKENIZERS, SYNONYMS
from edgecore.contract.errors import ModelNotFound, UnsupportedModel

LARGEST = 200_000_000
"""Bytes of a tokenizer.json; the largest known have 33 million."""
SUPPORTED = "BPE: byte-level (GPT-2's kind), and SentencePiece's with byte fallback"
GGUF_MODELS = {
    "gpt2": "byte-level BPE",
    "llama": "SentencePiece BPE by scores",
    "gemma4": "SentencePiece BPE by merges",
}
"""`tokenizer.ggml.model` by what it means."""
FILES = ("tokenizer.json", "tokenizer.model")
_TYPE = re.compile(rb'"model"\s*:\s*\{\s*"type"\s*:\s*"([^"\\]{0,40})"')
"""As the `tokenizers` library writes it. Inside a JSON string the quotes would stand behind a backslash."""


def check_tokenizer(path: Path, source_format: str, metadata: Mapping[str, Any]) -> None:
    """Refuses a tokenizer whose kind is not supported; in some ten milliseconds, whatever its size. A model without any
    passes: it may be asked for logits.

    `path` is the GGUF file or the folder, `source_format` is `gguf` or `huggingface`, `metadata` the GGUF metadata.
    Raises `UnsupportedModel` naming file, field and what is supported; `CorruptModel`.
    """
    if source_format == "gguf":
        if "tokenizer.ggml.model" in metadata:
            gguf_kind(path, metadata)
    elif (path / "tokenizer.json").is_file():
        check_tokenizer_json(path / "tokenizer.json", read_bytes(path / "tokenizer.json", LARGEST))
    elif (path / "tokenizer.model").is_file():
        from edgecore.checkpoint.sentencepiece_file import read_settings

        read_settings(path / "tokenizer.model")


def gguf_kind(file: Path, metadata: Mapping[str, Any]) -> tuple[str, str]:
    """`tokenizer.ggml.model` and, with synonyms resolved, `tokenizer.ggml.pre`. Raises as `check_tokenizer`."""
    fields = Fields(file, metadata, "tokenizer.ggml.")
    model = fields.text("model")
    if model not in GGUF_MODELS:
        raise UnsupportedModel(
            f"{file}: field 'tokenizer.ggml.model': {short(model)}",
            supported=", ".join(f"{name} ({what})" for name, what in GGUF_MODELS.items()),
        )
    pre = fields.text("pre", "default")
    pre = SYNONYMS.get(pre, pre)
    if model == "gpt2" and pre not in PRE_TOKENIZERS:
        said = short(pre) if fields.has("pre") else "is missing: the file is older than the field"
        raise UnsupportedModel(
            f"{file}: field 'tokenizer.ggml.pre': {said}", supported=", ".join(sorted({*PRE_TOKENIZERS, *SYNONYMS}))
        )
    return model, pre


def check_tokenizer_json(file: Path, data: bytes) -> None:
    """Refuses a tokenizer.json that says another kind than BPE; says nothing of one that it cannot make out."""
    found = _TYPE.search(data)
    if found and found.group(1) != b"BPE":
        raise other_kind(file, found.group(1).decode("utf-8", "replace"))


def other_kind(file: Path, kind: str) -> UnsupportedModel:
    """The error for a tokenizer.json of another kind."""
    return UnsupportedModel(f"{file}: field 'model.type': {short(kind)}", supported=SUPPORTED)


def tokenizer_file(folder: Path) -> Path:
    """The file that the folder's tokenizer is read from. Raises `ModelNotFound`; `UnsupportedModel` for other files."""
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    for name in ("tekken.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.bin"):
        if (folder / name).is_file():
            raise UnsupportedModel(f"{folder / name}: is the only tokenizer in the folder", supported=", ".join(FILES))
    raise ModelNotFound(f"{folder}: has no {' and no '.join(FILES)}", supported=", ".join(FILES))
