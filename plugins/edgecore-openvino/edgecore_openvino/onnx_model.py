"""ONNX as OpenVINO reads it, and what it would get wrong refused.

OpenVINO's front end ignores some attributes and inputs that change an operator's meaning, and then answers something
else without an error. What onnx's own operator cases found stands here; `benchmarks/openvino_operators.py` finds it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openvino as ov
from openvino import opset13 as ops

from edgecore.checkpoint import OnnxGraph, OnnxNode, read_onnx
from edgecore.contract import CorruptModel, DoesNotFit, EdgecoreError, UnsupportedModel
from edgecore_openvino.elements import type_of
from edgecore_openvino.runtime import VERSION, core, last_line

NEWEST_OPSET = 28
"""The newest operator set whose cases were run; OpenVINO reads a newer one as if it were the newest that it knows."""
_NOISE = re.compile(r"Exception from|Check '|While validating|FrontEnd API|Model wasn't|-- ")
_NARROW = (17, 19, 23, 24)
"""TensorProto.DataType of float8_e4m3fn, float8_e5m2, float4_e2m1fn, float8_e8m0fnu."""
RECURRENT = ("GRU", "LSTM", "RNN")

WRONG: tuple[tuple[tuple[str, ...], Callable[[OnnxNode], Any], str, str], ...] = (
    (
        ("Attention",),
        lambda n: any(n.attributes.get(f"{side}_window_size", -1) != -1 for side in ("left", "right")),
        "a window",
        "no window",
    ),
    (
        ("DynamicQuantizeLinear",),
        lambda n: True,
        "its own rounding of half-way steps",
        "a constant scale: QuantizeLinear",
    ),
    (
        ("Cast",),
        lambda n: n.attributes.get("to") in _NARROW and n.attributes.get("saturate", 1),
        "saturate=1 to a float of 8 bits or 4",
        "saturate=0",
    ),
    (("DFT",), lambda n: n.attributes.get("onesided"), "onesided=1", "the whole spectrum"),
    (RECURRENT, lambda n: n.attributes.get("layout"), "layout=1", "layout=0, time first"),
    (("LSTM",), lambda n: len(n.inputs) > 7 and n.inputs[7], "peepholes (input P)", "no peepholes"),
    (("Resize",), lambda n: n.attributes.get("antialias"), "antialias=1", "antialias=0"),
    (("Resize",), lambda n: n.attributes.get("exclude_outside"), "exclude_outside=1", "exclude_outside=0"),
    (
        ("Resize",),
        lambda n: n.attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch",
        "a keep_aspect_ratio_policy",
        "keep_aspect_ratio_policy=stretch",
    ),
    (("RoiAlign",), lambda n: n.attributes.get("mode") == "max", "mode=max", "mode=avg"),
    (("SpaceToDepth",), lambda n: n.attributes.get("mode") == "CRD", "mode=CRD", "mode=DCR"),
)
"""Operators, what in a node is ignored, what it is called, and what is right."""
_UNCONVERTED = re.compile(r"(?:No conversion rule found for operations?|Conversion is failed for): (.+)")


def read(path: Path) -> tuple[ov.Model, OnnxGraph]:
    """The model and what its file says of it, inputs in the same order.

    Raises `CorruptModel`, `UnsupportedModel` naming the operator, `DoesNotFit`.
    """
    graph = read_onnx(path)
    opset = graph.opsets.get("", 0)
    if opset > NEWEST_OPSET:
        raise UnsupportedModel(
            f"{path.name}: operator set {opset}",
            supported=f"up to {NEWEST_OPSET}",
            hint="onnx.version_converter.convert_version writes an older one",
        )
    if not graph.nodes:
        raise CorruptModel(f"{path}: field 'graph': has no operators")
    for node in graph.nodes:
        _check(path, node, graph)
    try:
        model = core().read_model(path)
    except (RuntimeError, ValueError, OSError, MemoryError) as error:
        raise _unreadable(path, graph, error) from None
    if len(model.inputs) < len(graph.inputs):
        model = _with_unused(model, graph)
    if len(model.inputs) != len(graph.inputs) or len(model.outputs) != len(graph.outputs):
        raise UnsupportedModel(
            f"{path.name}: OpenVINO sees {len(model.inputs)} inputs and {len(model.outputs)} outputs, "
            f"the file has {len(graph.inputs)} and {len(graph.outputs)}",
            supported="a model whose inputs and outputs are tensors",
        )
    return model, graph


def _with_unused(model: ov.Model, graph: OnnxGraph) -> ov.Model:
    """OpenVINO drops inputs that nothing computes with; the file's users feed them all the same, in its order."""
    known = {parameter.get_friendly_name(): parameter for parameter in model.get_parameters()}
    if not known.keys() <= {spec.name for spec in graph.inputs}:
        return model
    for spec in graph.inputs:
        if spec.name not in known:
            shape = [-1 if isinstance(dim, str) else dim for dim in spec.shape]
            known[spec.name] = ops.parameter(shape, type_of(spec), name=spec.name)
            known[spec.name].output(0).set_names({spec.name})
    ordered = [known[spec.name] for spec in graph.inputs]
    return ov.Model(model.get_results(), model.get_sinks(), ordered, model.get_friendly_name())


