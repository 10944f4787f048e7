"""An ONNX file as ONNX Runtime takes it: looked at first, what it would get wrong refused, opened, and what goes in and
out of it in the contract's words.

What onnx's own operator cases found stands here; `benchmarks/onnxruntime_operators.py` finds it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort

from edgecore.checkpoint import OnnxGraph, OnnxNode, read_onnx
from edgecore.contract import CorruptModel, EdgecoreError, TensorSpec, UnsupportedModel
from edgecore_onnxruntime import runtime
from edgecore_onnxruntime.elements import dtype_name, known
from edgecore_onnxruntime.model_file import check_file

Specs = tuple[TensorSpec, ...]
WRONG: tuple[tuple[str, Callable[[OnnxNode, frozenset[str]], Any], str, str], ...] = (
    (
        "Attention",
        lambda node, fed: node.attributes.get("is_causal") and node.attributes.get("qk_matmul_output_mode") == 2,
        "is_causal=1 and qk_matmul_output_mode=2",
        "qk_matmul_output_mode=0",
    ),
    ("MaxUnpool", lambda node, fed: len(node.inputs) > 2 and node.inputs[2], "output_shape", "no output_shape"),
    (
        "Resize",
        lambda node, fed: (
            node.attributes.get("coordinate_transformation_mode") == "align_corners"
            and len(node.inputs) > 2
            and node.inputs[2] in fed
        ),
        "align_corners and scales that are an input of the model",
        "sizes, or constant scales",
    ),
)
"""An operator, what is ignored or taken otherwise in a node (beside the names of the model's inputs), what that is
called, and what is right."""


def read(path: Path, shaped: Collection[str] = (), on_npu: bool = False) -> OnnxGraph:
    """What the file says, without its weights. Raises `ModelNotFound`, `CorruptModel`, and `UnsupportedModel` for an
    input or output that is no tensor of numbers, an input without a shape that is none of `shaped`, and for `WRONG`,
    which an NPU computes right."""
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
        _check_ranks(path, shaped)
    fed = frozenset(spec.name for spec in graph.inputs)
    for node in () if on_npu else graph.nodes:
        for operator, found, what, right in WRONG:
            if node.operator == operator and found(node, fed):
                raise UnsupportedModel(
                    f"{path.name}: {operator} with {what}: ONNX Runtime {runtime.VERSION} computes something else",
                    supported=f"{operator} with {right}",
                )
    return graph


def open_session(
    path: Path, options: ort.SessionOptions, providers: Sequence[Any] | None = (runtime.CPU,)
) -> ort.InferenceSession:
    """As `runtime.open_model`; what onnx's own checker finds right and ONNX Runtime does not take is
    `UnsupportedModel`."""
    try:
        return runtime.open_model(path, options, providers)
    except CorruptModel as error:
        if _TWICE in error.what:
            options.add_session_config_entry("session.x64quantprecision", "0")
            return runtime.open_model(path, options, providers)
        if fault := check(path):
            raise refused(path, fault) from None
        raise UnsupportedModel(error.what, supported=f"what ONNX Runtime {runtime.VERSION} computes") from None


def load(path: Path) -> onnx.ModelProto:
    """The file with all its weights. Raises `CorruptModel`."""
    try:
        return onnx.load(path)
    except Exception as error:  # protobuf's own kinds derive from nothing else
        raise CorruptModel(f"{path}: is not a valid ONNX model: {' '.join(str(error).split())[:300]}") from None


def check(path: Path) -> str:
    """What onnx's checker finds wrong with a file, in a line; nothing where it is right."""
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, OSError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:300]
        return "" if said.startswith("Field 'shape' of 'type'") else said  # which ONNX Runtime can do without
    return ""


_TWICE = "AddInitializedOrtValue Attempt to replace"
"""ONNX Runtime 1.31 stumbles over a name that it gave itself, where it makes signed weights exact without VNNI."""
_UNKNOWN = re.compile(r"No Op registered|opset|Unrecognized|version.*(?:unsupported|higher)|only supports", re.I)


def refused(path: Path, fault: str) -> EdgecoreError:
    """What onnx's checker finds wrong, typed: `UnsupportedModel` for operators and versions that it does not know."""
    if _UNKNOWN.search(fault):
        return UnsupportedModel(f"{path}: {fault}", supported=f"operators of ONNX Runtime {runtime.VERSION}")
    return CorruptModel(f"{path}: {fault}")


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


def _check_ranks(path: Path, shaped: Collection[str]) -> None:
    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        if value.name not in shaped and value.name not in weights and not value.type.tensor_type.HasField("shape"):
            raise UnsupportedModel(
                f"{path.name}: input {value.name!r} states no shape",
                supported="inputs with a known number of dimensions",
                hint=f"edgecore convert {path.name} --backend onnxruntime --shape {value.name}=N,N,...",
            )
