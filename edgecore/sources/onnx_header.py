"""ONNX files have no magic number: this walk over the protobuf's lengths tells whether a file is one, whether it is
whole, what its weights are stored as, and which files beside it carry them.

Own code because the core does not depend on onnx or protobuf, and needs four field numbers of them.
Fields: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from edgecore.contract.errors import CorruptModel

Buffer: TypeAlias = "mmap.mmap | bytes"
_MODEL = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
"""ModelProto: field -> wire type. 1 is ir_version, 7 the graph."""
_GRAPH, _INITIALIZER, _NODE, _EXTERNAL = 7, 5, 1, 13
_DATA_TYPES = {
    1: "f32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 10: "f16", 11: "f64", 16: "bf16",
    17: "f8e4m3", 19: "f8e5m2", 21: "uint4", 22: "int4", 23: "f4e2m1",
}  # fmt: skip


class NotOnnx(Exception):
    """The bytes are not a ModelProto."""


@dataclass(frozen=True, slots=True)
class OnnxHeader:
    """What the graph's initializers say."""

    precision: str
    """The type that most elements of the weights have; empty for a model without weights."""
    external: tuple[str, ...]
    """Files beside the model that carry weights, relative to its folder."""


def looks_like_onnx(start: bytes) -> bool:
    """Whether a file may be ONNX, from its first bytes: `ir_version`, then another known field."""
    try:
        fields = _fields(start, 0, len(start), strict=False)
        number, wire, version, _ = next(fields)
        return (number, wire) == (1, 0) and 1 <= version < 1000 and _MODEL.get(next(fields)[0]) is not None
    except (NotOnnx, StopIteration):
        return False


def read_header(path: Path) -> OnnxHeader:
    """Raises `CorruptModel` for a truncated file, for one without a graph, and for weights that lie outside."""
    header = _open(path)
    for name in header.external:
        beside = (path.parent / name).resolve()
        if not beside.is_relative_to(path.parent.resolve()):
            raise CorruptModel(f"{path} takes weights from {name!r}, outside its folder")
        if not beside.is_file():
            raise CorruptModel(f"{path} takes weights from {name}, which is not beside it")
    return header


def external_files(path: Path) -> tuple[str, ...]:
    """`OnnxHeader.external` whether or not those files are there; empty for a file that is not ONNX."""
    with path.open("rb") as file:
        start = file.read(256)
    return _open(path).external if looks_like_onnx(start) else ()


def _open(path: Path) -> OnnxHeader:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _read(data)
        except NotOnnx as error:
            raise CorruptModel(f"{path} is truncated or damaged: {error}", hint="fetch it again") from error


def _read(data: Buffer) -> OnnxHeader:
    elements: Counter[int] = Counter()
    external: dict[str, None] = {}
    graphs = 0
    for number, wire, start, end in _fields(data, 0, len(data)):
        if _MODEL.get(number, wire) != wire:
            raise NotOnnx(f"field {number} of ModelProto has wire type {wire}")
        if number != _GRAPH:
            continue
        graphs += 1
        for inner, inner_wire, at, until in _fields(data, start, end):
            if inner == _INITIALIZER and inner_wire == 2:
                _tensor(data, at, until, elements, external)
    if not graphs:
        raise NotOnnx("it has no graph")
    dominant = elements.most_common(1)[0][0] if elements else 0
    return OnnxHeader(_DATA_TYPES.get(dominant, ""), tuple(external))


def _tensor(data: Buffer, start: int, end: int, elements: Counter[int], external: dict[str, None]) -> None:
    """TensorProto: dims 1, data_type 2, external_data 13 (key 1, value 2)."""
    count, kind = 1, 0
    for number, wire, at, until in _fields(data, start, end):
        if number == 1 and wire == 0:
            count *= at
        elif number == 1 and wire == 2:
            while at < until:
                dimension, at = _varint(data, at, until)
                count *= dimension
        elif number == 2 and wire == 0:
            kind = at
        elif number == _EXTERNAL and wire == 2:
            pair = (f for f in _fields(data, at, until) if f[1] == 2)
            entry = {field: bytes(data[a:b]).decode("utf-8", "replace") for field, _, a, b in pair}
            if entry.get(1) == "location":
                external[entry.get(2, "")] = None
    elements[kind] += count


def _fields(data: Buffer, at: int, end: int, strict: bool = True) -> Iterator[tuple[int, int, int, int]]:
    """(field, wire type, start, end) of each field; for a varint (field, 0, its value, 0)."""
    while at < end:
        key, at = _varint(data, at, end)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at, end)
            yield number, wire, value, 0
            continue
        if wire == 2:
            length, at = _varint(data, at, end)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise NotOnnx(f"wire type {wire} at byte {at}")
        if number == 0 or (strict and at + length > end):
            raise NotOnnx(f"field {number} needs {length} bytes at {at}, and its message ends at {end}")
        yield number, wire, at, at + length
        at += length


def _varint(data: Buffer, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise NotOnnx(f"a number runs over the end at byte {at}")
