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
    for node in nodes(model.graph):
        for operator, unfit, what, does in UNFIT:
            if node.op_type == operator and node.domain in ("", "ai.onnx") and unfit(_attributes(node)):
                raise UnsupportedModel(
                    f"{path.name}: {what}: QNN {does}",
                    supported="pooling without padding, or with half an odd window on every side",
                    hint="--device cpu",
                )


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
