"""What a finished IR weighs and what its weights are: read from the graph, whoever quantized it and however.

A weight is a constant with whatever only constants do to it on its way (widening, zero point, scale, reshaping): that
part of the graph is followed from the constant and computed in float32. Names are canonical in IRs that edgecore made,
quantized or not; optimum-intel's are brought back to them where they say what they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openvino import Node

from edgecore.contract import Artifact, CannotDo, Fallback, Weights
from edgecore_openvino.folder import model_file
from edgecore_openvino.runtime import read_model

Floats = NDArray[np.float32]
_CANONICAL = re.compile(r"(model\..+|lm_head)\.(weight|bias)")
_OPTIMUM = re.compile(r"self\.(.+)\._openvino_orig_weight")
_OPTIMUM_USER = re.compile(r"__module\.(.+)/(?:aten::mul/Multiply_1|ov_ext::linear/(Add))")
"""Norms and biases are constants without a name there; what uses them has one."""
_STEPS = ("Convert", "Subtract", "Multiply", "Reshape")
"""Operations that a decompression is made of."""


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight of a graph."""

    name: str
    top: Node
    """What the computation uses: the constant, or the last step of its decompression."""
    user: Node

    @property
    def elements(self) -> int:
        return int(np.prod(list(self.top.get_output_shape(0))))

    @property
    def matrix(self) -> bool:
        return len(self.top.get_output_shape(0)) > 1 and self.user.get_type_name() in ("MatMul", "Gather")

    @property
    def stored(self) -> Node:
        """The constant that holds the numbers; scales and zero points stand beside it."""
        return next(node for node in _constants(self.top) if _name(node, self.user) == self.name)

    @property
    def nbytes(self) -> int:
        """With scales and zero points, without the shapes that reshaping needs."""
        constants = [node for node in _constants(self.top) if node.get_output_element_type(0).is_real() or _small(node)]
        return sum(node.get_byte_size() for node in constants)

    def read(self) -> Floats:
        values = np.ascontiguousarray(_evaluated(self.top), np.float32)
        scale = self._smoothing()
        return values if scale is None else values * scale.reshape(-1)

    def _smoothing(self) -> Floats | None:
        """What AWQ multiplies a matrix's input by, column by column, because its weights were divided by it."""
        if self.user.get_type_name() != "MatMul":
            return None
        x = self.user.input_value(0).get_node()
        if x.get_type_name() != "Multiply" or not x.get_friendly_name().endswith("/awq_mul"):
            return None
        return _evaluated(x.input_value(1).get_node())


def find(file: Path) -> dict[str, Weight]:
    """The weights of an IR by name, in the order of the computation. A name that is not known keeps the constant's."""
    found: dict[str, Weight] = {}
    for node in read_model(file).get_ordered_ops():
        if node.get_type_name() == "Constant":
            top, user = _followed(node)
            name = _name(node, user)
            if name:
                found.setdefault(name, Weight(name, top, user))
    return found


def measure(file: Path, fallbacks: Iterable[Fallback] = ()) -> Weights:
    """Bits per weight of the finished file: over all weights, and over the layers' matrices."""
    weights = find(file).values()
    return Weights(
        bits_per_weight=_bits(weights),
        eligible_bits_per_weight=_bits(weight for weight in weights if in_layer(weight)),
        parameters=sum(weight.elements for weight in weights),
        fallbacks=tuple(fallbacks),
    )


def in_layer(weight: Weight) -> bool:
    """A matrix of a layer: what a precision means to change. Embeddings and output head are apart."""
    return weight.matrix and "layers." in weight.name


def _bits(weights: Iterable[Weight]) -> float:
    sizes = [(weight.nbytes, weight.elements) for weight in weights]
    elements = sum(count for _, count in sizes)
    return 8 * sum(size for size, _ in sizes) / elements if elements else 0.0


def dequantized(artifact: Artifact) -> Mapping[str, Floats]:
    """Every weight by canonical name, computed when it is asked for. Raises `CannotDo` where names do not tell."""
    file = model_file(artifact)
    found = find(file)
    known = {name: weight for name, weight in found.items() if _CANONICAL.fullmatch(name)}
    if "model.embed_tokens.weight" not in known or not any(".layers." in name for name in known):
        raise CannotDo(f"{file}: its constants do not say which weights they are", supported="IRs that edgecore made")
    return Dequantized(known)


class Dequantized(Mapping[str, Floats]):
    """Weights of an IR by canonical name, each read when it is asked for."""

    def __init__(self, weights: Mapping[str, Weight]) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> Floats:
        return self._weights[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def _followed(constant: Node) -> tuple[Node, Node]:
    """The last step of the constant's decompression, and what uses that."""
    node = constant
    while True:
        users = [target.get_node() for target in node.output(0).get_target_inputs()]
        if len(users) == 1 and users[0].get_type_name() in _STEPS and _constant(users[0]):
            node = users[0]
            continue
        # A tied matrix is looked up in first and multiplied with last.
        users.sort(key=lambda user: user.get_type_name() != "Gather")
        return node, users[0] if users else node


def _constant(node: Node) -> bool:
    """Whether nothing but constants makes this value."""
    if node.get_type_name() == "Constant":
        return True
    return node.get_type_name() in _STEPS and all(_constant(value.get_node()) for value in node.input_values())


def _constants(node: Node) -> Iterator[Any]:
    if node.get_type_name() == "Constant":
        yield node
    for value in node.input_values():
        yield from _constants(value.get_node())


def _evaluated(node: Any) -> Floats:
    """The value of a decompression in float32, which is what OpenVINO's kernels compute it in."""
    if node.get_type_name() == "Constant":
        return np.asarray(node.get_data(dtype=np.float32))
    values = [value.get_node() for value in node.input_values()]
    match node.get_type_name():
        case "Convert":
            return _evaluated(values[0])
        case "Subtract":
            return np.asarray(_evaluated(values[0]) - _evaluated(values[1]))
        case "Multiply":
            return np.asarray(_evaluated(values[0]) * _evaluated(values[1]))
    return _evaluated(values[0]).reshape(list(node.get_output_shape(0)))


def _small(node: Node) -> bool:
    """Integers of a weight or a zero point, as against a shape's."""
    return bool(node.get_output_element_type(0).bitwidth <= 8)


def _name(constant: Node, user: Node) -> str:
    """Canonical, where the IR says it; empty for what is no weight."""
    name: str = constant.get_friendly_name()
    if _CANONICAL.fullmatch(name):
        return name
    if optimum := _OPTIMUM.fullmatch(name):
        return f"{optimum[1]}.weight"
    using = _OPTIMUM_USER.fullmatch(user.get_friendly_name())
    if using is None or not _is_vector(constant):
        return ""
    return f"{using[1]}.{'bias' if using[2] == 'Add' else 'weight'}"


def _is_vector(constant: Node) -> bool:
    shape = list(constant.get_output_shape(0))
    return len(shape) > 0 and shape[-1] > 1 and int(np.prod(shape)) == shape[-1]
