"""Where a Hugging Face folder keeps its chat template, found without building the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgecore.checkpoint.fields import Fields
from edgecore.checkpoint.mapping import read_text
from edgecore.checkpoint.safetensors_file import parse_json

_LARGEST = 1 << 24
"""Bytes of a file beside the weights and tokenizer.json; real ones stay below a megabyte."""


def folder_template(folder: Path) -> str | None:
    """chat_template.jinja, else the one in tokenizer_config.json: a text, or named ones of which `default` is meant."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return read_text(file, _LARGEST)
    value = optional_json(folder / "tokenizer_config.json").values.get("chat_template")
    if isinstance(value, list):
        named = {t.get("name"): t.get("template") for t in value if isinstance(t, Mapping)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def optional_json(file: Path) -> Fields:
    """The file's object; no fields where it does not exist."""
    return Fields(file, parse_json(file, read_text(file, _LARGEST)) if file.is_file() else {})
