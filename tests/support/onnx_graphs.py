"""Small ONNX files for the tests of tensor models, and an artifact of one as people have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgecore.contract import Artifact, Made, PayloadFile

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4) / 8
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def value(name: str, shape: Any, kind: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def write(
    path: Path,
    nodes: list[Any],
    inputs: list[Any],
    outputs: list[Any],
    weights: Any = None,
    opset: int = 17,
    **save: Any,
) -> Path:
    held = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "test", inputs, outputs, held)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path, **save)
    return path


def product(path: Path, weight: NDArray[Any] = WEIGHT, op: str = "MatMul", domain: str = "", **save: Any) -> Path:
    """`y = x @ w + z`, x (batch, 3), z (batch, 4)."""
    nodes = [helper.make_node(op, ["x", "w"], ["xw"], domain=domain), helper.make_node("Add", ["xw", "z"], ["y"])]
    inputs = [value("x", ["batch", 3]), value("z", ["batch", 4])]
    return write(path, nodes, inputs, [value("y", ["batch", 4])], {"w": weight}, **save)


def one(path: Path, op: str, kind: int = FLOAT, shape: Any = ("n", 3), **attributes: Any) -> Path:
    """`y = op(x)`, of one type and shape."""
    node = helper.make_node(op, ["x"], ["y"], **attributes)
    return write(path, [node], [value("x", list(shape), kind)], [value("y", None, kind)])


def native(path: Path, precision: str = "f32", backend: str = "openvino", format: str = "openvino-ir") -> Artifact:
    return Artifact(path, backend, "tensor", format, precision, (PayloadFile(path.name, "model"),))


def sealed(
    out: Path, made: Made, precision: str = "f32", backend: str = "openvino", format: str = "openvino-ir"
) -> Artifact:
    return Artifact(out, backend, "tensor", format, precision, made.files, id="test")
