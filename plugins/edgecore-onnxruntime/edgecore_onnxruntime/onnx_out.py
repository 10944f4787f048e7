"""A graph and the weights of a checkpoint as ONNX with external data, in the memory of the largest tensor.

The weights' file is written first to last, each tensor in pieces of rows; the model's file only says where they lie.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, external_data_helper, helper, numpy_helper

from edgecore.checkpoint import Checkpoint, Tensor
from edgecore.contract import Progress, UnsupportedPrecision, full_disk
from edgecore_onnxruntime.nodes import TYPES, Graph, Weight

_PIECE = 1 << 20
"""Elements converted at once."""
_ALIGNMENT = 4096
"""Bytes: where the file is mapped, every tensor starts on a page."""
_SMALL = 1024
"""Bytes up to which a constant stays in the model's own file: ONNX Runtime wants shapes there."""
_NUMPY = {"f32": np.float32, "f16": np.float16}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an initializer lies in the weights' file."""

    name: str
    offset: int
    nbytes: int


def write(graph: Graph, model: Checkpoint, file: Path, weights: Path, progress: Progress) -> None:
    """`file` and its `weights` beside it.

    Raises `CorruptModel` for weights that are not finite, `UnsupportedPrecision` for those that the type cannot hold,
    `DoesNotFit` for a full disk; what was written is gone then.
    """
    try:
        with full_disk(file):
            places = placed(graph)
            made = graph.model(model.decoder.family)
            declare(made, graph, places, weights.name)
            fill(graph, model, places, weights, progress)
            file.write_bytes(made.SerializeToString(deterministic=True))
    except BaseException:  # cancelled or failed: half a file is worse than none
        file.unlink(missing_ok=True)
        weights.unlink(missing_ok=True)
        raise


def placed(graph: Graph) -> dict[str, _Place]:
    """Weights in the order of the computation, then constants that are too large for the model's file."""
    sizes = {w.name: math.prod(w.shape) * np.dtype(_NUMPY[w.type]).itemsize for w in graph.weights.values()}
    sizes |= {name: value.nbytes for name, value in graph.constants.items() if value.nbytes > _SMALL}
    places, end = {}, 0
    for name, nbytes in sizes.items():
        offset = -(-end // _ALIGNMENT) * _ALIGNMENT
        places[name] = _Place(name, offset, nbytes)
        end = offset + nbytes
    return places


def declare(made: ModelProto, graph: Graph, places: Mapping[str, _Place], location: str) -> None:
    for weight in graph.weights.values():
        tensor = TensorProto(name=weight.name, data_type=TYPES[weight.type], dims=weight.shape)
        made.graph.initializer.append(_external(tensor, places[weight.name], location))
    for name, value in graph.constants.items():
        if name not in places:
            made.graph.initializer.append(numpy_helper.from_array(value, name))
            continue
        type = helper.np_dtype_to_tensor_dtype(value.dtype)
        tensor = TensorProto(name=name, data_type=type, dims=value.shape)
        made.graph.initializer.append(_external(tensor, places[name], location))


def _external(tensor: TensorProto, place: _Place, location: str) -> TensorProto:
    tensor.raw_data = b""
    external_data_helper.set_external_data(tensor, location, place.offset, place.nbytes)
    tensor.ClearField("raw_data")
    return tensor


def fill(graph: Graph, model: Checkpoint, places: Mapping[str, _Place], file: Path, progress: Progress) -> None:
    done, total = 0, sum(place.nbytes for place in places.values())
    with file.open("xb", buffering=0) as stream:
        for place in places.values():
            stream.seek(place.offset)
            weight = graph.weights.get(place.name)
            pieces = iter([graph.constants[place.name]]) if weight is None else _pieces(weight, model.tensors)
            for piece in pieces:
                progress(done, total, "writing")
                _all(stream, np.ascontiguousarray(piece).reshape(-1).view(np.uint8))
                done += piece.nbytes
                model.forget()
    progress(total, total, "writing")


def _pieces(weight: Weight, tensors: Mapping[str, Tensor]) -> Iterator[NDArray[Any]]:
    tensor = tensors[weight.name]
    if not weight.transposed:
        for _, _, values in _rows(tensor, weight.type):
            yield values
        return
    whole = np.empty(weight.shape, _NUMPY[weight.type])
    for start, stop, values in _rows(tensor, weight.type):
        whole[:, start:stop] = values.T
    step = max(1, _PIECE // weight.shape[1])
    for start in range(0, len(whole), step):
        yield whole[start : start + step]


def _rows(tensor: Tensor, type: str) -> Iterator[tuple[int, int, NDArray[Any]]]:
    step = max(1, _PIECE // math.prod(tensor.shape[1:]))
    for start in range(0, tensor.shape[0], step):
        stop = min(start + step, tensor.shape[0])
        values = tensor.rows(start, stop)
        with np.errstate(over="ignore"):
            stored = values.astype(_NUMPY[type], copy=False)
        if type != "f32" and not np.isfinite(stored).all():
            raise UnsupportedPrecision(
                f"tensor {tensor.name!r} holds {np.abs(values).max():g}, which {type} cannot", supported="f32"
            )
        yield start, stop, stored


def _all(stream: Any, data: NDArray[np.uint8]) -> None:
    """Every byte: an unbuffered file may take some and say so."""
    view = data.data
    while len(view):
        view = view[stream.write(view) :]
