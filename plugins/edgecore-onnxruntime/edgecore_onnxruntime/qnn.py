"""ONNX Runtime's QNN execution provider: an NPU, or its emulator on x86-64, added to a session's options.

It takes any option in silence, whether it has it or not, and has one message for an operator that it lacks, a library
that is missing and a chip that there is not. So what it is asked is checked here, and why it refused is found out here.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnxruntime as ort

from edgecore.contract import BadRequest, DeviceUnavailable, PlacementRefused, Value
from edgecore_onnxruntime import runtime
from edgecore_onnxruntime.placement import QNN, left_over

NPU, EMULATOR = "npu", "npu-emulator"
DEVICES = (NPU, EMULATOR)
INSTALL = "pip install 'edgecore-onnxruntime[qnn]'"
SOCS = {
    "SM8350": 30, "SM8450": 36, "SC8280X": 37, "SM8475": 42, "SM8550": 43, "SM8650": 57, "SC8380XP": 60, "QCS8550": 66,
    "SM8635": 68, "SM8750": 69, "SM8735": 85, "SM8850": 87, "SC8480XP": 88, "QCM6490": 93, "SM8845": 97,
}  # fmt: skip
"""Qualcomm's number of a chip (`soc_model`) by its name, those with a Hexagon tensor processor."""
EMULATED = "SM8750"
"""The chip that the emulator plays where none is named. It must play one: without, float graphs fail or answer
differently."""
PROVIDER = (
    "htp_performance_mode", "htp_graph_finalization_optimization_mode", "vtcm_mb", "enable_htp_fp16_precision",
    "qnn_context_priority", "rpc_control_latency",
)  # fmt: skip
"""Options of `run` that are handed on as they are; the manifest says which values they take."""


def add_npu(
    options: ort.SessionOptions,
    device: str,
    soc: str | None = None,
    run_options: Mapping[str, Value] | None = None,
    allow_fallback: bool = False,
) -> None:
    """Adds the execution provider. What it does not take is refused when the model is opened, unless `allow_fallback`.

    device: `npu` or `npu-emulator`.
    soc:    a chip by name or number, None for the one that is here; the emulator's default is `EMULATED`.
    Raises `DeviceUnavailable`, and `BadRequest` for a chip that nobody knows.
    """
    if why := missing(device):
        raise unavailable(device, why)
    given = run_options or {}
    chosen = {name: _text(given[name]) for name in PROVIDER if given.get(name) is not None}
    if soc or device == EMULATOR:
        chosen["soc_model"] = str(soc_model(soc or EMULATED))
    chosen["backend_path"] = _package().get_qnn_htp_path()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "0" if allow_fallback else "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_provider_for_devices(_ep_devices(device), chosen)


def open_on_npu(path: Path, threads: int | None, device: str, options: Mapping[str, Value]) -> ort.InferenceSession:
    """A model opened on `npu` or `npu-emulator`, with the `run` options `soc_model`, `allow_fallback` and those of
    `PROVIDER`. Raises what `add_npu` and `runtime.open_model` do; `PlacementRefused` names the operators that the NPU
    does not take."""
    soc, fallback = options.get("soc_model"), bool(options.get("allow_fallback"))

    def opened(allow: bool) -> ort.InferenceSession:
        session_options = runtime.session_options(threads, options)
        add_npu(session_options, device, str(soc) if soc else None, options, allow)
        return runtime.open_model(path, session_options, None)

    try:
        return opened(fallback)
    except PlacementRefused as error:
        raise _refused(path, device, left_over(opened(True)), error) from None


def soc_model(name: str) -> int:
    """The number of a chip by its name (`SM8750`) or the number itself. Raises `BadRequest`."""
    number = SOCS.get(name.upper()) or (int(name) if name.isdecimal() and int(name) in SOCS.values() else None)
    if number is None:
        known = ", ".join(f"{chip} ({number})" for chip, number in SOCS.items())
        raise BadRequest(f"soc_model={name}: no chip with an NPU that QNN compiles for", supported=known)
    return number


def missing(device: str) -> str:
    """Why a device is not here; empty where it is. Loads the execution provider, no backend of it."""
    if find_spec("onnxruntime_qnn") is None:
        return "the package onnxruntime-qnn is not installed"
    if device == EMULATOR and platform.machine() not in ("x86_64", "AMD64"):
        return "the emulator is part of QNN for x86-64 only"
    try:
        found = _ep_devices(device)
    except runtime.ERRORS as error:
        return f"QNN's library does not load: {runtime.said(error)}"
    if not found:
        return "no Hexagon NPU is here" if device == NPU else "QNN names no device"
    backend = Path(_package().get_qnn_htp_path())
    return "" if backend.is_file() else f"QNN's HTP backend is missing: {backend.name} beside onnxruntime_qnn"


def unavailable(device: str, why: str) -> DeviceUnavailable:
    """The error, with the command that helps where there is one."""
    if find_spec("onnxruntime_qnn") is None:
        return DeviceUnavailable(f"{device} is not here: {why}", supported="cpu", hint=INSTALL)
    here = [name for name in DEVICES if name != device and not missing(name)]
    hint = f"--device {EMULATOR}, which computes the same, hundreds of times slower" if EMULATOR in here else ""
    return DeviceUnavailable(f"{device} is not here: {why}", supported=", ".join(["cpu", *here]), hint=hint)


def _refused(path: Path, device: str, left: Mapping[str, int], error: PlacementRefused) -> PlacementRefused:
    if not left:
        return error
    named = ", ".join(f"{kind} ({number})" if number > 1 else kind for kind, number in left.items())
    return PlacementRefused(
        f"{path.name}: {device} does not take these operators: {named}",
        supported="a model whose shapes are fixed, of operators that QNN's HTP backend has",
        hint="-O allow_fallback=true, which computes them on the CPU and tells the share",
    )


def _ep_devices(device: str) -> list[Any]:
    _register()
    kinds = ort.OrtHardwareDeviceType
    kind = kinds.NPU if device == NPU else kinds.CPU
    return [found for found in ort.get_ep_devices() if found.ep_name == QNN and found.device.type == kind]


@cache
def _register() -> None:
    runtime.prepare()
    ort.register_execution_provider_library(QNN, _package().get_library_path())


@cache
def _package() -> Any:
    import onnxruntime_qnn

    return onnxruntime_qnn


def _text(value: Value) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)
