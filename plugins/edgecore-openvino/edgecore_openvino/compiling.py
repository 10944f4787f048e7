"""Ahead of time: a tensor model compiled for the device of a profile, and what is missing where it cannot be.

The NPU's compiler comes with the NPU's driver or with OpenVINO's archives; the wheels on the package index have neither
of its two libraries (on Linux; openvino issue 36374). A CPU's code is made on such a CPU only.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openvino as ov

from edgecore.contract import (
    Artifact,
    DeviceUnavailable,
    Made,
    Progress,
    TensorSpec,
    UnsupportedModel,
    Value,
    full_disk,
)
from edgecore_openvino import blob, runtime
from edgecore_openvino.devices import available, check_device
from edgecore_openvino.tensors import load, rotates

COMPILER = ("openvino_intel_npu_compiler_loader", "openvino_intel_npu_compiler")
"""Libraries beside OpenVINO's own: the first is what the NPU plugin opens, the second what that one opens."""
LEVELS = (("avx512", "512"), ("avx2", "AVX2"))
"""Instruction sets by the beginning of a profile's feature, and by a word in OpenVINO's name of them; best first."""


def compile(
    artifact: Artifact,
    out: Path,
    profile: Mapping[str, Any],
    device: str,
    options: Mapping[str, Value],
    progress: Progress,
) -> Made:
    """Writes a blob. Raises `UnsupportedModel` for what is not compiled ahead of time, `DeviceUnavailable` where the
    compiler is missing or the CPU is another, `DoesNotFit`."""
    if artifact.task != "tensor":
        raise UnsupportedModel(
            "language models are not compiled ahead of time: OpenVINO compiles them when they are opened, once",
            supported="tensor models; a language model runs from its folder, with the compile cache on",
            hint="the same command without --profile",
        )
    if artifact.format == blob.FORMAT:
        raise UnsupportedModel(f"{artifact.model.name} is compiled already", supported="an IR or an ONNX file")
    progress(0, 2, "reading")
    model, inputs, outputs = load(artifact.model)
    _check_shapes(artifact, device, inputs)
    progress(1, 2, f"compiling for {device}")
    compiled, requires = _npu(model, str(options["platform"])) if device == "npu" else _here(model, artifact, device)
    if device == "cpu":
        _check_level(profile, requires.get("isa", ""))
    with full_disk(out):
        blob.save(compiled, inputs, outputs, out)
    progress(2, 2, "written")
    return Made(blob.FILES, requires={"device": device, **requires}, format=blob.FORMAT)


def _here(model: ov.Model, artifact: Artifact, device: str) -> tuple[ov.CompiledModel, dict[str, str]]:
    """By the device itself, which must be here."""
    asked: dict[str, Value] = {"compile_cache": False}
    if artifact.precision == "f32":
        asked["inference_precision"] = "f32"
    compiled = runtime.compile_model(model, device, runtime.properties(device, None, asked))
    if device == "cpu" and rotates(compiled):
        raise UnsupportedModel(
            f"OpenVINO {runtime.VERSION} forgets in a blob how a rotary embedding turns, and answers something else",
            supported="models without one; this model where it is compiled when it is opened",
            hint="the same command without --profile",
        )
    return compiled, {"machine": platform.machine(), "openvino": runtime.VERSION, **blob.requirements(compiled)}


def _npu(model: ov.Model, name: str) -> tuple[ov.CompiledModel, dict[str, str]]:
    """By the compiler beside OpenVINO, or by the driver where the NPU itself is here."""
    properties: dict[str, Any] = {}
    if compiler() or "NPU" not in available():
        properties = {"NPU_COMPILER_TYPE": "PLUGIN", "NPU_PLATFORM": name}
    else:
        check_device("npu", {})
        found = str(runtime.core().get_property("NPU", "DEVICE_ARCHITECTURE"))
        if name not in found:
            raise _missing(f"the NPU that is here is {found}, and its driver compiles for no other")
    try:
        compiled = runtime.core().compile_model(model, "NPU", properties)
    except RuntimeError as error:
        if "compiler loading failed" in str(error) or COMPILER[0] in str(error):
            raise _missing(runtime.last_line(error)) from None
        raise UnsupportedModel(
            f"the NPU's compiler does not take the model: {runtime.last_line(error)}",
            supported="another model or shape",
        ) from None
    return compiled, {"platform": name, "openvino": runtime.VERSION, **blob.requirements(compiled)}


def libraries() -> Path:
    """Where OpenVINO looks for its plugins."""
    return Path(ov.__file__).parent / "libs"


def compiler() -> bool:
    """Whether both libraries are where OpenVINO looks for them."""
    return all(any(libraries().glob(f"*{name}.*")) for name in COMPILER)


def _missing(why: str) -> DeviceUnavailable:
    lacking = [name for name in COMPILER if not any(libraries().glob(f"*{name}.*"))]
    suffix, prefix = (".dll", "") if platform.system() == "Windows" else (".so", "lib")
    files = " and ".join(f"{prefix}{name}{suffix}" for name in lacking)
    what = f"openvino {runtime.VERSION} comes without {files}" if files else why
    return DeviceUnavailable(
        f"no compiler for the NPU is here: {what}",
        supported="a computer with this NPU and its driver; or these files of the same version of OpenVINO's archive, "
        f"from runtime/lib/intel64 (Windows: runtime/bin/intel64/Release), in {libraries()}",
        hint="https://docs.openvino.ai/install (choose the archive)",
    )


def _check_shapes(artifact: Artifact, device: str, inputs: tuple[TensorSpec, ...]) -> None:
    for spec in inputs:
        if device == "npu" and any(isinstance(size, str) for size in spec.shape):
            fixed = ",".join("1" if isinstance(size, str) else str(size) for size in spec.shape)
            raise UnsupportedModel(
                f"the NPU takes fixed shapes, and input {spec.name!r} is {list(spec.shape)}",
                supported="a model whose inputs are fixed",
                hint=f"the same command with --shape {spec.name}={fixed}",
            )


def _check_level(profile: Mapping[str, Any], isa: str) -> None:
    """OpenVINO compiles for the CPU that it runs on: for another one, the blob would be of no use."""
    match = profile.get("match", {})
    machines = match.get("machines", [platform.machine()])
    features = match.get("features", [])
    wanted = next((word for feature, word in LEVELS if any(f.startswith(feature) for f in features)), "")
    made = next((word for _, word in LEVELS if word in isa), "")
    if platform.machine() not in machines or (features and wanted != made):
        raise DeviceUnavailable(
            f"OpenVINO compiles for the CPU that it runs on, {isa or platform.machine()}, and the profile is another",
            supported="the profile of this machine (edgecore doctor names it)",
            hint="edgecore doctor",
        )
