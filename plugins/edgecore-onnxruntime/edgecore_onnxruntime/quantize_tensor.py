"""ONNX Runtime's own quantizer on a tensor model: weights in 8 bits with activations measured as they come, weights and
activations as calibration feeds show their ranges, and the same as an NPU of Qualcomm wants it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization import quantize as quantize_by
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config, qnn_preprocess_model
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from edgecore.contract import (
    Artifact,
    BadRequest,
    DoesNotFit,
    EdgecoreError,
    Made,
    Progress,
    UnsupportedModel,
    UnsupportedPrecision,
    Value,
    check_room,
)
from edgecore_onnxruntime import cleaning, onnx_model, runtime
from edgecore_onnxruntime.constants import constants, measure
from edgecore_onnxruntime.convert_tensor import save, with_shapes
from edgecore_onnxruntime.feeding import Feeding
from edgecore_onnxruntime.onnx_model import Specs

OPSET = 13
"""The first with a scale for each channel."""
ENDLESS = 1e30
"""A number that stands for infinity: float32 ends at 3.4e38."""
STORED = ("int8", "uint8", "int4", "uint4")
NPU = {
    "a8w8": (QuantType.QUInt8, QuantType.QInt8),
    "a16w8": (QuantType.QUInt16, QuantType.QInt8),
    "a16w4": (QuantType.QUInt16, QuantType.QInt4),
}
"""Activations and weights of precisions for an NPU."""
PRECISIONS = ("int8_dynamic", "int8_static", *NPU)
METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
_EVERYWHERE = ("per_channel", "reduce_range", "ignored_names", "ignored_types")
_CALIBRATED = ("calibration_method", "percentile", "subset_size")
OPTIONS = {
    "int8_dynamic": _EVERYWHERE,
    "int8_static": (*_EVERYWHERE, *_CALIBRATED),
    **dict.fromkeys(NPU, (*_EVERYWHERE, *_CALIBRATED, "wide_names")),
}
FAULTS: tuple[type[BaseException], ...] = (
    *runtime.ERRORS,
    AssertionError,
    LookupError,
    AttributeError,
    ArithmeticError,
    onnx.checker.ValidationError,
    DecodeError,
)
"""What ONNX Runtime's Python tools raise for a model that they do not know what to do with."""


def quantize(
    artifact: Artifact,
    out: Path,
    precision: str,
    calibration: Path | None,
    options: Mapping[str, Value],
    progress: Progress,
) -> Made:
    """Writes model.onnx. Raises `UnsupportedPrecision`, `UnsupportedModel` for a model without anything to quantize,
    `BadRequest` for feeds and options that do not fit it, `Cancelled`."""
    if precision not in PRECISIONS:
        raise UnsupportedPrecision(
            f"quantize does not make {precision} of a tensor model", supported=", ".join(PRECISIONS)
        )
    _check_options(precision, options)
    progress(0, 1, "reading")
    path = artifact.model
    graph = onnx_model.read(path)
    with TemporaryDirectory(dir=out) as folder:
        work = Path(folder)
        source = cleaning.cleaned(path, work)
        _check_floating(path, source)
        _check_ignored(source, options)
        feeding = None
        if precision != "int8_dynamic" and calibration:
            feeding = Feeding(calibration, graph.inputs, int(options.get("subset_size", 0)), progress)
        if precision in NPU:
            source = _for_npu(source, work, graph.inputs, graph.outputs, feeding)
        try:
            with quiet():
                model = _quantized(source, work, precision, feeding, options)
        except EdgecoreError:
            raise
        except FAULTS as error:
            check_room(work / "room")
            if isinstance(full := runtime.failed(error), DoesNotFit):
                raise full from None
            raise UnsupportedModel(f"{path.name}: ONNX Runtime's quantizer fails: {runtime.said(error)}") from None
    if not any(c.type in STORED for c in constants(model) if c.eligible):
        raise UnsupportedModel(
            f"{path.name}: no layer whose weights {precision} changes",
            supported="models with matrix products or convolutions",
        )
    model = cleaning.restored(model, source)
    progress(0, 1, "writing")
    notes = (f"calibrated on {len(feeding)} feeds",) if feeding else ()
    made = save(model, out, measure(model, STORED), notes=notes)
    onnx_model.open_session(out / made.files[0].path, runtime.session_options(1, {}))
    progress(1, 1, "writing")
    return made


