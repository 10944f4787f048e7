"""What an NPU computes otherwise because of the numbers that it is fed: a guard before every call, that refuses them.

Found by onnx's own operator cases with onnxruntime-qnn 2.7 (`benchmarks/onnxruntime_operators.py`) and variations of
them: infinity in float32 becomes what is no number and what is none becomes one, of 64 bits of a whole number the upper
half is dropped, and a negative index, which counts from the end elsewhere, reads or writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from edgecore.checkpoint import OnnxGraph
from edgecore.contract import CannotDo, UnsupportedModel
from edgecore_onnxruntime import onnx_model

INDEXED = ("GatherElements", "ScatterElements")
"""Operators whose second input is indices that QNN takes as they are."""
Guard = Callable[[Mapping[str, NDArray[Any]]], None]


def guard(path: Path, graph: OnnxGraph, device: str) -> Guard:
    """Raises `CannotDo` naming the input, when it is called; `UnsupportedModel` at once for a constant."""
    indices = {node.inputs[1]: node.operator for node in graph.nodes if node.operator in INDEXED}
    fed = {spec.name for spec in graph.inputs}
    if indices.keys() - fed:
        _check_constants(path, indices, device)

    def check(feeds: Mapping[str, NDArray[Any]]) -> None:
        for name, feed in feeds.items():
            if feed.dtype.kind == "f" and feed.itemsize > 2 and not np.isfinite(feed).all():
                what = "infinity" if np.isinf(feed).any() else "what is no number"
                raise CannotDo(
                    f"input {name!r} holds {what}, which {device} loses when it makes 16 bits of it",
                    supported="finite numbers, float16, or --device cpu",
                )
            if feed.dtype.kind in "iu" and feed.itemsize > 4 and feed.size and not _narrow(feed):
                raise CannotDo(
                    f"input {name!r} holds whole numbers of more than 32 bits, and {device} has no others",
                    supported="numbers that int32 holds, or --device cpu",
                )
            if name in indices and feed.size and feed.min() < 0:
                raise CannotDo(
                    f"input {name!r} holds the index {feed.min()}, and {indices[name]} on {device} counts from 0 only",
                    supported="indices from 0, or --device cpu",
                )

    return check


def _narrow(feed: NDArray[Any]) -> bool:
    return bool(feed.min() >= -(1 << 31) and feed.max() < 1 << 31)


def _check_constants(path: Path, indices: Mapping[str, str], device: str) -> None:
    for tensor in onnx_model.load(path).graph.initializer:
        if tensor.name in indices and (numpy_helper.to_array(tensor) < 0).any():
            raise UnsupportedModel(
                f"{path.name}: {indices[tensor.name]} with negative indices: {device} counts from 0 only",
                supported="indices from 0",
                hint="--device cpu",
            )
