"""ONNX files have no magic number: this walk over the protobuf's lengths tells whether a file is one, whether it is
whole, what its weights are stored as, which files beside it carry them, and what its graph takes, does and gives.

Own code because neither the core nor every plugin depends on onnx or protobuf, and few of their fields are needed.
Fields: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import mmap
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from edgecore.contract.errors import CorruptModel, UnsupportedModel

if TYPE_CHECKING:
    from edgecore.contract.sessions import TensorSpec

Buffer: TypeAlias = "mmap.mmap | bytes"
_MODEL = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
"""ModelProto: field -> wire type. 1 is ir_version, 7 the graph."""
_GRAPH, _INITIALIZER, _NODE, _EXTERNAL = 7, 5, 1, 13
_INSIDE = {
    "graph": {1: "node", 5: "tensor", 15: "sparse"}, "function": {7: "node"}, "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}  # fmt: skip
"""Messages that hold tensors: field -> what it is."""
_DEEPEST = 100
"""Messages in messages; protobuf's own parsers stop there."""
_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16, 17: 8,
    18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2, 27: 6, 28: 6,
}  # fmt: skip
_DATA_TYPES = {
    1: "f32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 10: "f16", 11: "f64", 16: "bf16",
    17: "f8e4m3", 19: "f8e5m2", 21: "uint4", 22: "int4", 23: "f4e2m1",
}  # fmt: skip
_NUMPY_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "object", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
    17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 21: "uint4", 22: "int4",
    23: "float4_e2m1fn", 24: "float8_e8m0fnu", 25: "uint2", 26: "int2", 27: "float6_e2m3fn", 28: "float6_e3m2fn",
}  # fmt: skip
"""TensorProto.DataType by numpy's and ml_dtypes' names; text is numpy's `object`."""


class NotOnnx(Exception):
    """The bytes are not a ModelProto."""


@dataclass(frozen=True, slots=True)
class OnnxHeader:
    """What the graph's initializers say."""

    precision: str
    """The type that most elements of the weights have; empty for a model without weights."""
    external: tuple[str, ...]
    """Files beside the model that carry weights, relative to its folder."""


@dataclass(frozen=True, slots=True)
class OnnxNode:
    """One operator of a graph, or of a graph inside it."""

    operator: str
    """`Conv`; with its domain where that is not onnx's own: `com.microsoft.Attention`."""
    inputs: tuple[str, ...]
    """Names; empty for one that is left out."""
    attributes: Mapping[str, int | str | None]
    """Integers and strings; None for what has another type."""


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """What a model takes, does and gives."""

    inputs: tuple[TensorSpec, ...]
    """Without those that are weights. A dimension without a name is called `INPUT_AXIS`."""
    outputs: tuple[TensorSpec, ...]
    opsets: Mapping[str, int]
    """Version by domain; onnx's own is the empty string."""
    nodes: tuple[OnnxNode, ...]


def looks_like_onnx(start: bytes) -> bool:
    """Whether a file may be ONNX, from its first bytes: `ir_version`, then another known field."""
    try:
        fields = _fields(start, 0, len(start), strict=False)
        number, wire, version, _ = next(fields)
        return (number, wire) == (1, 0) and 1 <= version < 1000 and _MODEL.get(next(fields)[0]) is not None
    except (NotOnnx, StopIteration):
        return False


def read_header(path: Path) -> OnnxHeader:
    """Raises `CorruptModel` for a truncated file, for one without a graph, and for weights that are missing, cut off or
    outside its folder."""
    header, needed = _open(path)
    folders = {
        path.parent.resolve(),
        path.resolve().parent,
    }  # The second of a file that is a link, as in a hub's cache.
    for name, size in needed.items():
        if "\0" in name or any(len(os.fsencode(part)) > 255 for part in name.split("/")):
            raise CorruptModel(f"{path} takes weights from {name[:80]!r}, which is no file's name")
        beside = (path.parent / name).resolve()
        if not any(beside.is_relative_to(folder) for folder in folders):
            raise CorruptModel(f"{path} takes weights from {name!r}, outside its folder")
        if not beside.is_file():
            raise CorruptModel(f"{path} takes weights from {name}, which is not beside it")
        if (held := beside.stat().st_size) < size:
            raise CorruptModel(f"{beside} holds {held:,} bytes, {path.name} speaks of {size:,}: it is truncated")
    return header


