"""Graphs that QNN must not see: it would end the process, or answer something else without a word.

Found by onnx's own operator cases, each in a process of its own (`benchmarks/onnxruntime_operators.py`), with
onnxruntime-qnn 2.7.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx

from edgecore.contract import UnsupportedModel

Attributes = Mapping[str, Any]


def _padded(given: Attributes) -> bool:
    """Padding other than half an odd window on either side: QNN then reads what is not the image, answers with that or
    ends, by shapes and luck. `SAME` pads that way where windows are odd, and not at all where they do not overlap."""
    kernel = given.get("kernel_shape", [])
    rank = len(kernel)
    strides, pads = given.get("strides") or [1] * rank, given.get("pads") or [0] * 2 * rank
    if given.get("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER"):
        return any(k % 2 == 0 and k != s for k, s in zip(kernel, strides, strict=False))
    sides = zip(kernel, pads[:rank], pads[rank:], strict=False)
    return any((before, after) not in ((0, 0), ((k - 1) / 2,) * 2) for k, before, after in sides)


UNFIT: tuple[tuple[str, Callable[[Attributes], bool], str, str], ...] = (
    ("STFT", lambda given: True, "STFT", "ends the process"),
    ("AveragePool", _padded, "AveragePool with this padding", "answers something else, or ends the process"),
    ("LpPool", _padded, "LpPool with this padding", "answers something else, or ends the process"),
    (
        "AveragePool",
        lambda given: bool(given.get("ceil_mode")),
        "AveragePool with ceil_mode=1",
        "answers something else",
    ),
)
"""An operator, which of its nodes, what these are called, and what QNN does with them."""


def check(model: onnx.ModelProto, path: Path) -> None:
    """Raises `UnsupportedModel`."""
    if named := [hard.name for hard, _ in swishes(model) if hard.name]:
        raise UnsupportedModel(
            f"{path.name}: {named[0]!r}: x * HardSigmoid(x) where that has a name: QNN multiplies by x twice",
            supported="HardSigmoid(x) * x, HardSwish, or the model as convert writes it",
            hint="edgecore convert MODEL.onnx --to onnxruntime",
        )
    for node in nodes(model.graph):
        for operator, unfit, what, does in UNFIT:
            if node.op_type == operator and node.domain in ("", "ai.onnx") and unfit(_attributes(node)):
                raise UnsupportedModel(
                    f"{path.name}: {what}: QNN {does}",
                    supported="pooling without padding, or with half an odd window on every side",
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


def _attributes(node: onnx.NodeProto) -> Attributes:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
