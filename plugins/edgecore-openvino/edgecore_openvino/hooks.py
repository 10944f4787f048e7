"""The heavy half: one function a hook, each of which hands over to one file.

convert_text.py    the neutral model as IR            session.py        TextSession
convert_tensor.py  ONNX as IR                         tensors.py        TensorSession
quantize_text.py   NNCF on the weights                compiling.py      ahead of time, for an NPU profile
quantize_tensor.py NNCF on weights and activations    weights.py        dequantized weights
devices.py         what can run here, now

No `edgecore_benchmark`: the contract's loop over the session adds microseconds to a step's milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgecore.checkpoint import open_checkpoint
from edgecore.contract import (
    Artifact,
    BadRequest,
    ConvertLimits,
    Made,
    Probe,
    Progress,
    TensorSession,
    TextSession,
    UnsupportedModel,
    Value,
    hookimpl,
)

TEXT, TENSOR = "openvino-genai", "openvino-ir"


@hookimpl
def edgecore_probe() -> Probe:
    from edgecore_openvino.devices import probe

    return probe()


@hookimpl
def edgecore_convert(
    source: Path, out: Path, format: str, precision: str, options: Mapping[str, Value], limits: ConvertLimits,
    progress: Progress,
) -> Made:  # fmt: skip
    if format == TENSOR:
        from edgecore_openvino import convert_tensor

        return convert_tensor.convert(source, out, precision, options, limits, progress)
    if format != TEXT:
        raise UnsupportedModel(f"format {format!r} is not made by this backend", supported=f"{TEXT}, {TENSOR}")
    from edgecore_openvino import convert_text

    with open_checkpoint(source) as model:
        return convert_text.convert(model, out, precision, options, limits, progress)


@hookimpl
def edgecore_quantize(
    artifact: Artifact, out: Path, precision: str, calibration: Path | None, options: Mapping[str, Value],
    progress: Progress,
) -> Made:  # fmt: skip
    from edgecore_openvino import quantize_tensor, quantize_text

    if artifact.task == "tensor":
        return quantize_tensor.quantize(artifact, out, precision, calibration, options, progress)
    if foreign := [name for name in quantize_tensor.OPTIONS if name in options]:
        raise BadRequest(
            f"{foreign[0]} is an option of tensor models, and this is text", hint="edgecore backends openvino"
        )
    return quantize_text.quantize(artifact, out, precision, calibration, options, progress)


@hookimpl
def edgecore_run(
    artifact: Artifact, device: str, context_length: int | None, threads: int | None, options: Mapping[str, Value]
) -> TextSession | TensorSession:
    if artifact.task == "tensor":
        from edgecore_openvino import tensors

        return tensors.open_session(artifact, device, threads, options)
    from edgecore_openvino import session

    return session.open_session(artifact, device, context_length, threads, options)


@hookimpl
def edgecore_weights(artifact: Artifact) -> Mapping[str, Any] | None:
    if artifact.task != "text":
        return None
    from edgecore_openvino.weights import dequantized

    return dequantized(artifact)


@hookimpl
def edgecore_compile(
    artifact: Artifact, out: Path, profile: Mapping[str, Any], options: Mapping[str, Value], progress: Progress,
    device: str = "",
) -> Made:  # fmt: skip
    from edgecore_openvino import compiling

    return compiling.compile(artifact, out, profile, device, options, progress)
