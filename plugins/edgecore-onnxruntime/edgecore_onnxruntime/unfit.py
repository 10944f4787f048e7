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


def _beyond_the_end(given: Attributes) -> bool:
    """A window of two that starts at every place: `SAME_UPPER` then pads at the end alone."""
    kernel = given.get("kernel_shape", [])
    strides = given.get("strides") or [1] * len(kernel)
    return given.get("auto_pad") == b"SAME_UPPER" and any(
        k == 2 and s == 1 for k, s in zip(kernel, strides, strict=False)
    )


UNFIT: tuple[tuple[str, Callable[[Attributes], bool], str, str], ...] = (
    ("STFT", lambda given: True, "STFT", "ends the process"),
    ("AveragePool", _beyond_the_end, "AveragePool with auto_pad=SAME_UPPER and a window of 2", "ends the process"),
    ("LpPool", _beyond_the_end, "LpPool with auto_pad=SAME_UPPER and a window of 2", "ends the process"),
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
                    f"{path.name}: {what}: QNN {does}", supported="other operators, or explicit pads; --device cpu"
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
