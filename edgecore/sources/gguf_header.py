"""What a GGUF file says about itself, read in milliseconds: architecture, precision, context; and that it is whole.

Read by the neutral model's reader, which believes no count and no offset before it has checked it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecore.contract.errors import CorruptModel

MAGIC = b"GGUF"


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Strings and numbers of the metadata by key; arrays (tokens, merges, scores) are left out."""

    metadata: Mapping[str, Any]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    @property
    def context_length(self) -> int:
        length = self.metadata.get(f"{self.architecture}.context_length")
        return length if isinstance(length, int) else 0

    @property
    def precision(self) -> str:
        """`general.file_type` as llama.cpp's users write it (`q4_k_m`); empty where the file does not say."""
        from gguf import LlamaFileType

        try:
            name = LlamaFileType(self.metadata["general.file_type"]).name
        except (KeyError, ValueError):
            return ""
        return name.removeprefix("MOSTLY_").removeprefix("ALL_").lower()


def read_header(path: Path) -> GgufHeader:
    """Raises `CorruptModel` naming file and field when it is truncated or contradicts itself, `UnsupportedModel` for a
    version, byte order or tensor type that is not known."""
    from edgecore.checkpoint.gguf_file import GgufArray, read_gguf

    try:
        header, _ = read_gguf(path)
    except CorruptModel as error:
        raise CorruptModel(f"{error.what}: truncated or damaged", hint="fetch it again") from None
    # Without the arrays nothing holds the file's mapping.
    return GgufHeader({key: value for key, value in header.metadata.items() if not isinstance(value, GgufArray)})
