"""The matrices of a text model's graph: found by what multiplies them, read one at a time, swapped for small ones.

A matrix is stored with its inputs first, as MatMul takes it, in float16 behind a Cast; an embedding with a row a
token. One that is also the head is looked up in by Gather and multiplied with behind a Transpose: one matrix, two uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, external_data_helper, helper, numpy_helper

from edgecore.checkpoint.gptq import Floats
from edgecore.contract import CorruptModel

EMBEDDING = "model.embed_tokens.weight"
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight in floating point with every node that multiplies it or looks up in it."""

    name: str
    """Canonical, the initializer's."""
    rows: int
    """Outputs of the multiplication, or tokens."""
    columns: int
    transposed: bool
    """Stored (columns, rows)."""
    multiplied: tuple[NodeProto, ...]
    looked_up: tuple[NodeProto, ...]
    values: frozenset[str] = field(default=frozenset())
    """What MatMul and Gather take it as: its own name, or the last of what widens and transposes it."""

    @property
    def in_layer(self) -> bool:
        return ".layers." in self.name


class Source:
    """A graph whose weights stay in their file until they are asked for."""

    def __init__(self, model: ModelProto, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.initializers: Mapping[str, TensorProto] = {t.name: t for t in model.graph.initializer}
        self.producers: Mapping[str, NodeProto] = {out: node for node in model.graph.node for out in node.output}

    def read(self, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        """An initializer as it is stored; mapped, where it lies in a file of its own."""
        tensor = self.initializers[name]
        if not external_data_helper.uses_external_data(tensor):
            return np.asarray(numpy_helper.to_array(tensor))
        place = external_data_helper.ExternalDataInfo(tensor)
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return np.memmap(self.folder / place.location, dtype, "r", place.offset or 0, tuple(tensor.dims))

    def weights(self, matrix: Matrix) -> Floats:
        """(rows, columns) in float32. Raises `CorruptModel` for numbers that are none."""
        stored = self.read(matrix.name)
        values = np.ascontiguousarray(stored.T if matrix.transposed else stored, np.float32)
        if not np.isfinite(values).all():
            raise CorruptModel(f"{self.folder}: {matrix.name!r} holds weights that are NaN or infinite")
        return values

    def matrices(self) -> Iterator[Matrix]:
        """In the order of the computation."""
        found: dict[str, list[tuple[NodeProto, str, bool]]] = {}
        for node in self.model.graph.node:
            place = {"MatMul": 1, "Gather": 0}.get(node.op_type)
            if place is None:
                continue
            name, turned = self._followed(node.input[place])
            tensor = self.initializers.get(name)
            if tensor is not None and len(tensor.dims) == 2 and tensor.data_type in _FLOATS:
                found.setdefault(name, []).append((node, node.input[place], turned))
        for name, uses in found.items():
            multiplied = [(node, turned) for node, _, turned in uses if node.op_type == "MatMul"]
            transposed = bool(multiplied) and not multiplied[0][1]
            if any(turned == transposed for _, turned in multiplied):
                continue
            rows, columns = self.initializers[name].dims
            yield Matrix(
                name,
                *((columns, rows) if transposed else (rows, columns)),
                transposed,
                tuple(node for node, _ in multiplied),
                tuple(node for node, _, _ in uses if node.op_type == "Gather"),
                frozenset(value for _, value, _ in uses),
            )

    def _followed(self, value: str) -> tuple[str, bool]:
        """The initializer that a value is, widened or transposed; whether it is transposed."""
        turned = False
        while value in self.producers and (node := self.producers[value]).op_type in ("Cast", "Transpose"):
            turned ^= node.op_type == "Transpose"
            value = node.input[0]
        return value, turned
