"""A graph with its large matrices swapped for small ones, and the file that they are written to, one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, external_data_helper, helper, numpy_helper

from edgecore_onnxruntime import nbits
from edgecore_onnxruntime.matrices import Matrix
from edgecore_onnxruntime.nodes import MICROSOFT

WIDE, ROWS, SHAPE = "/f32", "/rows", "/shape"
"""Behind a name: scales in float32; numbers with a row a token, and their shape."""
_ALIGNMENT = 64
"""Bytes: many of these tensors are short, and pages between them would be a part of the file."""


class Weights:
    """The weights' file while it is written."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stream: BinaryIO = file.open("xb")

    def add(self, name: str, values: NDArray[Any]) -> TensorProto:
        """The initializer that says where `values` lie now."""
        start = -(-self._stream.tell() // _ALIGNMENT) * _ALIGNMENT
        self._stream.seek(start)
        data = np.ascontiguousarray(values)
        self._stream.write(data.reshape(-1).view(np.uint8).data)
        type = helper.np_dtype_to_tensor_dtype(data.dtype)
        tensor = TensorProto(name=name, data_type=type, dims=data.shape, raw_data=b"")
        external_data_helper.set_external_data(tensor, self._file.name, start, data.nbytes)
        tensor.ClearField("raw_data")
        return tensor

    def close(self) -> None:
        self._stream.close()


@dataclass(frozen=True, slots=True)
class Small:
    """A matrix as it is stored now."""

    matrix: Matrix
    bits: int
    block: int
    initializers: tuple[TensorProto, ...]
    """Its numbers, scales, and zero points where there are any."""


def stored(matrix: Matrix, packed: nbits.Packed, bits: int, block: int, weights: Weights) -> Small:
    name = matrix.name
    parts: dict[str, NDArray[Any] | None]
    parts = {name: packed.b, name + nbits.SCALE: packed.scales, name + nbits.ZERO: packed.zero_points}
    if not matrix.multiplied:
        parts[name] = packed.b.reshape(len(packed.b), -1)
    made = [weights.add(part, values) for part, values in parts.items() if values is not None]
    return Small(matrix, bits, block, tuple(made))


def swap(model: ModelProto, smalls: Mapping[str, Small], level: int) -> None:
    """Every MatMul and Gather of `smalls` (by name) in `model` becomes the operator for small numbers, which answers
    float32. Initializers are left to the caller. level: of accuracy."""
    users = {node.name: s for s in smalls.values() for node in (*s.matrix.multiplied, *s.matrix.looked_up)}
    widening = {node.input[0]: node for node in model.graph.node if node.op_type == "Cast"}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        small = users.get(node.name)
        if small is None:
            nodes.append(node)
            continue
        scale = small.matrix.name + nbits.SCALE
        if all(scale not in other.input for other in nodes):
            nodes.append(helper.make_node("Cast", [scale], [scale + WIDE], scale + WIDE, to=TensorProto.FLOAT))
        if node.op_type == "MatMul":
            nodes.append(_multiplied(node, small, level))
        else:
            nodes += _looked_up(model, node, small, widening.get(node.output[0], node))
    del model.graph.node[:]
    model.graph.node.extend(_used(nodes, {port.name for port in model.graph.output}))


def _inputs(small: Small) -> list[str]:
    """Of the operators, behind the numbers: scales and zero points."""
    names = [tensor.name for tensor in small.initializers]
    return [names[1] + WIDE, *names[2:]]


def _multiplied(node: NodeProto, small: Small, level: int) -> NodeProto:
    inputs = [node.input[0], small.matrix.name, *_inputs(small)]
    shape: dict[str, Any] = {
        "K": small.matrix.columns,
        "N": small.matrix.rows,
        "bits": small.bits,
        "block_size": small.block,
    }
    return helper.make_node(
        "MatMulNBits", inputs, node.output, node.name, domain=MICROSOFT, accuracy_level=level, **shape
    )


def _looked_up(model: ModelProto, node: NodeProto, small: Small, last: NodeProto) -> list[NodeProto]:
    """last: the node whose output is the rows in float32."""
    made, numbers = [], small.matrix.name
    if small.matrix.multiplied:
        shape = np.array([small.matrix.rows, -1], np.int64)
        model.graph.initializer.append(numpy_helper.from_array(shape, numbers + SHAPE))
        made.append(helper.make_node("Reshape", [numbers, numbers + SHAPE], [numbers + ROWS], numbers + ROWS))
        numbers += ROWS
    how: dict[str, Any] = {"bits": small.bits, "block_size": small.block, "gather_axis": 0, "quantize_axis": 1}
    inputs = [numbers, node.input[1], *_inputs(small)]
    output = [f"{node.name}/small"] if last is not node else node.output
    made.append(helper.make_node("GatherBlockQuantized", inputs, output, node.name, domain=MICROSOFT, **how))
    if last is not node:
        last.input[0] = output[0]
    return made


def _used(nodes: list[NodeProto], wanted: set[str]) -> list[NodeProto]:
    """Without what only the large matrices needed."""
    kept: list[NodeProto] = []
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input)
    return kept[::-1]
