"""A model compiled ahead of time: what OpenVINO exports, and beside it the names that it forgets.

A blob runs on what it was compiled for and on nothing else: a CPU's on that instruction set and this very version of
OpenVINO, an NPU's on its platform. The runtime checks it, and says it in its own words; here they become an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openvino as ov

from edgecore.contract import (
    Artifact,
    BadRequest,
    CorruptModel,
    DeviceUnavailable,
    ModelNotFound,
    PayloadFile,
    TensorSpec,
    Value,
)
from edgecore_openvino.devices import check_device
from edgecore_openvino.interface import Specs, from_source, named
from edgecore_openvino.runtime import check_execution, core, last_line

FORMAT = "openvino-blob"
MODEL, INTERFACE = "model.blob", "interface.json"
FILES = (PayloadFile(MODEL, "model"), PayloadFile(INTERFACE, "config"))
TAKEN = ("perf_count", "device_id")
SETTLED = ("inference_precision", "dynamic_quantization_group_size")
"""Options of `run` that a blob takes, and those that it cannot."""


def save(compiled: ov.CompiledModel, inputs: Specs, outputs: Specs, out: Path) -> None:
    """Writes `FILES`."""
    (out / MODEL).write_bytes(compiled.export_model().getvalue())
    told = {
        side: [[spec.name, spec.shape] for spec in specs] for side, specs in (("inputs", inputs), ("outputs", outputs))
    }
    (out / INTERFACE).write_text(json.dumps(told), encoding="utf-8")


def requirements(compiled: ov.CompiledModel) -> dict[str, str]:
    """What the compiled model itself says beside OpenVINO's version: `{"isa": "Intel AVX2"}`, or nothing."""
    try:
        said = str(compiled.get_property("RUNTIME_REQUIREMENTS"))
    except RuntimeError:
        return {}
    pairs = (part.partition("=") for part in said.split(";"))
    return {key.strip(): value.strip() for key, _, value in pairs if value and key.strip() not in ("meta", "ov")}


def options(given: Mapping[str, Value]) -> dict[str, Value]:
    """Those that a blob takes. Raises `BadRequest` for a precision: that was settled when it was compiled."""
    for name in SETTLED:
        if given.get(name, "device") != "device":
            raise BadRequest(
                f"{name}={given[name]}: a blob computes in what it was compiled for", supported=", ".join(TAKEN)
            )
    return {**{name: given[name] for name in TAKEN if name in given}, "compile_cache": False}


def load(artifact: Artifact, device: str, properties: Mapping[str, Any]) -> tuple[ov.CompiledModel, Specs, Specs]:
    """The blob on a device. Raises `DeviceUnavailable` where the device, or what it must be, is not here,
    `PlacementRefused`, `CorruptModel`."""
    path, wants = artifact.model, artifact.requires
    told = ", ".join(f"{name} {value}" for name, value in wants.items())
    if wants.get("device", device) != device:
        raise DeviceUnavailable(
            f"{path.name} was compiled for {wants['device']}, and {device} was asked for",
            supported=told,
            hint=f"--device {wants['device']}",
        )
    try:
        check_device(device, properties)
    except DeviceUnavailable as error:
        raise DeviceUnavailable(
            f"{path.name} requires {told or device}: {error.what}", supported=error.supported
        ) from None
    try:
        # A blob is compiled: what remains to be said to it is how many threads, not what to compute in.
        given = {k: v for k, v in properties.items() if k in ("INFERENCE_NUM_THREADS", "PERF_COUNT", "DEVICE_ID")}
        compiled = core().import_model(path.read_bytes(), device.upper(), given)
    except FileNotFoundError:
        raise ModelNotFound(f"{path} does not exist") from None
    except (RuntimeError, ValueError) as error:
        raise _unloadable(path, told, error) from None
    check_execution(compiled, device, properties)
    inputs, outputs = _interface(path.with_name(INTERFACE), compiled)
    return compiled, inputs, outputs


def _unloadable(path: Path, told: str, error: BaseException) -> CorruptModel | DeviceUnavailable:
    said = str(error)
    other = re.search(r"blob:\s*(.+?)\s*current:\s*(.+)", said, re.S)
    if other:
        theirs, ours = (" ".join(side.split()) for side in other.groups())
        return DeviceUnavailable(
            f"{path.name} was compiled for something else than is here: it wants {theirs}; this is {ours}",
            supported="a blob of this OpenVINO, for this processor",
            hint="edgecore build MODEL --backend openvino --profile NAME",
        )
    if re.search(r"platform|driver|backend|ELF version|blob version", said, re.I):
        return DeviceUnavailable(f"{path.name} requires {told or 'another device'}: {last_line(error)}")
    return CorruptModel(f"{path}: no blob that OpenVINO can load: {last_line(error)}")


def _interface(path: Path, compiled: ov.CompiledModel) -> tuple[Specs, Specs]:
    if not path.is_file():
        return from_source(compiled, named(compiled.inputs), named(compiled.outputs))
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        sides = [tuple(TensorSpec(str(name), "", tuple(s)) for name, s in told[side]) for side in ("inputs", "outputs")]
        return from_source(compiled, *sides)
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptModel(f"{path}: says other inputs and outputs than the blob beside it: {error}") from None
