"""Reading a GGUF header, ours rather than the `gguf` package's because that takes 2.9 s for a 135M model (it makes an
array of every token) and answers a damaged file with whatever numpy raises. Here: milliseconds, and typed errors.

Format: ggml's docs/gguf.md. Everything is checked before it is believed: a count against the bytes that are left, an
offset against the file.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgecore.checkpoint.fields import short
from edgecore.checkpoint.mapping import map_file
from edgecore.checkpoint.storage import GGML, Bytes, Storage
from edgecore.contract.errors import CorruptModel, UnsupportedModel

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_ENTRIES = 1 << 16
"""Metadata keys, or tensors. Real files have a few thousand at most."""
MOST_ITEMS = 1 << 22
"""Items of all arrays together. The largest vocabularies have 2^18 tokens and 2^19 merges."""
LONGEST_HEADER = 1 << 27
"""Bytes. The largest real ones, with a whole tokenizer.json in them, have a third of it."""
LONGEST_NAME = 1 << 16
"""Bytes of a key or tensor name, as gguf.md limits keys."""

Data = mmap.mmap | bytes
"""What a header is parsed from: a file's mapping, or its bytes."""

_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True, eq=False)
class GgufArray:
    """An array in the metadata, decoded when asked for: a tokenizer's are most of the header."""

    file: Path
    key: str
    kind: int
    count: int
    data: Data
    start: int
    end: int

    def read(self) -> list[Any]:
        """The items as Python values. Raises `CorruptModel` for text that is not UTF-8."""
        if self.kind != _STRING:
            items = np.frombuffer(self.data, np.dtype(_NUMBERS[self.kind]), self.count, self.start)
            return [bool(i) for i in items] if self.kind == _BOOL else items.tolist()
        texts, at, unpack = [], self.start, _LENGTH.unpack_from
        for _ in range(self.count):
            (length,) = unpack(self.data, at)
            at += 8 + length
            texts.append(self.data[at - length : at])
        try:
            return [text.decode() for text in texts]
        except UnicodeDecodeError as error:
            raise CorruptModel(f"{self.file}: field {self.key!r}: an item is not UTF-8 ({error})") from None


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One entry of the tensor table; the shape is in numpy's order."""

    name: str
    shape: tuple[int, ...]
    type: Storage
    data: Bytes


@dataclass(frozen=True, slots=True)
class GgufHeader:
    metadata: dict[str, Any]
    """Scalars and text as Python values, arrays as `GgufArray`."""
    tensors: dict[str, GgufTensor]


def read_gguf(file: Path) -> tuple[GgufHeader, mmap.mmap]:
    """Header of a GGUF file and the mapping that its tensors lie in. Raises `CorruptModel`, `UnsupportedModel`."""
    mapped = map_file(file)
    return parse_gguf(file, mapped), mapped


