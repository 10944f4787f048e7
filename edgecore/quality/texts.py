"""The texts that models are compared on. They ship with the package, so that a figure can be had without a network and
means the same everywhere; see `texts/PROVENANCE.md`."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from edgecore.contract.errors import BadRequest

LEVELS = {"quick": ("short.txt",), "full": ("short.txt", "more.txt")}
TOKENS = {"quick": 256, "full": 2048}
"""How many tokens of each text are scored at most. One number for all models keeps positions comparable."""


def evaluation_text(level: str = "quick") -> tuple[str, str]:
    """(text, SHA-256 of its UTF-8 bytes, hex) of level `quick` or `full`. Raises `BadRequest` for any other."""
    if level not in LEVELS:
        raise BadRequest(f"no evaluation text {level!r}", supported=", ".join(LEVELS))
    folder = files("edgecore.quality") / "texts"
    data = b"".join((folder / name).read_bytes() for name in LEVELS[level])
    return data.decode("utf-8"), hashlib.sha256(data).hexdigest()


def token_limit(sha256: str) -> int:
    """How many tokens of the text with this digest are scored; of any other text, as many as of the full one."""
    levels = (level for level in LEVELS if evaluation_text(level)[1] == sha256)
    return TOKENS[next(levels, "full")]
