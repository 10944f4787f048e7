"""Graphs that QNN must not see: it would end the process, or answer something else without a word.

Found by onnx's own operator cases and by variations of them, each in a process of its own, on the emulator of
onnxruntime-qnn 2.7 (`benchmarks/onnxruntime_operators.py --device npu-emulator`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from edgecore.contract import UnsupportedModel


@dataclass(frozen=True, slots=True)
class Node:
    """One operator and what its file says around it."""

    attributes: Mapping[str, Any]
    inputs: list[tuple[int, ...] | None]
    """Shapes of weights and other values, None where nobody says; `()` for one that is left out."""
    output: tuple[int, ...] | None
    constants: list[Any]
    """The second and later inputs as arrays, where they are small constants."""

    def text(self, name: str, usual: str) -> str:
        value = self.attributes.get(name, usual)
        return value.decode() if isinstance(value, bytes) else str(value)


def _padded(node: Node) -> bool:
    """Padding other than half an odd window on either side: QNN then reads what is not the image, by shapes and luck.
    `SAME` pads that way where windows are odd, and not at all where they do not overlap."""
    given = node.attributes
    kernel = given.get("kernel_shape", [])
    strides, pads = given.get("strides") or [1] * len(kernel), given.get("pads") or [0] * 2 * len(kernel)
    if node.text("auto_pad", "NOTSET").startswith("SAME"):
        return any(k % 2 == 0 and k != s for k, s in zip(kernel, strides, strict=False))
    sides = zip(kernel, pads[: len(kernel)], pads[len(kernel) :], strict=False)
    return any((before, after) not in ((0, 0), ((k - 1) / 2,) * 2) for k, before, after in sides)


def _counted(node: Node) -> bool:
    return bool(node.attributes.get("ceil_mode")) or (
        bool(node.attributes.get("count_include_pad")) and any(node.attributes.get("pads") or [])
    )


def _beyond(node: Node) -> bool:
    """An output that is longer than what its last windows reach."""
    kernel = node.attributes.get("kernel_shape") or list((node.inputs[1] or ())[2:])
    strides = node.attributes.get("strides") or [1] * len(kernel)
    more = node.attributes.get("output_padding") or [0] * len(kernel)
    if node.attributes.get("output_shape") and node.inputs[0]:
        reach = [(n - 1) * s + k for n, s, k in zip(node.inputs[0][2:], strides, kernel, strict=False)]
        more = [
            max(o - r, m) for o, r, m in zip(node.attributes["output_shape"][-len(kernel) :], reach, more, strict=False)
        ]
    return any(m > max(k - s, 0) for m, k, s in zip(more, kernel, strides, strict=False))


_EXACT = {("half_pixel", "round_prefer_ceil"), ("asymmetric", "floor"), ("align_corners", "round_prefer_ceil")}
"""How QNN rounds in each of the ways to count, whatever the file says."""
_ALIKE = {"half_pixel", "pytorch_half_pixel"}
"""Where a half is never met when the size grows a whole number of times."""


def _resized(node: Node) -> bool:
    mode, counted = node.text("mode", "nearest"), node.text("coordinate_transformation_mode", "half_pixel")
    rounded = node.text("nearest_mode", "round_prefer_floor")
    before, after = node.inputs[0], node.output
    if mode == "cubic":
        return False
    if not before or not after or len(before) != len(after):
        return True
    whole = all(b and a % b == 0 for b, a in zip(before, after, strict=True))
    scales = node.constants[2] if len(node.constants) > 2 else None
    if scales is not None and getattr(scales, "size", 0) == len(before):
        exact = all(abs(b * s - a) < 1e-3 for b, s, a in zip(before, scales.tolist(), after, strict=True))
    else:
        exact = len(node.inputs) > 3 and node.text("keep_aspect_ratio_policy", "stretch") == "stretch"
    if mode == "nearest" and (counted, rounded) not in _EXACT:
        return not (whole and counted in _ALIKE and rounded.startswith("round"))
    return not (whole or exact) or (counted == "pytorch_half_pixel" and 1 in after[2:])


UNFIT: tuple[tuple[str, Callable[[Node], bool], str, str], ...] = (
    ("STFT", lambda node: True, "STFT", "other operators"),
    ("AveragePool", _padded, "AveragePool with this padding", "half an odd window on every side, or a Pad before it"),
    ("LpPool", _padded, "LpPool with this padding", "half an odd window on every side, or a Pad before it"),
    ("AveragePool", _counted, "AveragePool with ceil_mode or count_include_pad", "a Pad before it"),
    ("ConvTranspose", _beyond, "ConvTranspose with an output longer than its windows reach", "a Pad after it"),
    ("GridSample", lambda node: node.text("mode", "") == "nearest", "GridSample with mode=nearest", "mode=linear"),
    ("Resize", _resized, "Resize with these modes, sizes and scales", "nearest with asymmetric and floor, or linear"),
)
"""An operator, which of its nodes, what these are called, and what is right."""


def check(model: onnx.ModelProto, path: Path) -> None:
    """Raises `UnsupportedModel`."""
    if named := [hard.name for hard, _ in swishes(model) if hard.name]:
        raise UnsupportedModel(
            f"{path.name}: {named[0]!r}: x * HardSigmoid(x) where that has a name: QNN multiplies by x twice",
            supported="HardSigmoid(x) * x, HardSwish, or the model as convert writes it",
            hint="edgecore convert MODEL.onnx --backend onnxruntime",
        )
    suspects = [node for node in nodes(model.graph) if node.op_type in {row[0] for row in UNFIT} and not node.domain]
    if not suspects:
        return
    facts = _Facts(model)
    for node in suspects:
        told = facts.of(node)
        for operator, unfit, what, right in UNFIT:
            if node.op_type == operator and unfit(told):
                raise UnsupportedModel(
                    f"{path.name}: {what}: QNN answers something else, or ends the process",
                    supported=right,
                    hint="--device cpu",
                )


def mend(model: onnx.ModelProto) -> None:
    """Turns x * HardSigmoid(x) round, which QNN computes right."""
    for _, node in swishes(model):
        node.input[0], node.input[1] = node.input[1], node.input[0]


def swishes(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Each HardSigmoid and the product of x and it, in that order and as HardSwish has it: QNN makes one operator of
    the two, and where the first has a name it computes the second again."""
    found = []
    made = {node.output[0]: node for node in model.graph.node if node.op_type == "HardSigmoid"}
    for node in model.graph.node:
        hard = made.get(node.input[1]) if node.op_type == "Mul" else None
        if hard is not None and hard.input[0] == node.input[0]:
            alpha, beta = (_attributes(hard).get(name, usual) for name, usual in (("alpha", 0.2), ("beta", 0.5)))
            if abs(alpha - 1 / 6) < 1e-3 and abs(beta - 0.5) < 1e-3:
                found.append((hard, node))
    return found


def nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Of a graph, and of the graphs inside its nodes."""
    found = []
    for node in graph.node:
        found.append(node)
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                found += nodes(inner)
    return found


class _Facts:
    """Shapes and small constants by name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        # Where it fails, what the file says itself is what is known.
        with suppress(ValueError, RuntimeError, onnx.shape_inference.InferenceError):
            model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        graph = model.graph
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.shapes: dict[str, tuple[int, ...] | None] = {n: tuple(t.dims) for n, t in self.weights.items()}
        for value in (*graph.input, *graph.value_info, *graph.output):
            dims = value.type.tensor_type.shape.dim
            fixed = value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims)
            self.shapes.setdefault(value.name, tuple(dim.dim_value for dim in dims) if fixed else None)

    def of(self, node: onnx.NodeProto) -> Node:
        shapes = [self.shapes.get(name) if name else () for name in node.input]
        constants = [self._constant(name) for name in node.input]
        return Node(_attributes(node), shapes, self.shapes.get(node.output[0]), constants)

    def _constant(self, name: str) -> Any:
        tensor = self.weights.get(name)
        small = tensor is not None and tensor.data_location != onnx.TensorProto.EXTERNAL and sum(tensor.dims) < 64
        return onnx.numpy_helper.to_array(tensor) if tensor is not None and small else None


def _attributes(node: onnx.NodeProto) -> Mapping[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
