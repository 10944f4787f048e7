"""A graph and the weights of a checkpoint as one IR, in memory that does not grow with the model.

OpenVINO serializes the graph with its weights as parameters: an .xml and a .bin with the few small constants. Then the
weights go behind those, piece by piece, and each parameter of the .xml becomes the constant that lies there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgecore.checkpoint import Checkpoint, Tensor
from edgecore.contract import Progress, UnsupportedPrecision, check_room, full_disk

_PIECE = 1 << 20
"""Elements converted at once."""
_ALIGNMENT = 64
"""Bytes: a constant that starts so is used where the file is mapped."""
_BYTES = {"f32": 4, "f16": 2, "bf16": 2}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a weight lies in the .bin."""

    tensor: Tensor
    type: str
    offset: int

    @property
    def nbytes(self) -> int:
        return self.tensor.elements * _BYTES[self.type]


def write(graph: ov.Model, model: Checkpoint, xml: Path, progress: Progress) -> None:
    """`xml` and its .bin. The graph's parameters that are named as tensors of the model become its weights.

    Raises `CorruptModel` for weights that are not finite, `UnsupportedPrecision` for those that the type cannot hold,
    `DoesNotFit` for a full disk; what was written is gone then.
    """
    weights = xml.with_suffix(".bin")
    try:
        with full_disk(xml):
            _serialize(graph, xml, weights)
            tree = ElementTree.parse(xml)
            places = _placed(tree, model.tensors, weights.stat().st_size)
            tree.write(xml, encoding="utf-8", xml_declaration=True)
            _append(model, weights, places, progress)
    except BaseException:  # cancelled or failed: half a file is worse than none
        xml.unlink(missing_ok=True)
        weights.unlink(missing_ok=True)
        raise


def _serialize(graph: ov.Model, xml: Path, weights: Path) -> None:
    try:
        ov.serialize(graph, xml, weights)
    except RuntimeError:
        check_room(weights)
        raise


def _placed(tree: Any, tensors: Mapping[str, Tensor], end: int) -> list[_Place]:
    """Turn parameters into constants that begin after `end`; mark what widens them, so that nothing folds it away."""
    places = []
    layers, edges = tree.getroot().find("layers"), tree.getroot().find("edges")
    converted = {edge.get("from-layer"): edge.get("to-layer") for edge in edges}
    by_id = {layer.get("id"): layer for layer in layers}
    for layer in layers.findall("layer[@type='Parameter']"):
        tensor = tensors.get(layer.get("name"))
        if tensor is None:
            continue
        data = layer.find("data")
        place = _Place(tensor, data.get("element_type"), -(-end // _ALIGNMENT) * _ALIGNMENT)
        places.append(place)
        end = place.offset + place.nbytes
        shape = ", ".join(str(size) for size in tensor.shape)
        data.attrib.clear()
        data.attrib.update(element_type=place.type, shape=shape, offset=str(place.offset), size=str(place.nbytes))
        layer.set("type", "Const")
        if place.type != "f32":
            _mark_decompression(by_id[converted[layer.get("id")]])
    return places


def _mark_decompression(convert: Any) -> None:
    mark = ElementTree.Element("rt_info")
    ElementTree.SubElement(mark, "attribute", name="decompression", version="0")
    convert.insert(1, mark)


def _append(model: Checkpoint, weights: Path, places: list[_Place], progress: Progress) -> None:
    done, total = 0, sum(place.nbytes for place in places)
    with weights.open("r+b", buffering=0) as stream:
        for place in places:
            stream.seek(place.offset)
            for piece in _pieces(place):
                progress(done, total, "writing")
                _all(stream, piece)
                done += piece.nbytes
                model.forget()
    progress(total, total, "writing")


def _pieces(place: _Place) -> Iterator[NDArray[np.uint8]]:
    tensor = place.tensor
    step = max(1, _PIECE // math.prod(tensor.shape[1:]))
    for start in range(0, tensor.shape[0], step):
        values = tensor.rows(start, min(start + step, tensor.shape[0]))
        stored = _PACK[place.type](np.ascontiguousarray(values).reshape(-1))
        if not _finite(stored):
            raise UnsupportedPrecision(
                f"tensor {tensor.name!r} holds {np.abs(values).max():g}, which {place.type} cannot",
                supported="f32, bf16" if place.type == "f16" else "f32",
            )
        yield stored.view(np.uint8)


def _half(values: NDArray[np.float32]) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        return values.astype(np.float16)


def _bfloat(values: NDArray[np.float32]) -> NDArray[Any]:
    """The upper 16 bits, rounded to the nearest, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + (np.uint32(0x7FFF) + (bits >> 16 & 1))) >> 16).astype(np.uint16)


_PACK = {"f32": lambda values: values, "f16": _half, "bf16": _bfloat}


def _finite(stored: NDArray[Any]) -> bool:
    if stored.dtype == np.uint16:
        return not bool(((stored & 0x7F80) == 0x7F80).any())
    return stored.dtype == np.float32 or bool(np.isfinite(stored).all())


def _all(stream: Any, data: NDArray[np.uint8]) -> None:
    """Every byte: an unbuffered file may take some and say so."""
    view = data.data
    while len(view):
        view = view[stream.write(view) :]