def parse_gguf(file: Path, data: Data) -> GgufHeader:
    """The header in `data`, its tensors views of it; `file` is what errors name. Raises as `read_gguf` does."""
    cursor = _Cursor(file, data)
    if cursor.take(4, "magic") != MAGIC:
        raise CorruptModel(f"{file}: field 'magic': not a GGUF file")
    version = cursor.number("<I", "version")
    if version not in VERSIONS:
        swapped = struct.unpack(">I", struct.pack("<I", version))[0] in VERSIONS
        raise UnsupportedModel(
            f"{file}: field 'version': {'a big-endian file' if swapped else f'GGUF version {version}'}",
            supported="little-endian GGUF " + ", ".join(map(str, VERSIONS)),
        )
    tensor_count = cursor.count("tensor_count", 24, MOST_ENTRIES)
    entry_count = cursor.count("metadata_kv_count", 13, MOST_ENTRIES)
    metadata: dict[str, Any] = {}
    for number in range(entry_count):
        key = cursor.text(f"key {number}", LONGEST_NAME)
        if key in metadata:
            raise cursor.wrong(key, "stands twice in the metadata")
        metadata[key] = cursor.value(key)
    table = [_TableEntry.read(cursor, number) for number in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 8 or alignment % 8 or alignment > 1 << 20:
        raise CorruptModel(f"{file}: field 'general.alignment': {short(alignment)} is no multiple of 8 up to 2^20")
    begin = -(-cursor.at // alignment) * alignment
    return GgufHeader(metadata, _place(file, data, table, begin, alignment))


@dataclass(frozen=True, slots=True)
class _TableEntry:
    name: str
    shape: tuple[int, ...]
    type: Storage
    offset: int
    size: int

    @classmethod
    def read(cls, cursor: _Cursor, number: int) -> _TableEntry:
        name = cursor.text(f"name of tensor {number}", LONGEST_NAME)
        axes = cursor.number("<I", f"n_dims of {name}")
        if not 1 <= axes <= 4:
            raise cursor.wrong(f"n_dims of {name}", f"{axes} axes; 1 to 4 are possible")
        what = f"dimensions of {name}"
        shape = tuple(cursor.number("<Q", what) for _ in range(axes))[::-1]
        kind = cursor.number("<I", f"type of {name}")
        if kind not in GGML:
            raise UnsupportedModel(
                f"{cursor.file}: tensor {short(name)}: type number {kind}",
                supported=", ".join(s.name for s in GGML.values()),
            )
        storage = GGML[kind]
        if 0 in shape:
            raise cursor.wrong(what, f"shape {shape} has no elements")
        if shape[-1] % storage.block:
            raise cursor.wrong(what, f"rows of {shape[-1]} do not divide into {storage.name} blocks of {storage.block}")
        size = math.prod(shape) // storage.block * storage.size
        return cls(name, shape, storage, cursor.number("<Q", f"offset of {name}"), size)


def _place(file: Path, data: Data, table: list[_TableEntry], begin: int, alignment: int) -> dict[str, GgufTensor]:
    """The tensors with their bytes. Offsets must be aligned, inside the file and apart from each other."""
    stored = np.frombuffer(data, np.uint8)
    tensors: dict[str, GgufTensor] = {}
    end_of_last, last = 0, ""
    for entry in sorted(table, key=lambda e: e.offset):
        what = f"{file}: tensor {short(entry.name)}"
        if entry.name in tensors:
            raise CorruptModel(f"{what}: stands twice in the table")
        if entry.offset % alignment:
            raise CorruptModel(f"{what}: offset {entry.offset} is not a multiple of the alignment {alignment}")
        if entry.offset < end_of_last:
            raise CorruptModel(f"{what}: offset {entry.offset} lies inside tensor {short(last)}")
        start, end_of_last, last = begin + entry.offset, entry.offset + entry.size, entry.name
        if start + entry.size > len(data):
            raise CorruptModel(
                f"{what}: {entry.size} bytes at {start} reach past the end of the file ({len(data)}): it was cut short",
            )
        tensors[entry.name] = GgufTensor(entry.name, entry.shape, entry.type, stored[start : start + entry.size])
    return {entry.name: tensors[entry.name] for entry in table}


class _Cursor:
    """Walks the header. Every step asks first whether the bytes are there."""

    def __init__(self, file: Path, data: Data) -> None:
        self.file = file
        self.data = data
        self.end = min(len(data), LONGEST_HEADER)
        self.items = 0
        self.at = 0

    def wrong(self, field: str, why: str) -> CorruptModel:
        return CorruptModel(f"{self.file}: field {short(field, 100)}: {why}")

    def take(self, size: int, field: str) -> bytes:
        self._need(size, field)
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, code: str, field: str) -> Any:
        (value,) = struct.unpack(code, self.take(struct.calcsize(code), field))
        return value

    def count(self, field: str, least_bytes: int, most: int) -> int:
        """A number of things of at least `least_bytes` each, checked against what is left."""
        count: int = self.number("<Q", field)
        if count > most:
            raise self.wrong(field, f"{count} is more than the {most} that are accepted")
        if count * least_bytes > self.end - self.at:
            raise self.wrong(field, f"{count} do not fit in the {self.end - self.at} bytes that are left")
        return count

    def text(self, field: str, longest: int) -> str:
        length = self.count(field, 1, longest)
        try:
            return self.take(length, field).decode()
        except UnicodeDecodeError as error:
            raise self.wrong(field, f"is not UTF-8 ({error})") from None

    def value(self, key: str) -> Any:
        kind = self.number("<I", key)
        if kind == _STRING:
            return self.text(key, LONGEST_HEADER)
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _NUMBERS:
            raise self.wrong(key, f"value type {kind} is unknown")
        value = self.number(_NUMBERS[kind], key)
        return bool(value) if kind == _BOOL else value

    def _array(self, key: str) -> GgufArray:
        kind = self.number("<I", key)
        if kind != _STRING and kind not in _NUMBERS:
            raise self.wrong(key, f"an array of value type {kind}; numbers and text are possible")
        width = 8 if kind == _STRING else struct.calcsize(_NUMBERS[kind])
        count = self.count(key, width, MOST_ITEMS - self.items)
        self.items += count
        start = self.at
        if kind == _STRING:
            self._skip_texts(key, count)
        else:
            self.at += count * width
        return GgufArray(self.file, key, kind, count, self.data, start, self.at)

    def _skip_texts(self, key: str, count: int) -> None:
        """The one loop that a large vocabulary spends its time in, so it is written flat."""
        at, size, data = self.at, self.end, self.data
        unpack: Callable[[Any, int], tuple[int]] = _LENGTH.unpack_from
        for number in range(count):
            if at + 8 > size or (at := at + 8 + unpack(data, at)[0]) > size:
                raise self.wrong(key, f"item {number} of {count} reaches past the end of the file")
        self.at = at

    def _need(self, size: int, field: str) -> None:
        if self.at + size <= self.end:
            return
        if self.end == len(self.data):
            raise self.wrong(field, f"the file ends at byte {self.end}, before it: it was cut short")
        raise self.wrong(field, f"lies behind the {self.end} bytes that a header may have")