def _check(path: Path, node: OnnxNode, graph: OnnxGraph) -> None:
    for operators, found, what, right in WRONG:
        if node.operator in operators and found(node):
            raise UnsupportedModel(
                f"{path.name}: {node.operator} with {what}: OpenVINO {VERSION} computes something else",
                supported=f"{node.operator} with {right}",
            )
    fed = {spec.name: spec for spec in graph.inputs}
    reduced = fed.get(node.inputs[0]) if node.operator == "ReduceMax" else None
    if reduced and 0 in reduced.shape and "float" in reduced.dtype:
        raise UnsupportedModel(
            f"{path.name}: ReduceMax of nothing: OpenVINO {VERSION} answers a finite number for it",
            supported="ReduceMax of one element at least",
        )
    if node.operator == "DFT" and len(node.inputs) > 2 and node.inputs[2] in fed:
        raise UnsupportedModel(
            f"{path.name}: DFT along an axis that is an input of the model: OpenVINO {VERSION} takes the default",
            supported="DFT with a constant axis",
        )


def check_operators(name: str, model: ov.Model) -> None:
    """What is seen only in OpenVINO's own graph. Raises `UnsupportedModel`."""
    for node in model.get_ops():
        if node.get_type_name() == "Tile" and not _fixed(node.input_value(1).get_node()):
            rank = node.get_input_partial_shape(0).rank
            if rank.is_dynamic or rank.get_length() > 3:
                raise UnsupportedModel(
                    f"{name}: Tile over more than 3 axes with repeats that are computed: OpenVINO {VERSION} leaves "
                    "memory that was never set",
                    supported="Tile with constant repeats, or over 3 axes",
                )


def _fixed(node: ov.Node) -> bool:
    """Whether nothing that is fed has a part in this value."""
    if node.get_type_name() == "Constant":
        return True
    inputs = node.input_values()
    return bool(inputs) and all(_fixed(value.get_node()) for value in inputs)


def _unreadable(path: Path, graph: OnnxGraph, error: BaseException) -> EdgecoreError:
    said = str(error)
    if isinstance(error, MemoryError) or "bad_alloc" in said:
        return DoesNotFit(f"{path.name}: reading it ran out of memory", hint="a smaller model")
    if "Unsupported type" in said:
        return UnsupportedModel(
            f"{path.name}: a tensor type that OpenVINO {VERSION} does not read: {last_line(error)}",
            supported="float32, float16, bfloat16, float64, bool and integers",
        )
    if "OpConversionFailure" in said:
        named = [
            re.sub(r"-\d+$", "", name.strip()) for found in _UNCONVERTED.findall(said) for name in found.split(",")
        ]
        operators = ", ".join(dict.fromkeys(name for name in named if name)) or "an operator"
        logged = [line for line in said.partition("Summary:")[0].splitlines() if line and not _NOISE.match(line)]
        return UnsupportedModel(
            f"{path.name}: OpenVINO {VERSION} does not convert {operators}" + (f": {logged[-1]}" if logged else ""),
            supported="what OpenVINO's documentation lists for ONNX",
        )
    foreign = sorted({node.operator for node in graph.nodes if "." in node.operator})
    if foreign and any(name.rpartition(".")[2] in said for name in foreign):
        return UnsupportedModel(f"{path.name}: {', '.join(foreign)}: {last_line(error)}")
    return CorruptModel(f"{path}: {last_line(error)}")
