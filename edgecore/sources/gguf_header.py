"""What a GGUF file says about itself, read in milliseconds: architecture, file type, context, and how long it must be.

Own code because `gguf.GGUFReader` turns every token and merge into an array before it answers (a second for a large
vocabulary), and detecting a kind or a truncated download must cost nothing. It is checked against that reader.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecore.contract.errors import CorruptModel, UnsupportedModel

MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 8


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Scalars of the metadata, and the tensors' types and extent."""

    metadata: Mapping[str, Any]
    """Strings and numbers by key; arrays (tokens, merges, scores) are left out."""
    bytes_by_type: Mapping[int, int]
    """ggml type number -> bytes; empty where a type is not known here."""
    end: int
    """The least size of a complete file, in bytes."""

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
    version or byte order that is not supported."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(data, path)
        header = _read(cursor, path)
    size = path.stat().st_size
    if size < header.end:
        raise CorruptModel(
            f"{path} is truncated: it has {size} bytes, and its tensors end at {header.end}", hint="fetch it again"
        )
    return header


def _read(cursor: _Cursor, path: Path) -> GgufHeader:
    if cursor.bytes(4, "magic") != MAGIC:
        raise CorruptModel(f"{path} is not a GGUF file")
    version = cursor.number("I", "version")
    if version not in (2, 3):
        other = "big-endian GGUF" if version & 0xFFFF == 0 else f"GGUF version {version}"
        raise UnsupportedModel(f"{path} is {other}", supported="GGUF versions 2 and 3, little-endian")
    tensors, pairs = cursor.number("Q", "tensor count"), cursor.number("Q", "metadata count")
    metadata: dict[str, Any] = {}
    for i in range(pairs):
        key = cursor.string(f"metadata key {i}")
        value = cursor.value(cursor.number("I", key), key)
        if value is not None:
            metadata[key] = value
    return _extent(cursor, path, tensors, metadata)


def _extent(cursor: _Cursor, path: Path, tensors: int, metadata: Mapping[str, Any]) -> GgufHeader:
    from gguf import GGML_QUANT_SIZES

    sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
    by_type: Counter[int] = Counter()
    end, known = 0, True
    for i in range(tensors):
        name = cursor.string(f"tensor name {i}")
        elements = 1
        dimensions = cursor.number("I", name)
        if dimensions > _MOST_DIMENSIONS:
            raise CorruptModel(f"{path}: tensor {name!r} has {dimensions} dimensions")
        for _ in range(dimensions):
            elements *= cursor.number("Q", name)
        kind, offset = cursor.number("I", name), cursor.number("Q", name)
        block, width = sizes.get(kind, (1, 0))
        known = known and kind in sizes
        by_type[kind] += elements // block * width
        end = max(end, offset + elements // block * width)
    alignment = metadata.get("general.alignment", 32)
    if not (isinstance(alignment, int) and 0 < alignment <= 1 << 20):
        raise CorruptModel(f"{path}: general.alignment is {alignment!r}")
    start = -(-cursor.at // alignment) * alignment
    return GgufHeader(metadata, dict(by_type) if known else {}, start + end if tensors else cursor.at)


class _Cursor:
    """Walks the file; running over its end is an answer that names the field."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data, self._path, self.at = data, path, 0

    def bytes(self, count: int, field: str) -> bytes:
        self._need(count, field)
        self.at += count
        return self._data[self.at - count : self.at]

    def number(self, code: str, field: str) -> Any:
        self._need(struct.calcsize(code), field)
        (value,) = struct.unpack_from(f"<{code}", self._data, self.at)
        self.at += struct.calcsize(code)
        return value

    def string(self, field: str) -> str:
        return self.bytes(self.number("Q", field), field).decode("utf-8", "replace")

    def value(self, kind: int, field: str) -> Any:
        """A scalar or a string; an array is walked over and answers None."""
        if kind == _STRING:
            return self.string(field)
        if kind == _ARRAY:
            return self._skip_array(field)
        if kind not in _SCALARS:
            raise CorruptModel(f"{self._path}: metadata {field!r} has the unknown type {kind}")
        return self.number(_SCALARS[kind], field)

    def _skip_array(self, field: str, depth: int = 0) -> None:
        kind, count = self.number("I", field), self.number("Q", field)
        if kind in _SCALARS:
            self._need(count * struct.calcsize(_SCALARS[kind]), field)
            self.at += count * struct.calcsize(_SCALARS[kind])
        elif kind == _STRING:
            for _ in range(count):
                length = self.number("Q", field)
                self._need(length, field)
                self.at += length
        elif kind == _ARRAY and depth < 4:
            for _ in range(count):
                self._skip_array(field, depth + 1)
        else:
            raise CorruptModel(f"{self._path}: metadata {field!r} is an array of the unknown type {kind}")

    def _need(self, count: int, field: str) -> None:
        if self.at + count > len(self._data):
            raise CorruptModel(
                f"{self._path} is truncated or damaged: {field!r} needs {count} bytes at {self.at}, "
                f"and the file ends at {len(self._data)}",
                hint="fetch it again",
            )