@contextmanager
def quiet() -> Iterator[None]:
    """Calibrators tell on standard output and the root logger what they do."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(before)


def _quantized(
    source: ModelProto, work: Path, precision: str, feeding: Feeding | None, options: Mapping[str, Value]
) -> ModelProto:
    made = _prepared(source, calibrated=feeding is not None)
    cleaning.write(made, work / "float.onnx")
    onnx.shape_inference.infer_shapes_path(work / "float.onnx", work / "inferred.onnx")
    if precision == "int8_dynamic":
        return _dynamic(work, options)
    assert feeding is not None, "the manifest says that it is required"
    to = work / "quantized.onnx"
    method = METHODS[str(options.get("calibration_method", "minmax"))]
    extra = {"CalibPercentile": options["percentile"]} if "percentile" in options else {}
    common = {"calibrate_method": method, "per_channel": bool(options.get("per_channel", True))}
    ignored, types = _ignored(source, options), _types(source, options)
    if precision == "int8_static":
        # Unsigned on both sides: sums of products of unsigned and signed bytes overflow on x86 without VNNI.
        quantize_static(
            work / "inferred.onnx", to, feeding, quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
            weight_type=QuantType.QUInt8, reduce_range=bool(options.get("reduce_range", False)),
            nodes_to_exclude=ignored, extra_options={"CalibStridedMinMax": 1, "WeightSymmetric": True, **extra},
            **common,
        )  # fmt: skip
        return onnx.load(to)
    activations, weights = NPU[precision]
    config = get_qnn_qdq_config(
        work / "inferred.onnx", feeding, activation_type=activations, weight_type=weights, stride=1,
        init_overrides=_overrides(source, weights, options), op_types_to_quantize=types, nodes_to_exclude=ignored,
        **common,
    )  # fmt: skip
    config.extra_options.update(extra)
    config.reduce_range = bool(options.get("reduce_range", False))
    quantize_by(work / "inferred.onnx", to, config)
    return onnx.load(to)


def _prepared(source: ModelProto, calibrated: bool) -> ModelProto:
    """As the quantizer wants a model: a scale a channel from operator set 13 on, one axis for what a Gemm adds."""
    made = ModelProto()
    made.CopyFrom(source)
    opset = next((o.version for o in made.opset_import if o.domain == ""), OPSET)
    if calibrated and opset < OPSET:
        made = onnx.version_converter.convert_version(made, OPSET)
    held = {tensor.name: tensor for tensor in made.graph.initializer}
    for node in made.graph.node:
        added = held.get(node.input[2]) if node.op_type == "Gemm" and len(node.input) > 2 else None
        if added is not None and len(added.dims) == 2 and added.dims[0] == 1:
            del added.dims[0]
    add_pre_process_metadata(made)  # or the quantizer warns
    return made


def _dynamic(work: Path, options: Mapping[str, Value]) -> ModelProto:
    """Products of matrices, then convolutions: these have no kernel for signed weights, nor one scale a channel."""
    model = onnx.load(work / "inferred.onnx")
    ignored = _ignored(model, options)
    steps = (
        (["MatMul", "Gemm", "Gather", "LSTM", "Attention", "EmbedLayerNormalization"], QuantType.QInt8, True),
        (["Conv"], QuantType.QUInt8, False),
    )
    given, to = work / "inferred.onnx", work / "inferred.onnx"
    for number, (types, weights, channels) in enumerate(steps):
        if not any(node.op_type in types and node.name not in ignored for node in model.graph.node):
            continue
        to = work / f"dynamic{number}.onnx"
        quantize_dynamic(
            given, to, op_types_to_quantize=types, weight_type=weights, nodes_to_exclude=ignored,
            per_channel=channels and bool(options.get("per_channel", True)),
            reduce_range=bool(options.get("reduce_range", False)),
        )  # fmt: skip
        given = to
    return onnx.load(to)


def _for_npu(model: ModelProto, work: Path, inputs: Specs, outputs: Specs, feeding: Feeding | None) -> ModelProto:
    """Shapes as the feeds have them, where they are open; operators put together as QNN has them.

    Raises `BadRequest` where the feeds have several.
    """
    sizes = feeding.sizes if feeding else {}
    if several := next((dim for dim, found in sizes.items() if len(found) > 1), None):
        raise BadRequest(
            f"the calibration feeds have several sizes of {several!r}: {sorted(sizes[several])}",
            supported="feeds of one shape, at which an NPU's shapes are fixed",
            hint="edgecore convert MODEL.onnx --backend onnxruntime --shape INPUT=N,N,...",
        )
    if sizes:
        one = {dim: next(iter(found)) for dim, found in sizes.items()}
        shapes = {s.name: tuple(one[d] if isinstance(d, str) else d for d in s.shape) for s in inputs}
        model = with_shapes(model, inputs, outputs, shapes)
    given = ModelProto()
    given.CopyFrom(model)  # which it empties
    del given.metadata_props[:]  # or it fails
    with TemporaryDirectory(dir=work) as folder:
        to = Path(folder) / "npu.onnx"
        return onnx.load(to) if qnn_preprocess_model(given, to) else model


def _overrides(model: ModelProto, weights: QuantType, options: Mapping[str, Value]) -> dict[str, list[dict[str, Any]]]:
    """What single tensors get: 16 bits for what the operators of `wide_names` answer, and 4 bits for matrices, which
    the configuration for QNN would leave in the activations' type."""
    found: dict[str, list[dict[str, Any]]] = {}
    for node in _named(model, options, "wide_names"):
        found |= {name: [{"quant_type": QuantType.QUInt16}] for name in node.output if name}
    if weights is QuantType.QInt4:
        held = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "MatMul" and held.get(node.input[1]) == 2:
                found[node.input[1]] = [{"quant_type": weights, "symmetric": True, "axis": 1}]
    return found


