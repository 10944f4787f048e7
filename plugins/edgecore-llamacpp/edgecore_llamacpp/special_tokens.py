"""Ids of special tokens and whether they are added, as llama.cpp's converter reads them out of a folder's files.

Its rules (`SpecialVocab` in its gguf-py) are guesses that grew over the years, and a file is the same file only when
they are the same guesses. They are written out here because the `gguf` package on the index carries an older set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgecore.checkpoint.chat_source import optional_json
from edgecore.checkpoint.mapping import read_text
from edgecore.checkpoint.safetensors_file import parse_json
from edgecore_llamacpp.header import Metadata

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
IDS = {
    "bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "sep": "seperator_token_id",
    "pad": "padding_token_id", "mask": "mask_token_id", "eot": "eot_token_id", "eom": "eom_token_id",
}  # fmt: skip
"""GGUF's keys, misspelt where GGUF's are. `cls` has none."""
ADDED = ("bos", "eos", "sep")
"""Roles that have an `add_X_token`."""
_LARGEST = 200_000_000


@dataclass
class SpecialTokens:
    """What a folder says of its special tokens."""

    ids: dict[str, int] = field(default_factory=dict)
    """By role, in the order in which they are written."""
    added: dict[str, bool] = field(default_factory=dict)
    roles: tuple[str, ...] = ROLES

    def describe(self, metadata: Metadata) -> None:
        for role, token in self.ids.items():
            if role in IDS:
                metadata.put(f"tokenizer.ggml.{IDS[role]}", token)
        for role, value in self.added.items():
            if role in ADDED:
                metadata.put(f"tokenizer.ggml.add_{role}_token", value)


def special_tokens(folder: Path, config: Mapping[str, Any], count: int | None) -> SpecialTokens:
    """count: ids from here on are left out; None takes them all."""
    found = SpecialTokens()
    settings = dict(optional_json(folder / "tokenizer_config.json").values)
    said = bool(settings)
    file = folder / "tokenizer.json"
    spec = parse_json(file, read_text(file, _LARGEST)) if file.is_file() else {}
    for processor in _processors(spec):
        _look_around(processor, settings, found)
    contents: dict[str, Any] = {}
    for token in spec.get("added_tokens") or ():
        if isinstance(token, Mapping):
            contents.setdefault(str(token.get("content")), token.get("id"))
    for role in found.roles if said else ():
        add = settings.get(f"add_{role}_token")
        if isinstance(add, bool):
            found.added.setdefault(role, add)
        value = settings.get(f"{role}_token")
        text = value.get("content") if isinstance(value, Mapping) else value
        if isinstance(text, str):
            _keep(found.ids, role, contents.get(text), count)
    for role in found.roles:
        _keep(found.ids, role, config.get(f"{role}_token_id"), count)
    return found


def _keep(ids: dict[str, int], role: str, token: Any, count: int | None) -> None:
    if isinstance(token, int) and not isinstance(token, bool) and token >= 0 and (count is None or token < count):
        ids.setdefault(role, token)


def _processors(spec: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    whole = spec.get("post_processor")
    if isinstance(whole, Mapping):
        parts = whole.get("processors", [whole])
        yield from (part for part in parts if isinstance(part, Mapping))


def _look_around(processor: Mapping[str, Any], settings: dict[str, Any], found: SpecialTokens) -> None:
    """What one post-processor puts before and after a text."""
    for role, instead in (("bos", "cls"), ("eos", "sep")):
        if not settings.get(f"{role}_token") and settings.get(f"{instead}_token"):
            settings[f"{role}_token"] = settings[f"{instead}_token"]
    match processor.get("type"):
        case "ByteLevel":
            found.added.setdefault("bos", False)
            found.added.setdefault("eos", False)
        case "TemplateProcessing":
            _look_at_template(processor, settings, found)


def _look_at_template(processor: Mapping[str, Any], settings: dict[str, Any], found: SpecialTokens) -> None:
    single = [_text_of(part) for part in processor.get("single") or ()]
    first, last = (single[0], single[-1]) if len(single) > 1 else (None, None)
    if first:
        if first not in (settings.get("bos_token"), settings.get("cls_token")):
            settings["bos_token"] = settings.get("bos_token") or first
            settings["cls_token"] = settings.get("cls_token") or first
        found.added["bos"] = first in (settings["bos_token"], settings.get("cls_token"))
    if last:
        if last != settings.get("eos_token"):
            role = next((r for r in ("eot", "eom") if r not in found.roles), None)
            if role:
                found.roles = (*found.roles, role)
                settings[f"{role}_token"] = settings.get("eos_token")
            settings["eos_token"] = last
        found.added["eos"] = True
    _look_between(processor, first, last, settings, found)


def _look_between(
    processor: Mapping[str, Any], first: str | None, last: str | None, settings: dict[str, Any], found: SpecialTokens
) -> None:
    """Whether a separator stands between the two texts of a pair."""
    pair = list(processor.get("pair") or ())
    pair = pair[1:] if pair and first and _text_of(pair[0]) == first else pair
    pair = pair[:-1] if pair and last and _text_of(pair[-1]) == last else pair
    if len(pair) < 3 or _sequence_of(pair[0]) != "A" or _sequence_of(pair[-1]) != "B":
        return
    between = [_text_of(part) for part in pair[1:-1]]
    ends = (settings.get("sep_token"), settings.get("eos_token"))
    found.added["sep"] = bool(between[0] and between[0] in ends and not last) or bool(
        len(between) == 2 and between[1] and between[1] in ends
    )
    if found.added["sep"] and not settings.get("sep_token"):
        settings["sep_token"] = settings.get("eos_token")


def _text_of(part: Any) -> str | None:
    token = part.get("SpecialToken") if isinstance(part, Mapping) else None
    text = token.get("id") if isinstance(token, Mapping) else None
    return text if isinstance(text, str) else None


def _sequence_of(part: Any) -> str | None:
    sequence = part.get("Sequence") if isinstance(part, Mapping) else None
    return sequence.get("id") if isinstance(sequence, Mapping) else None
