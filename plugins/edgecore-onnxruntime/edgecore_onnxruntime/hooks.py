"""The heavy half: one function a hook, each of which hands over to one file.

text on a CPU        convert_text.py, quantize_text.py, session.py, weights.py
text on an NPU       convert_htp.py, quantize_htp.py, htp_session.py
tensor models        convert_tensor.py, quantize_tensor.py, tensors.py
what is here         devices.py            ahead of time, for a profile's NPU      compiling.py

No `edgecore_benchmark`: the contract's loop over the session adds microseconds to a step's milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgecore.checkpoint import open_checkpoint
from edgecore.contract import (
    Artifact,
    CannotDo,
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
from edgecore_onnxruntime.installation import check_installation

check_installation()  # Before the first import of onnxruntime, which of a broken mixture fails and tells nothing.
TEXT, HTP, TENSOR = "onnx-genai", "onnx-htp", "onnx"
COMPILED = "onnx-htp-context"
"""HTP compiled ahead of time: what its weights are, QNN alone knows."""


@hookimpl
def edgecore_probe() -> Probe:
    from edgecore_onnxruntime.devices import probe

    return probe()


@hookimpl
def edgecore_convert(
    source: Path, out: Path, format: str, precision: str, options: Mapping[str, Value], limits: ConvertLimits,
    progress: Progress,
) -> Made:  # fmt: skip
    if format == TENSOR:
        from edgecore_onnxruntime import convert_tensor

        return convert_tensor.convert(source, out, precision, options, limits, progress)
    if format not in (TEXT, HTP):
        raise UnsupportedModel(f"format {format!r} is not made by this backend", supported=f"{TEXT}, {HTP}, {TENSOR}")
    from edgecore_onnxruntime import convert_htp, convert_text

    convert = convert_htp.convert if format == HTP else convert_text.convert
    with open_checkpoint(source) as model:
        return convert(model, out, precision, options, limits, progress)


@hookimpl
def edgecore_quantize(
    artifact: Artifact, out: Path, precision: str, calibration: Path | None, options: Mapping[str, Value],
    progress: Progress,
) -> Made:  # fmt: skip
    from edgecore_onnxruntime import quantize_htp, quantize_tensor, quantize_text

    text = quantize_htp.quantize if artifact.format == HTP else quantize_text.quantize
    quantize = quantize_tensor.quantize if artifact.task == "tensor" else text
    return quantize(artifact, out, precision, calibration, options, progress)


@hookimpl
def edgecore_run(
    artifact: Artifact, device: str, context_length: int | None, threads: int | None, options: Mapping[str, Value]
) -> TextSession | TensorSession:
    if artifact.task == "tensor":
        from edgecore_onnxruntime import tensors

        return tensors.open_session(artifact, device, threads, options)
    if artifact.format == TEXT:
        from edgecore_onnxruntime import session

        return session.open_session(artifact, device, context_length, threads, options)
    from edgecore_onnxruntime import htp_session

    return htp_session.open_session(artifact, device, context_length, threads, options)


@hookimpl
def edgecore_weights(artifact: Artifact) -> Mapping[str, Any] | None:
    if artifact.task != "text":
        return None
    if artifact.format == COMPILED:
        raise CannotDo("what was compiled gives no weights", supported=f"{TEXT}, {HTP}")
    from edgecore_onnxruntime.weights import dequantized

    return dequantized(artifact)


@hookimpl
def edgecore_compile(
    artifact: Artifact, out: Path, profile: Mapping[str, Any], options: Mapping[str, Value], progress: Progress,
    device: str = "",
) -> Made:  # fmt: skip
    from edgecore_onnxruntime import compiling

    return compiling.compile(artifact, out, profile, device, options, progress)
