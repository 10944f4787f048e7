"""What a tensor model's weights take in its graph: any initializer that is no index or shape, however it is stored."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, TensorProto

from edgecore.contract import Fallback, Weights

_STEPS = ("Cast", "DequantizeLinear", "QuantizeLinear", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity")
"""Operators between a weight as it is stored and the layer that computes with it."""
LAYERS = ("MatMul", "Gemm", "FusedGemm", "FusedMatMul", "Conv", "FusedConv", "ConvTranspose", "Gather", "LSTM", "GRU",
          "RNN", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "ConvInteger", "DynamicQuantizeLSTM",
          "QLinearMatMul", "QLinearConv", "QGemm", "Attention", "QAttention", "EmbedLayerNormalization",
          "QEmbedLayerNormalization")  # fmt: skip
"""Whose weights precisions change."""
_BITS: dict[int, int] = {
    TensorProto.FLOAT: 32, TensorProto.DOUBLE: 64, TensorProto.FLOAT16: 16, TensorProto.BFLOAT16: 16,
    TensorProto.INT8: 8, TensorProto.UINT8: 8, TensorProto.INT4: 4, TensorProto.UINT4: 4, TensorProto.INT2: 2,
    TensorProto.UINT2: 2, TensorProto.FLOAT8E4M3FN: 8, TensorProto.FLOAT8E4M3FNUZ: 8, TensorProto.FLOAT8E5M2: 8,
    TensorProto.FLOAT8E5M2FNUZ: 8, TensorProto.FLOAT4E2M1: 4, TensorProto.INT16: 16, TensorProto.UINT16: 16,
    TensorProto.INT32: 32,
}  # fmt: skip
_SCALED = (TensorProto.INT16, TensorProto.UINT16, TensorProto.INT32)
"""Numbers of a model only where a scale makes them so; else indices."""


@dataclass(frozen=True, slots=True)
class Constant:
    """An initializer of numbers, with the scales and zero points that belong to it."""

    name: str
    type: str
    """In onnx's words, lower case: `float`, `int8`."""
    elements: int
    nbytes: int
    user: str
    """The layer that uses it as its weight; empty where none does."""

    @property
    def eligible(self) -> bool:
        return bool(self.user)


def constants(model: ModelProto) -> Iterator[Constant]:
    """Those that hold numbers of the model, each once."""
    users: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    beside = {
        name: node.input[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
        for name in node.input[1:]
    }
    for tensor in model.graph.initializer:
        count, scaled = math.prod(tensor.dims), _scaled(users.get(tensor.name, []))
        numbers = tensor.data_type in _BITS and (tensor.data_type not in _SCALED or scaled)
        if not numbers or not count or beside.get(tensor.name) in held:
            continue
        extra = sum(_nbytes(held[name]) for name, of in beside.items() if of == tensor.name and name in held)
        layer = _layer(tensor.name, users) if len(tensor.dims) > 1 else ""
        yield Constant(tensor.name, _type(tensor), count, _nbytes(tensor) + extra, layer)


def measure(model: ModelProto, planned: tuple[str, ...] = ()) -> Weights | None:
    """Bits per weight over all constants and over the layers'; None for a model without any. A layer's weight whose
    type is none of `planned` is a fallback."""
    found = list(constants(model))
    if not found:
        return None
    layers = [c for c in found if c.eligible]
    fallbacks = [
        Fallback(c.name, c.type, f"ONNX Runtime's quantizer leaves this {c.user}'s weight")
        for c in layers
        if planned and c.type not in planned
    ]
    return Weights(_bits(found), _bits(layers or found), sum(c.elements for c in found), tuple(fallbacks))


def _bits(found: list[Constant]) -> float:
    return sum(8 * c.nbytes for c in found) / sum(c.elements for c in found)


def _type(tensor: TensorProto) -> str:
    return str(TensorProto.DataType.Name(tensor.data_type)).lower()


def _nbytes(tensor: TensorProto) -> int:
    bits = _BITS.get(tensor.data_type, 0)
    return int(-(-math.prod(tensor.dims) * bits // 8))


def _scaled(users: list[NodeProto]) -> bool:
    return any(node.op_type == "DequantizeLinear" for node in users)


def _layer(name: str, users: dict[str, list[NodeProto]]) -> str:
    """The kind of layer at the end of the steps that a weight goes through."""
    for node in users.get(name, []):
        if node.op_type in LAYERS and (node.input[0] != name or node.op_type == "Gather"):
            return str(node.op_type)
        if node.op_type in _STEPS and node.input[0] == name and (found := _layer(node.output[0], users)):
            return found
    return ""
