"""The front of a GGUF file, written here rather than by the `gguf` package: that packs a vocabulary of 150,000 entries
item by item, which takes longer than copying the weights of a small model.

Format: ggml's docs/gguf.md, version 3, little-endian.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

ALIGNMENT = 32
"""Bytes: where tensors begin, counted from the first one."""


class Kind(IntEnum):
    """A metadata value's type, with GGUF's numbers."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_NUMBERS = {
    Kind.UINT8: "<u1", Kind.INT8: "<i1", Kind.UINT16: "<u2", Kind.INT16: "<i2", Kind.UINT32: "<u4", Kind.INT32: "<i4",
    Kind.FLOAT32: "<f4", Kind.BOOL: "<u1", Kind.UINT64: "<u8", Kind.INT64: "<i8", Kind.FLOAT64: "<f8",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the tensor table; the shape is in numpy's order."""

    name: str
    shape: tuple[int, ...]
    type: int
    """ggml's number."""
    nbytes: int


@dataclass(slots=True)
class Metadata:
    """Keys and values in the order in which they are written; a key that comes again keeps its place."""

    architecture: str
    values: dict[str, bytes] = field(default_factory=dict)
    """Type and value as they stand in the file."""

    def put(self, key: str, value: Any, kind: Kind | None = None) -> None:
        """`{arch}` in a key stands for the architecture. Without `kind` the one that llama.cpp's converter uses: UINT32
        for whole numbers, FLOAT32 for others."""
        kind = _kind(value) if kind is None else kind
        self.values[key.replace("{arch}", self.architecture)] = struct.pack("<I", kind) + _packed(kind, value)

    def put_array(self, key: str, items: Sequence[Any], kind: Kind) -> None:
        """An array, unless it would be empty: those are left out."""
        if len(items):
            packed = _packed_texts(items) if kind is Kind.STRING else np.asarray(items, _NUMBERS[kind]).tobytes()
            self.values[key.replace("{arch}", self.architecture)] = (
                struct.pack("<IIQ", Kind.ARRAY, kind, len(items)) + packed
            )

    def put_raw(self, key: str, stored: bytes) -> None:
        """Type and value as another file has them."""
        self.values[key] = stored


def front(metadata: Metadata, entries: Sequence[Entry]) -> bytes:
    """Everything before the first tensor, padding included."""
    out = [struct.pack("<4sIQQ", b"GGUF", 3, len(entries), len(metadata.values))]
    for key, stored in metadata.values.items():
        out += (_text(key), stored)
    offset = 0
    for entry in entries:
        axes = entry.shape[::-1]
        out += (_text(entry.name), struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, entry.type, offset))
        offset += entry.nbytes + padding(entry.nbytes)
    return b"".join([*out, bytes(padding(sum(map(len, out))))])


def padding(size: int) -> int:
    """Bytes that are missing to the next multiple of the alignment."""
    return -size % ALIGNMENT


def stored_values(header: bytes | mmap.mmap, keys: Mapping[str, Any]) -> dict[str, bytes]:
    """Type and value of each key as bytes, from the front of a GGUF file that has been read and checked before."""
    (count,) = struct.unpack_from("<Q", header, 16)
    at, found = 24, {}
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", header, at)
        key = header[at + 8 : at + 8 + length].decode()
        start = at + 8 + length
        at = _end(header, start + 4, struct.unpack_from("<I", header, start)[0])
        if key in keys:
            found[key] = header[start:at]
    return found


def _end(header: bytes | mmap.mmap, at: int, kind: int) -> int:
    if kind == Kind.STRING:
        return at + 8 + int(struct.unpack_from("<Q", header, at)[0])
    if kind != Kind.ARRAY:
        return at + np.dtype(_NUMBERS[Kind(kind)]).itemsize
    inner, count = struct.unpack_from("<IQ", header, at)
    at += 12
    if inner != Kind.STRING:
        return at + int(count) * np.dtype(_NUMBERS[Kind(inner)]).itemsize
    unpack = struct.Struct("<Q").unpack_from
    for _ in range(count):
        at += 8 + unpack(header, at)[0]
    return at


def _kind(value: Any) -> Kind:
    if isinstance(value, bool):
        return Kind.BOOL
    if isinstance(value, str):
        return Kind.STRING
    return Kind.UINT32 if isinstance(value, int) else Kind.FLOAT32


def _packed(kind: Kind, value: Any) -> bytes:
    """Raises `TypeError`, `ValueError` and `OverflowError` for a value that is not of its kind."""
    if kind is Kind.STRING:
        return _text(value)
    if not isinstance(value, int | float) or (kind not in (Kind.FLOAT32, Kind.FLOAT64) and value != int(value)):
        raise TypeError(f"{value!r} is no {kind.name}")
    return np.array(value, _NUMBERS[kind]).tobytes()


def _text(value: str) -> bytes:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _packed_texts(items: Sequence[str]) -> bytes:
    pack = struct.Struct("<Q").pack
    out: list[bytes] = []
    for item in items:
        data = item.encode()
        out += (pack(len(data)), data)
    return b"".join(out)
