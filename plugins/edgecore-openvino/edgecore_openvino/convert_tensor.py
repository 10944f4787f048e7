"""ONNX as IR: the same computation in OpenVINO's file format, shapes open or fixed, weights as they are or halved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import openvino as ov

from edgecore.contract import (
    BadRequest,
    ConvertLimits,
    Made,
    PayloadFile,
    Progress,
    TensorSpec,
    UnsupportedModel,
    UnsupportedPrecision,
    Value,
    fixed,
    fixed_sizes,
)
from edgecore_openvino import onnx_model, saving
from edgecore_openvino.constants import measure
from edgecore_openvino.interface import Specs, from_source, state
from edgecore_openvino.runtime import last_line, read_model

MODEL, WEIGHTS = "model.xml", "model.bin"
FILES = (PayloadFile(MODEL, "model"), PayloadFile(WEIGHTS, "weights"))
PRECISIONS = ("f32", "f16")


def convert(
    source: Path,
    out: Path,
    precision: str,
    options: Mapping[str, Value],
    limits: ConvertLimits,
    progress: Progress,
) -> Made:
    """Writes model.xml and model.bin. Raises `CorruptModel`, `UnsupportedModel`, `UnsupportedPrecision`, `BadRequest`
    for shapes that an input cannot have, `DoesNotFit`."""
    if precision not in PRECISIONS:
        raise UnsupportedPrecision(
            f"convert does not make {precision} of a tensor model", supported=", ".join(PRECISIONS)
        )
    progress(0, 2, "reading")
    model, graph = onnx_model.read(source)
    inputs, outputs = graph.inputs, graph.outputs
    if limits.shapes:
        inputs, outputs = _fix(model, inputs, outputs, limits.shapes)
    inputs, outputs = from_source(model, inputs, outputs)
    _check_ranks(source, model)
    state(model, inputs, outputs)
    progress(1, 2, "writing")
    save(model, out, compressed=precision == "f16")
    progress(2, 2, "writing")
    return Made(FILES, weights=measure(read_model(out / MODEL)))


def save(model: ov.Model, out: Path, *, compressed: bool) -> None:
    """Raises `DoesNotFit` for a full disk."""
    saving.save(model, out / MODEL, compressed=compressed)
    (out / WEIGHTS).touch()  # a model without weights gets none


def _fix(model: ov.Model, inputs: Specs, outputs: Specs, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Specs, Specs]:
    """Inputs at these shapes, and whatever else bears the names of their dimensions."""
    ranked = tuple(_ranked(spec, port, shapes.get(spec.name)) for spec, port in zip(inputs, model.inputs, strict=True))
    sizes = fixed_sizes(ranked, shapes)
    inputs, outputs = (tuple(fixed(spec, sizes) for spec in side) for side in (ranked, outputs))
    wanted = {
        port: ov.PartialShape([-1 if isinstance(dim, str) else dim for dim in spec.shape])
        for port, spec in zip(model.inputs, inputs, strict=True)
        if spec.shape or not port.partial_shape.rank.is_dynamic
    }
    try:
        model.reshape(wanted)
    except RuntimeError as error:
        raise BadRequest(
            f"the model cannot have these shapes: {last_line(error)}",
            supported="; ".join(f"{spec.name}: {list(spec.shape)}" for spec in ranked),
        ) from None
    return inputs, outputs


def _ranked(spec: TensorSpec, port: ov.Output, shape: tuple[int, ...] | None) -> TensorSpec:
    """An input that states no shape at all takes any."""
    if shape is None or not port.partial_shape.rank.is_dynamic:
        return spec
    return TensorSpec(spec.name, spec.dtype, tuple(f"{spec.name}_{axis}" for axis in range(len(shape))))


def _check_ranks(source: Path, model: ov.Model) -> None:
    for port in model.inputs:
        if port.partial_shape.rank.is_dynamic:
            name = port.node.friendly_name
            raise UnsupportedModel(
                f"{source.name}: input {name!r} states no shape",
                supported="inputs with a known number of dimensions",
                hint=f"the same command with --shape {name}=1,3,224,224",
            )
