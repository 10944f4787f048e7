"""The heavy half: one function a hook, each of which hands over to one file.

convert.py    the neutral model as GGUF           session.py    TextSession: model.py, generating.py, placement.py
quantize.py   llama_model_quantize, imatrix.py    benchmark.py  the native loop
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from edgecore.checkpoint import open_checkpoint
from edgecore.contract import (
    Artifact,
    ConvertLimits,
    DeviceUnavailable,
    Made,
    Probe,
    ProbedDevice,
    Progress,
    Samples,
    TextSession,
    UnsupportedModel,
    Value,
    Workload,
    hookimpl,
    usable_threads,
)
from edgecore_llamacpp.threads import chosen_threads


@hookimpl
def edgecore_probe() -> Probe:
    from edgecore_llamacpp import native

    accelerators = [device for device in native.devices() if device.accelerator]
    cpu = next((d.description for d in native.devices() if d.name == "CPU"), platform.processor())
    gpu = ProbedDevice(
        "gpu",
        available=bool(accelerators),
        description=", ".join(f"{d.name}: {d.description}" for d in accelerators),
        reason="" if accelerators else "llama-cpp-python was built here for the CPU alone",
    )
    return Probe(
        devices=(ProbedDevice("cpu", available=True, description=cpu), gpu),
        versions={
            "llama-cpp-python": version("llama-cpp-python"),
            "llama.cpp": native.libllama.llama_version().decode(),
        },
        features=native.features(),
    )


@hookimpl
def edgecore_convert(
    source: Path, out: Path, format: str, precision: str, options: Mapping[str, Value], limits: ConvertLimits,
    progress: Progress,
) -> Made:  # fmt: skip
    if format != "gguf":
        raise UnsupportedModel(f"format {format!r} is not made by this backend", supported="gguf")
    from edgecore_llamacpp.convert import convert

    with open_checkpoint(source) as model:
        return convert(model, out, precision, limits, progress)


@hookimpl
def edgecore_quantize(
    artifact: Artifact, out: Path, precision: str, calibration: Path | None, options: Mapping[str, Value],
    progress: Progress,
) -> Made:  # fmt: skip
    from edgecore_llamacpp.quantize import quantize

    how = calibrated().get(precision, "none")
    return quantize(
        artifact,
        out,
        precision,
        None if how == "none" else calibration,
        options,
        usable_threads(),
        progress,
        needs_calibration=how == "required",
    )


@hookimpl
def edgecore_run(
    artifact: Artifact, device: str, context_length: int | None, threads: int | None, options: Mapping[str, Value]
) -> TextSession:
    from edgecore_llamacpp.model import Model
    from edgecore_llamacpp.session import LlamaSession

    check_device(device)
    model = Model(artifact.model, device)
    try:
        return LlamaSession(
            model,
            context_length=context_length,
            threads=chosen_threads(threads),
            kv_cache=str(options["kv_cache"]),
            flash_attention=str(options["flash_attention"]),
        )
    except BaseException:
        model.close()
        raise


@hookimpl
def edgecore_benchmark(
    artifact: Artifact, device: str, workload: Workload, options: Mapping[str, Value], progress: Progress
) -> Samples:
    from edgecore_llamacpp.benchmark import benchmark

    check_device(device)
    return benchmark(artifact, device, workload, options, progress)


@hookimpl
def edgecore_weights(artifact: Artifact) -> Mapping[str, Any]:
    from edgecore_llamacpp.weights import Dequantized

    return Dequantized(artifact.model)


def check_device(device: str) -> None:
    """Raises `DeviceUnavailable` for a device that libllama has not registered here."""
    from edgecore_llamacpp import native

    if device == "cpu" or (device == "gpu" and any(d.accelerator for d in native.devices())):
        return
    here = ", ".join(d.name for d in native.devices())
    raise DeviceUnavailable(f"libllama has no device {device!r} here", supported=f"cpu; it sees {here}")


def calibrated() -> dict[str, str]:
    """What the manifest says of calibration, by precision: said once, there."""
    import tomllib

    data = tomllib.loads(files("edgecore_llamacpp").joinpath("backend.toml").read_text(encoding="utf-8"))
    return {p["name"]: p.get("calibration", "none") for p in data["precisions"]}