def read_onnx(path: Path) -> OnnxGraph:
    """The graph without its weights. Raises as `read_header`, and `UnsupportedModel` for inputs and outputs that are no
    tensors (sequences, maps, optional values)."""
    read_header(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _graph(data)
        except NotOnnx as error:
            raise CorruptModel(f"{path} is damaged: {error}", hint="fetch it again") from error


def external_files(path: Path) -> tuple[str, ...]:
    """`OnnxHeader.external` whether or not those files are there; empty for a file that is not ONNX."""
    with path.open("rb") as file:
        start = file.read(256)
    return _open(path)[0].external if looks_like_onnx(start) else ()


def _open(path: Path) -> tuple[OnnxHeader, dict[str, int]]:
    """What the file says, and how many bytes each file beside it must hold."""
    if path.stat().st_size == 0:
        raise CorruptModel(f"{path} is empty", hint="fetch it again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _read(data)
        except NotOnnx as error:
            raise CorruptModel(f"{path} is truncated or damaged: {error}", hint="fetch it again") from error


def _read(data: Buffer) -> tuple[OnnxHeader, dict[str, int]]:
    elements: Counter[int] = Counter()
    external: dict[str, int] = {}
    graphs = 0
    for number, wire, start, end in _fields(data, 0, len(data)):
        if _MODEL.get(number, wire) != wire:
            raise NotOnnx(f"field {number} of ModelProto has wire type {wire}")
        graphs += number == _GRAPH
        if number in (_GRAPH, 25):
            _tensors(data, start, end, "graph" if number == _GRAPH else "function", elements, external)
    if not graphs:
        raise NotOnnx("it has no graph")
    dominant = elements.most_common(1)[0][0] if elements else 0
    return OnnxHeader(_DATA_TYPES.get(dominant, ""), tuple(external)), external


def _tensors(
    data: Buffer, start: int, end: int, kind: str, elements: Counter[int], external: dict[str, int], depth: int = 1
) -> None:
    """Every tensor within a message; the elements of a graph's own initializers are counted."""
    if depth > _DEEPEST:
        raise NotOnnx(f"it is more than {_DEEPEST} messages deep")
    for number, wire, at, until in _fields(data, start, end):
        inner = _INSIDE[kind].get(number) if wire == 2 else None
        if inner == "tensor":
            _tensor(data, at, until, elements if depth == 1 else Counter(), external)
        elif inner:
            _tensors(data, at, until, inner, elements, external, depth + 1)


def _tensor(data: Buffer, start: int, end: int, elements: Counter[int], external: dict[str, int]) -> None:
    """TensorProto: dims 1, data_type 2, external_data 13 (key 1, value 2)."""
    count, kind = 1, 0
    entries: dict[str, str] = {}
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
            entry = {field: _text(data, a, b) for field, _, a, b in pair}
            entries[entry.get(1, "")] = entry.get(2, "")
    elements[kind] += count
    if (name := entries.get("location")) is not None:
        size = _number(entries, "length", -(-count * _BITS.get(kind, 0) // 8))
        external[name] = max(external.get(name, 0), _number(entries, "offset", 0) + size)


def _number(entries: Mapping[str, str], key: str, default: int) -> int:
    text = entries.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise NotOnnx(f"external_data: {key} is {text[:40]!r}")
    return int(text)


def _graph(data: Buffer) -> OnnxGraph:
    """ModelProto: graph 7, opset_import 8 (domain 1, version 2), functions 25 (node 7)."""
    opsets: dict[str, int] = {}
    nodes: list[OnnxNode] = []
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    weights: set[str] = set()
    for number, _, start, end in _fields(data, 0, len(data)):
        if number == 8:
            told = {field: (a, b) for field, _, a, b in _fields(data, start, end)}
            opsets[_domain(data, *told.get(1, (0, 0)))] = told.get(2, (0, 0))[0]
        elif number == 25:
            nodes += (_node(data, a, b, nodes) for field, _, a, b in _fields(data, start, end) if field == 7)
        elif number == _GRAPH:
            for inner, _, at, until in _fields(data, start, end):
                if inner == _NODE:
                    nodes.append(_node(data, at, until, nodes))
                elif inner == _INITIALIZER:
                    weights.update(_text(data, a, b) for field, _, a, b in _fields(data, at, until) if field == 8)
                elif inner in (11, 12):
                    (inputs if inner == 11 else outputs).append(_value(data, at, until))
    fed = tuple(spec for spec in inputs if spec.name not in weights)
    return OnnxGraph(fed, tuple(outputs), opsets, tuple(nodes))


def _node(data: Buffer, start: int, end: int, inner: list[OnnxNode]) -> OnnxNode:
    """NodeProto: input 1, op_type 4, attribute 5, domain 7. Nodes of graphs among its attributes go to `inner`."""
    names: list[str] = []
    operator = domain = ""
    attributes: dict[str, int | str | None] = {}
    for number, _, at, until in _fields(data, start, end):
        if number == 1:
            names.append(_text(data, at, until))
        elif number == 4:
            operator = _text(data, at, until)
        elif number == 7:
            domain = _domain(data, at, until)
        elif number == 5:
            name, value = _attribute(data, at, until, inner)
            attributes[name] = value
    return OnnxNode(f"{domain}.{operator}" if domain else operator, tuple(names), attributes)


def _attribute(data: Buffer, start: int, end: int, inner: list[OnnxNode]) -> tuple[str, int | str | None]:
    """AttributeProto: name 1, i 3, s 4, g 6, graphs 11."""
    name = ""
    found: int | str | None = None
    for number, _, at, until in _fields(data, start, end):
        if number == 1:
            name = _text(data, at, until)
        elif number == 3:
            found = at - (1 << 64) if at >> 63 else at
        elif number == 4:
            found = _text(data, at, until)
        elif number in (6, 11):
            inner += [_node(data, a, b, inner) for field, _, a, b in _fields(data, at, until) if field == _NODE]
    return name, found


def _value(data: Buffer, start: int, end: int) -> TensorSpec:
    """ValueInfoProto: name 1, type 2; TypeProto: tensor_type 1; its elem_type 1, shape 2; dim 1: value 1, name 2."""
    from edgecore.contract.sessions import TensorSpec

    told = {field: (a, b) for field, _, a, b in _fields(data, start, end)}
    name = _text(data, *told.get(1, (0, 0)))
    kinds = {field: (a, b) for field, _, a, b in _fields(data, *told.get(2, (0, 0)))}
    if 1 not in kinds:
        raise UnsupportedModel(f"{name!r} is no tensor", supported="tensors as inputs and outputs")
    tensor = {field: (a, b) for field, _, a, b in _fields(data, *kinds[1])}
    dtype = _NUMPY_TYPES.get(tensor.get(1, (0, 0))[0])
    if dtype is None:
        raise UnsupportedModel(f"{name!r} has no type that is known", supported=", ".join(_NUMPY_TYPES.values()))
    shape: list[int | str] = []
    for _, _, at, until in _fields(data, *tensor.get(2, (0, 0))):
        size = {field: (a, b) for field, _, a, b in _fields(data, at, until)}
        symbol = _text(data, *size.get(2, (0, 0)))
        # Exporters write -1 and ? for what they do not know.
        known = 1 in size and not size[1][0] >> 63
        shape.append(size[1][0] if known else symbol if symbol not in ("", "?") else f"{name}_{len(shape)}")
    return TensorSpec(name, dtype, tuple(shape))


def _domain(data: Buffer, start: int, end: int) -> str:
    name = _text(data, start, end)
    return "" if name == "ai.onnx" else name


def _text(data: Buffer, start: int, end: int) -> str:
    return bytes(data[start:end]).decode("utf-8", "replace")


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
