"""An ONNX graph while it is written: nodes in order, constants once, and weights that are named but not yet there.

A weight is a promise here, of a shape and a type: onnx_out.py keeps it when it writes the file, so that no graph ever
holds a model's numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

MICROSOFT = "com.microsoft"
OPSET = 23
"""The first with RMSNormalization."""
IR_VERSION = 11
TYPES = {"f32": TensorProto.FLOAT, "f16": TensorProto.FLOAT16}
_TYPE_OF = {np.dtype(t): helper.np_dtype_to_tensor_dtype(np.dtype(t)) for t in ("f4", "f2", "i4", "i8")}
Shape = Sequence[int | str]


@dataclass(frozen=True, slots=True)
class Weight:
    """An initializer that a tensor of the checkpoint fills."""

    name: str
    """Canonical, as the tensor's."""
    shape: tuple[int, ...]
    """As it is stored: a matrix that MatMul takes has its inputs first."""
    type: str
    transposed: bool


@dataclass
class Graph:
    """What is written so far. Methods answer the name of what they made."""

    nodes: list[NodeProto] = field(default_factory=list)
    inputs: list[ValueInfoProto] = field(default_factory=list)
    outputs: list[ValueInfoProto] = field(default_factory=list)
    weights: dict[str, Weight] = field(default_factory=dict)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Initializers whose numbers are known already."""
    _counts: dict[str, int] = field(default_factory=dict)

    def input(self, name: str, type: int, shape: Shape) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, type, shape))
        return name

    def output(self, name: str, type: int, shape: Shape) -> str:
        self.outputs.append(helper.make_tensor_value_info(name, type, shape))
        return name

    def default(self, name: str, value: NDArray[Any]) -> str:
        """An input that need not be given."""
        self.constants[name] = value
        return self.input(name, _TYPE_OF[value.dtype], value.shape)

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.constants.setdefault(name, value)
        return name

    def f32(self, *values: float) -> str:
        """A scalar of one number, a vector of more."""
        return self._small("f32", np.asarray(values if len(values) > 1 else values[0], np.float32))

    def i64(self, *values: int) -> str:
        """A vector, of one number too."""
        return self._small("i64", np.asarray(values, np.int64))

    def weight(self, name: str, shape: Sequence[int], type: str = "f32", transposed: bool = False) -> str:
        stored = tuple(reversed(shape)) if transposed else tuple(shape)
        self.weights[name] = Weight(name, stored, type, transposed)
        return name

    def op(
        self, kind: str, *inputs: str, name: str = "", outputs: Sequence[str] = (), domain: str = "", **attributes: Any
    ) -> str:
        """One more node; its first output."""
        name = name or self.numbered(kind)
        outputs = outputs or [f"{name}/out"]
        self.nodes.append(helper.make_node(kind, inputs, outputs, name, domain=domain, **attributes))
        return outputs[0]

    def model(self, name: str) -> ModelProto:
        """All of it but the numbers of the weights and of the constants."""
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs)
        imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION, producer_name="edgecore")

    def _small(self, type: str, value: NDArray[Any]) -> str:
        return self.constant(f"{type}/{','.join(f'{v!r}' for v in np.atleast_1d(value).tolist())}", value)

    def numbered(self, kind: str) -> str:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return f"{kind}_{self._counts[kind]}"
