"""Which ids a Hugging Face folder gives a role, from the files that stand beside whatever tokenizer it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgecore.checkpoint.chat_source import optional_json
from edgecore.checkpoint.tokenizer import ROLES


def special_ids(
    folder: Path, config: Mapping[str, Any], id_of: Callable[[str], int | None], count: int
) -> dict[str, int]:
    """Ids by role: tokenizer_config.json names tokens, else special_tokens_map.json, else config.json gives ids."""
    sources = (optional_json(folder / "tokenizer_config.json"), optional_json(folder / "special_tokens_map.json"))
    special: dict[str, int] = {}
    for role, key in ROLES.items():
        for source in sources:
            text = token_text(source.values.get(key))
            found = None if text is None else id_of(text)
            if found is not None:
                special.setdefault(role, found)
        for token in ids(config.get(key + "_id"))[:1]:
            if token < count:
                special.setdefault(role, token)
    return special


def declared_ends(folder: Path, config: Mapping[str, Any], special: Mapping[str, int]) -> set[int]:
    """Ids that end a generation by what the files say."""
    generation = optional_json(folder / "generation_config.json").values.get("eos_token_id")
    eos = [special["eos"]] if "eos" in special else []
    return {*ids(generation), *ids(config.get("eos_token_id")), *eos}


def token_text(value: object) -> str | None:
    """A token's text: the value itself, or the `content` of an object."""
    text = value.get("content") if isinstance(value, Mapping) else value
    return text if isinstance(text, str) else None


def ids(value: Any) -> list[int]:
    """One id, a list of ids or null, as Hugging Face's configs have it."""
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0]
