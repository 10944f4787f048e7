"""What a tensor model's weights take in its graph: any constant that is no index or shape, however it is stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import openvino as ov

from edgecore.contract import Fallback, Weights

_STEPS = ("Convert", "Subtract", "Multiply", "Reshape")
"""Operations that a decompression is made of."""
LAYERS = ("MatMul", "Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData",
          "Gather", "LSTMSequence", "GRUSequence", "RNNSequence")  # fmt: skip
"""Whose second input is a weight that precisions change; of recurrent ones W and R."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant of numbers, with the scales and zero points that belong to it."""

    name: str
    type: str
    elements: int
    nbytes: int
    user: str
    """Type of the operator that uses it; empty where none is a layer."""

    @property
    def eligible(self) -> bool:
        return bool(self.user)


def constants(model: ov.Model) -> Iterator[Constant]:
    """Those that hold numbers of the model, each once."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or not _numbers(node):
            continue
        last, beside = _followed(node)
        if last is None:
            continue
        users = [target.get_node() for target in last.output(0).get_target_inputs()]
        layer = next((u.get_type_name() for u in users if u.get_type_name() in LAYERS), "")
        matrix = len(last.get_output_shape(0)) > 1
        yield Constant(
            node.get_friendly_name(),
            node.get_output_element_type(0).get_type_name(),
            _elements(node),
            node.get_byte_size() + beside,
            layer if matrix else "",
        )


def measure(model: ov.Model, planned: tuple[str, ...] = ()) -> Weights | None:
    """Bits per weight over all constants and over the layers'; None for a model without any. A layer's weight whose
    type is none of `planned` is a fallback."""
    found = list(constants(model))
    if not found:
        return None
    layers = [c for c in found if c.eligible]
    fallbacks = [
        Fallback(c.name, c.type, f"NNCF leaves this {c.user}'s weight")
        for c in layers
        if planned and c.type not in planned
    ]
    return Weights(_bits(found), _bits(layers or found), sum(c.elements for c in found), tuple(fallbacks))


def _bits(found: list[Constant]) -> float:
    return sum(8 * c.nbytes for c in found) / sum(c.elements for c in found)


def _numbers(node: ov.Node) -> bool:
    kind = node.get_output_element_type(0)
    return bool(kind.is_real() or kind.bitwidth <= 8) and _elements(node) > 0


def _followed(node: ov.Node) -> tuple[ov.Node | None, int]:
    """Where the decompression of a constant ends, and the bytes of what joins it there; None for what joins another."""
    beside = 0
    while True:
        users = [target.get_node() for target in node.output(0).get_target_inputs()]
        if len(users) != 1 or users[0].get_type_name() not in _STEPS:
            return node, beside
        others = [v.get_node() for v in users[0].input_values() if v.get_node() != node]
        if not all(_constant(other) for other in others):
            return node, beside
        if any(_size(other) > _size(node) for other in others):
            return None, 0
        beside += sum(_stored(other) for other in others)
        node = users[0]


def _constant(node: ov.Node) -> bool:
    if node.get_type_name() == "Constant":
        return True
    return node.get_type_name() in _STEPS and all(_constant(v.get_node()) for v in node.input_values())


def _stored(node: ov.Node) -> int:
    if node.get_type_name() == "Constant":
        return int(node.get_byte_size()) if _numbers(node) else 0
    return sum(_stored(value.get_node()) for value in node.input_values())


def _size(node: ov.Node) -> int:
    shape = node.get_output_partial_shape(0)
    return _elements(node) if shape.is_static else 0


def _elements(node: ov.Node) -> int:
    count = 1
    for size in node.get_output_shape(0):
        count *= size
    return count
