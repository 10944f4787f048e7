"""An ONNX file as ONNX Runtime takes it: looked at first, opened, and what goes in and out of it in the contract's words.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError

from edgecore.checkpoint import OnnxGraph, read_onnx
from edgecore.contract import CorruptModel, TensorSpec, UnsupportedModel
from edgecore_onnxruntime import runtime
from edgecore_onnxruntime.elements import dtype_name, known
from edgecore_onnxruntime.model_file import check_file

Specs = tuple[TensorSpec, ...]


def read(path: Path) -> OnnxGraph:
    """What the file says, without its weights. Raises `ModelNotFound`, `CorruptModel`, and `UnsupportedModel` naming the
    input or output that is no tensor of numbers."""
    check_file(path)
    graph = read_onnx(path)
    if not graph.nodes:
        raise CorruptModel(f"{path}: field 'graph': has no operators")
    for spec in (*graph.inputs, *graph.outputs):
        if not known(spec.dtype):
            kind = "text" if spec.dtype == "object" else spec.dtype
            raise UnsupportedModel(
                f"{path.name}: {spec.name!r} is {kind}", supported="tensors of numbers that ONNX Runtime has"
            )
    if any(not spec.shape for spec in graph.inputs):
        _check_ranks(path)
    return graph


def open_session(path: Path, options: ort.SessionOptions, providers: Sequence[Any] | None) -> ort.InferenceSession:
    """As `runtime.open_model`; what onnx's own checker finds right and ONNX Runtime does not take is `UnsupportedModel`."""
    try:
        return runtime.open_model(path, options, providers)
    except CorruptModel as error:
        if fault := check(path):
            raise CorruptModel(f"{path}: {fault}") from None
        raise UnsupportedModel(error.what, supported=f"what ONNX Runtime {runtime.VERSION} computes") from None


def check(path: Path) -> str:
    """What onnx's checker finds wrong with a file, in a line; nothing where it is right."""
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, DecodeError, OSError, ValueError) as error:
        return " ".join(str(error).split())[:300]
    return ""


def specs(graph: OnnxGraph, session: ort.InferenceSession) -> tuple[Specs, Specs]:
    """Inputs and outputs by the file's names, with the types and sizes that ONNX Runtime inferred."""
    sides = ((graph.inputs, session.get_inputs()), (graph.outputs, session.get_outputs()))
    inputs, outputs = (
        tuple(_merged(spec, node) for spec, node in zip(stated, nodes, strict=True)) for stated, nodes in sides
    )
    return inputs, outputs


def _merged(spec: TensorSpec, node: Any) -> TensorSpec:
    """Fixed where either says so; a dimension that nobody names is `NAME_AXIS`."""
    shape = node.shape or spec.shape
    named = spec.shape if len(spec.shape) == len(shape) else shape
    dims = tuple(
        size if isinstance(size, int) else symbol if symbol is not None else f"{spec.name}_{axis}"
        for axis, (size, symbol) in enumerate(zip(shape, named, strict=True))
    )
    return TensorSpec(spec.name, dtype_name(node.type, repr(spec.name)), dims)


def _check_ranks(path: Path) -> None:
    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        if value.name not in weights and not value.type.tensor_type.HasField("shape"):
            raise without_shape(path, value.name)


def without_shape(path: Path, name: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{path.name}: input {name!r} states no shape",
        supported="inputs with a known number of dimensions",
        hint=f"edgecore convert {path.name} --backend onnxruntime --shape {name}=1,3,224,224",
    )
