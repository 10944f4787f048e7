"""The heavy half: one function a hook, each of which hands over to one file.

text                    convert_text.py, quantize_text.py, session.py, benchmarking.py, weights.py
functions               functions.py
what is here            devices.py

Each asks first whether MLX is whole here: of half an installation its first import fails and tells nothing.
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
from edgecore_mlx.installation import check_installation

TEXT, FUNCTION = "mlx", "mlx-function"


@hookimpl
def edgecore_probe() -> Probe:
    check_installation()
    from edgecore_mlx.devices import probe

    return probe()


@hookimpl
def edgecore_convert(
    source: Path, out: Path, format: str, precision: str, options: Mapping[str, Value], limits: ConvertLimits,
    progress: Progress,
) -> Made:  # fmt: skip
    check_installation()
    if format != TEXT:
        raise UnsupportedModel(
            f"format {format!r} is not made by this backend",
            supported=f"{TEXT}; mx.export_function writes functions",
        )
    from edgecore_mlx import convert_text

    with open_checkpoint(source) as model:
        return convert_text.convert(model, out, precision, options, limits, progress)


@hookimpl
def edgecore_quantize(
    artifact: Artifact, out: Path, precision: str, calibration: Path | None, options: Mapping[str, Value],
    progress: Progress,
) -> Made:  # fmt: skip
    check_installation()
    if artifact.task != "text":
        raise UnsupportedModel(
            f"{artifact.model.name}: a function is run with the weights that it was exported with",
            supported="language models",
            hint="mlx.nn.quantize, before mx.export_function",
        )
    from edgecore_mlx import quantize_text

    return quantize_text.quantize(artifact, out, precision, calibration, options, progress)


@hookimpl
def edgecore_run(
    artifact: Artifact, device: str, context_length: int | None, threads: int | None, options: Mapping[str, Value]
) -> TextSession | TensorSession:
    check_installation()
    from edgecore_mlx.devices import check_device

    check_device(device)
    if artifact.task == "tensor":
        from edgecore_mlx import functions

        return functions.open_session(artifact, device, threads, options)
    from edgecore_mlx import session

    return session.open_session(artifact, device, context_length, threads, options)


@hookimpl
def edgecore_benchmark(
    artifact: Artifact, device: str, workload: Workload, options: Mapping[str, Value], progress: Progress
) -> Samples | None:
    check_installation()
    if artifact.task != "text":
        return None  # the contract's loop: a call of a function is a step
    from edgecore_mlx import benchmarking

    return benchmarking.benchmark(artifact, device, workload, options, progress)


@hookimpl
def edgecore_weights(artifact: Artifact) -> Mapping[str, Any] | None:
    check_installation()
    if artifact.task != "text":
        return None
    from edgecore_mlx.weights import dequantized

    return dequantized(artifact)
