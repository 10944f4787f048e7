"""Tensor models: onnx's own reference evaluator behind the contract's `TensorSession`.

The evaluator defines what each operator means, so it is what runtimes are compared with. It checks little of what it is
fed; the contract's own check does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from edgecore.contract import (
    BadRequest,
    ConvertLimits,
    CorruptModel,
    EdgecoreError,
    Made,
    PayloadFile,
    Placement,
    PlacementSource,
    Progress,
    TensorSession,
    TensorSpec,
    UnsupportedModel,
    UnsupportedPrecision,
    Weights,
    check_feeds,
    fixed_sizes,
)

PLACEMENT = Placement(
    PlacementSource.RUNTIME_ASSIGNMENT, operators={"cpu": 1.0}, detail="onnx.reference computes with numpy, on the CPU"
)
FEEDS = (ValueError, LookupError, ArithmeticError)
"""What numpy raises for arrays that do not go together and for indices out of range. Names, types and declared shapes
are checked before; two symbolic dimensions may still contradict each other, and a value may be no index."""
CANNOT = (RuntimeError, ImportError, TypeError, AttributeError, AssertionError)
"""What the evaluator raises for an operator that it lacks, that needs a package that is not here (ImageDecoder), or
that it gets wrong (Scan of operator set 8). A few are about shapes all the same (a window larger than its image), as
their words tell and nothing else."""
LARGEST_PROTOBUF = 1 << 30
"""Bytes of weights above which they go to a file of their own: a protobuf message ends at 2 GiB."""


class OnnxSession(TensorSession):
    """An ONNX file, evaluated."""

    def __init__(self, path: Path) -> None:
        model = load(path)
        self._inputs = tuple(specs(model.graph.input, {tensor.name for tensor in model.graph.initializer}))
        self._outputs = tuple(specs(model.graph.output))
        try:
            self._evaluator: ReferenceEvaluator | None = ReferenceEvaluator(model)
        except (*CANNOT, *FEEDS) as error:
            raise unsupported(path, error) from None
        self._path = path

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    @property
    def placement(self) -> Placement:
        return PLACEMENT

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if self._evaluator is None:
            raise BadRequest("the session is closed")
        check_feeds(self._inputs, feeds)
        try:
            answers = self._evaluator.run(None, dict(feeds))
        except (*CANNOT, *FEEDS) as error:
            raise refusal(self._path, error) from None
        return {spec.name: np.asarray(answer) for spec, answer in zip(self._outputs, answers, strict=True)}

    def close(self) -> None:
        self._evaluator = None


def seal_model(source: Path, out: Path, precision: str, limits: ConvertLimits, progress: Progress) -> Made:
    """Convert: the same graph, checked, with the input shapes that were asked for."""
    model = load(source)
    matrices = [t for t in model.graph.initializer if len(t.dims) > 1]
    if other := sorted({type_name(t.data_type) for t in matrices} - {"float32", "int64", "bool"}):
        raise UnsupportedPrecision(
            f"{source.name}: holds weights of type {', '.join(other)}, which is not {precision}",
            supported="an ONNX file with float32 weights; any other runs as it is, without convert",
        )
    if limits.shapes:
        fix_shapes(model.graph, limits.shapes)
    size = sum(map(stored_bytes, model.graph.initializer))
    progress(0, size, "model")
    large = size > LARGEST_PROTOBUF
    onnx.save(model, out / "model.onnx", save_as_external_data=large, location="model.onnx.data", size_threshold=1024)
    progress(size, size, "model")
    elements = sum(math.prod(t.dims) for t in model.graph.initializer)
    return Made(
        files=(
            PayloadFile("model.onnx", "model"),
            *([PayloadFile("model.onnx.data", "weights")] if large else []),
        ),
        weights=Weights(8 * size / elements, 32.0, elements) if matrices else None,
    )


def load(path: Path) -> onnx.ModelProto:
    """The model with its external data, checked. Raises `CorruptModel`, `UnsupportedModel`."""
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, OSError) as error:
        raise CorruptModel(f"{path}: is not a valid ONNX model: {first_line(error)}") from None
    if not model.graph.node:
        raise CorruptModel(f"{path}: field 'graph': has no operators")
    newest = onnx.defs.onnx_opset_version()
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version > newest:
            raise UnsupportedModel(f"{path}: operator set {opset.version}", supported=f"up to {newest}")
    return model


def specs(values: Any, weights: set[str] | frozenset[str] = frozenset()) -> Iterator[TensorSpec]:
    """Inputs or outputs; an initializer that is also listed as an input is a weight, not an input."""
    for value in values:
        if value.name in weights:
            continue
        if not value.type.HasField("tensor_type"):
            raise UnsupportedModel(f"{value.name!r} is no tensor", supported="tensors as inputs and outputs")
        tensor = value.type.tensor_type
        shape = tuple(
            dim.dim_value if _known(dim) else dim.dim_param.strip("?") or f"{value.name}_{axis}"
            for axis, dim in enumerate(tensor.shape.dim)
        )
        yield TensorSpec(value.name, type_name(tensor.elem_type), shape)


def _known(dim: Any) -> bool:
    """Exporters write -1, and `?` as a name, for a size that they do not know."""
    return bool(dim.HasField("dim_value") and dim.dim_value >= 0)


def fix_shapes(graph: onnx.GraphProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give inputs fixed shapes; their symbolic dimensions get their sizes wherever else they stand."""
    sizes = fixed_sizes(specs(graph.input), shapes)
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            symbol = dim.dim_param.strip("?") or f"{value.name}_{axis}"
            if symbol in sizes and not _known(dim):
                dim.dim_value = sizes[symbol]


def stored_bytes(tensor: onnx.TensorProto) -> int:
    return math.prod(tensor.dims) * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def type_name(elem_type: int) -> str:
    return str(onnx.helper.tensor_dtype_to_np_dtype(elem_type).name)


def refusal(path: Path, error: BaseException) -> EdgecoreError:
    """Whose fault a failed evaluation is. The first cause tells: the evaluator wraps what numpy says of two shapes in a
    `TypeError` of its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, FEEDS):
        return BadRequest(f"{path.name}: these inputs do not go together: {first_line(error)}")
    return unsupported(path, error)


def unsupported(path: Path, error: BaseException) -> UnsupportedModel:
    return UnsupportedModel(f"{path}: {first_line(error)}", supported="the operators of onnx.reference")


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