def _check_floating(path: Path, model: ModelProto) -> None:
    stored = sorted({c.type for c in constants(model) if c.eligible and c.type in STORED})
    if stored:
        raise UnsupportedModel(
            f"{path.name}: its weights are {', '.join(stored)} already",
            supported="quantize from f32 or f16",
            hint="edgecore convert MODEL.onnx --backend onnxruntime --precision f32",
        )


def _check_options(precision: str, options: Mapping[str, Value]) -> None:
    known = OPTIONS[precision]
    for name in options:
        if name not in known:
            raise BadRequest(f"{precision} of a tensor model has no option {name}", supported=", ".join(known))
    if precision == "a16w4" and not options.get("per_channel", True):
        raise BadRequest(
            "a16w4 needs a scale for each channel: an NPU takes 4 bits no other way", supported="per_channel=true"
        )
    if "percentile" in options and options.get("calibration_method") != "percentile":
        raise BadRequest("percentile needs calibration_method=percentile", hint="-O calibration_method=percentile")


def _check_ignored(model: ModelProto, options: Mapping[str, Value]) -> None:
    """Raises `BadRequest` for a name or a type that no operator has."""
    for option, of in (("ignored_names", "name"), ("wide_names", "name"), ("ignored_types", "op_type")):
        there = {str(getattr(node, of)) for node in model.graph.node}
        for name in _listed(options, option):
            if name not in there:
                raise BadRequest(f"{option}: no operator {name!r}", supported=", ".join(sorted(there - {""})))


def _named(model: ModelProto, options: Mapping[str, Value], option: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.name in _listed(options, option)]


def _ignored(model: ModelProto, options: Mapping[str, Value]) -> list[str]:
    """Names of the operators that stay as they are: those that are to, and those of a constant that no scale holds, as
    masks have it."""
    names, types = _listed(options, "ignored_names"), _listed(options, "ignored_types")
    endless = {tensor.name for tensor in model.graph.initializer if _endless(tensor)}
    return [
        node.name
        for node in model.graph.node
        if node.name in names or node.op_type in types or endless & set(node.input)
    ]


def _endless(tensor: TensorProto) -> bool:
    return tensor.data_type == TensorProto.FLOAT and not bool((np.abs(numpy_helper.to_array(tensor)) < ENDLESS).all())


def _types(model: ModelProto, options: Mapping[str, Value]) -> list[str]:
    left_out = {"Cast", *_listed(options, "ignored_types")}
    return sorted({node.op_type for node in model.graph.node} - left_out)


def _listed(options: Mapping[str, Value], option: str) -> list[str]:
    return [part.strip() for part in str(options.get(option, "")).split(",") if part.strip()]
