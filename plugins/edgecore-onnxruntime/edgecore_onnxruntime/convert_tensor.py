"""ONNX as ONNX Runtime likes it: the same computation in a file of its own, checked and made lean, shapes open or
fixed, weights as they are or halved."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgecore.contract import (
    BadRequest,
    ConvertLimits,
    CorruptModel,
    DoesNotFit,
    Fallback,
    Made,
    PayloadFile,
    Progress,
    TensorSpec,
    UnsupportedModel,
    UnsupportedPrecision,
    Value,
    Weights,
    fixed,
    fixed_sizes,
)
from edgecore_onnxruntime import cleaning, onnx_model
from edgecore_onnxruntime.constants import measure
from edgecore_onnxruntime.onnx_model import Specs

MODEL = "model.onnx"
PRECISIONS = ("f32", "f16")
LARGEST_HALF = float(np.finfo(np.float16).max)


def convert(
    source: Path,
    out: Path,
    precision: str,
    options: Mapping[str, Value],
    limits: ConvertLimits,
    progress: Progress,
) -> Made:
    """Writes model.onnx, and model.onnx.data where the weights are large. Raises `CorruptModel`, `UnsupportedModel`,
    `UnsupportedPrecision`, `BadRequest` for shapes that an input cannot have, `DoesNotFit`."""
    if precision not in PRECISIONS:
        raise UnsupportedPrecision(
            f"convert does not make {precision} of a tensor model", supported=", ".join(PRECISIONS)
        )
    progress(0, 3, "reading")
    graph = onnx_model.read(source, limits.shapes)
    with TemporaryDirectory(dir=out) as folder:
        work, path = Path(folder), source
        if limits.shapes:
            path = work / "fixed.onnx"
            model = with_shapes(onnx_model.load(source), graph.inputs, graph.outputs, limits.shapes)
            cleaning.write(model, path)
        if fault := onnx_model.check(path):
            raise onnx_model.refused(source, fault)
        progress(1, 3, "cleaning")
        try:
            model = cleaning.cleaned(path, work)
        except (UnsupportedModel, CorruptModel) as error:
            if not limits.shapes:
                raise
            raise BadRequest(
                f"the model cannot have these shapes: {error.what.removeprefix(f'{path}: ')}",
                supported="; ".join(f"{spec.name}: {list(spec.shape)}" for spec in graph.inputs),
            ) from None
    fallbacks = halve(model) if precision == "f16" else []
    progress(2, 3, "writing")
    made = save(model, out, measured(model, fallbacks))
    progress(3, 3, "writing")
    return made


def save(model: ModelProto, out: Path, weights: Weights | None, **told: object) -> Made:
    """Raises `DoesNotFit` for a full disk."""
    needed, free = model.ByteSize(), shutil.disk_usage(out).free
    if needed > free:
        raise DoesNotFit(
            f"{out}: {needed:,} bytes to write, and {free:,} are free",
            hint="edgecore cache ls, then edgecore cache rm ID",
        )
    beside = cleaning.write(model, out / MODEL)
    data = (PayloadFile(MODEL + cleaning.WEIGHTS_SUFFIX, "weights"),) if beside else ()
    return Made((PayloadFile(MODEL, "model"), *data), weights=weights, **told)  # type: ignore[arg-type]


def measured(model: ModelProto, fallbacks: list[Fallback]) -> Weights | None:
    found = measure(model)
    if found is None or not fallbacks:
        return found
    return Weights(found.bits_per_weight, found.eligible_bits_per_weight, found.parameters, tuple(fallbacks))


def with_shapes(model: ModelProto, inputs: Specs, outputs: Specs, shapes: Mapping[str, tuple[int, ...]]) -> ModelProto:
    """Inputs at these shapes, and whatever else bears the names of their dimensions. Raises `BadRequest`."""
    stated = {value.name: value.type.tensor_type.HasField("shape") for value in model.graph.input}
    ranked = tuple(spec if stated[spec.name] else _ranked(spec, shapes.get(spec.name)) for spec in inputs)
    sizes = fixed_sizes(ranked, shapes)
    wanted = {spec.name: fixed(spec, sizes) for spec in (*outputs, *ranked)}
    for value in (*model.graph.input, *model.graph.output):
        if value.name in wanted and (value.type.tensor_type.HasField("shape") or value.name in shapes):
            kind = value.type.tensor_type
            value.CopyFrom(helper.make_tensor_value_info(value.name, kind.elem_type, list(wanted[value.name].shape)))
    del model.graph.value_info[:]  # of the shapes that were
    return model


def _ranked(spec: TensorSpec, shape: tuple[int, ...] | None) -> TensorSpec:
    """An input that states no shape at all takes any."""
    return TensorSpec(spec.name, spec.dtype, tuple(f"{spec.name}_{axis}" for axis in range(len(shape or ()))))


def halve(model: ModelProto) -> list[Fallback]:
    """Matrices in 16 bits, each behind a cast that ONNX Runtime computes once, when it opens the file: what is rounded
    are weights, and never what is computed with them. Those that 16 bits cannot hold are listed, and stay."""
    names = {name for node in model.graph.node for name in (*node.input, *node.output)}
    left: list[Fallback] = []
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        array = numpy_helper.to_array(tensor)
        if (np.abs(array[np.isfinite(array)]) > LARGEST_HALF).any():
            left.append(Fallback(tensor.name, "float", f"holds numbers above {LARGEST_HALF:g}"))
            continue
        name, half = tensor.name, f"{tensor.name}_f16"
        while half in names:
            half += "_"
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), half))
        casts.append(helper.make_node("Cast", [half], [name], f"{half}_cast", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return left
