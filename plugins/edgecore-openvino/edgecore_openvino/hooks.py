"""The heavy half: one function a hook, each of which hands over to one file.

convert_text.py    the neutral model as IR            session.py        TextSession
convert_tensor.py  ONNX as IR                         tensors.py        TensorSession
quantize_text.py   NNCF on the weights                benchmark.py      the native loop
quantize_tensor.py NNCF on weights and activations    compiling.py      ahead of time, for an NPU profile
devices.py         what can run here, now             weights.py        dequantized weights
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgecore.checkpoint import open_checkpoint
from edgecore.contract import (
    Artifact,
    ConvertLimits,
    Made,
    Probe,
    Progress,
    Samples,
    TensorSession,
    TextSession,
    UnsupportedModel,
    Value,
    Workload,
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
    if artifact.task == "tensor":
        from edgecore_openvino import quantize_tensor

        return quantize_tensor.quantize(artifact, out, precision, calibration, options, progress)
    from edgecore_openvino import quantize_text

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
def edgecore_benchmark(
    artifact: Artifact, device: str, workload: Workload, options: Mapping[str, Value], progress: Progress
) -> Samples:
    from edgecore_openvino.benchmark import benchmark

    return benchmark(artifact, device, workload, options, progress)


@hookimpl
def edgecore_weights(artifact: Artifact) -> Mapping[str, Any] | None:
    if artifact.task != "text":
        return None
    from edgecore_openvino.weights import dequantized

    return dequantized(artifact)


@hookimpl
def edgecore_compile(
    artifact: Artifact, out: Path, profile: Mapping[str, Any], options: Mapping[str, Value], progress: Progress
) -> Made:
    from edgecore_openvino import compiling

    return compiling.compile(artifact, out, profile, options, progress)
