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
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import onnxruntime as ort

from edgecore.contract import CorruptModel, DeviceUnavailable, EdgecoreError, PlacementRefused, UnsupportedModel, Value
from edgecore_onnxruntime import runtime
from edgecore_onnxruntime.chips import CHIPS, DEVICES, EMULATED, EMULATOR, NPU, OLDEST, chip
from edgecore_onnxruntime.model_file import check_file
from edgecore_onnxruntime.placement import QNN, left_over

if TYPE_CHECKING:
    from edgecore_onnxruntime.context import Context

INSTALL = "pip install 'edgecore-onnxruntime[qnn]'"
PROVIDER = ("htp_performance_mode", "htp_graph_finalization_optimization_mode", "vtcm_mb")
"""Options of `run` that are handed on as they are; the manifest says which values they take."""
_playing: WeakKeyDictionary[ort.InferenceSession, str] = WeakKeyDictionary()
"""What is open on the emulator in this process, and the chip that it plays there."""


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
        chosen["soc_model"] = str(CHIPS[chip(soc or EMULATED)])
    chosen["backend_path"] = _package().get_qnn_htp_path()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "0" if allow_fallback else "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_provider_for_devices(_ep_devices(device), chosen)


def open_on_npu(path: Path, threads: int | None, device: str, options: Mapping[str, Value]) -> ort.InferenceSession:
    """A model opened on `npu` or `npu-emulator`, with the `run` options `soc_model`, `allow_fallback` and those of
    `PROVIDER`; one that was compiled ahead of time only for the chip that it was compiled for.

    Raises what `add_npu`, `onnx_model.open_session` and `context.check` do; `UnsupportedModel` names the operators that
    the NPU does not take.
    """
    from edgecore_onnxruntime import context, onnx_model  # onnx takes as long as all else that a probe does

    asked = chip(str(options["soc_model"])) if options.get("soc_model") else ""
    if why := missing(device):
        raise unavailable(device, why)
    compiled = check_graph(path)
    if compiled:
        context.check(compiled, path, device, asked, versions()["qnn"])
        asked = asked or compiled.chip
    if device == EMULATOR:
        check_playing(asked or EMULATED)
    session_options = runtime.session_options(threads, options)
    add_npu(session_options, device, asked, options, bool(options.get("allow_fallback")))
    if compiled and compiled.graphs > 1:
        session_options.add_session_config_entry("ep.share_ep_contexts", "1")
    try:
        opened = (runtime.open_model if compiled else onnx_model.open_session)(path, session_options, None)
    except PlacementRefused as error:
        raise explained(path, device, options, error) from None
    if device == EMULATOR:
        _playing[opened] = asked or EMULATED
    return opened


def check_playing(wanted: str) -> None:
    """Raises `DeviceUnavailable` where this process has a model open on an emulated chip of the other kind: computing
    with that one would fail from now on."""
    for other in {*_playing.values()}:
        if (other in OLDEST) != (wanted in OLDEST):
            raise DeviceUnavailable(
                f"the emulator plays {other} in this process, and cannot play {wanted} beside it",
                supported=f"{wanted} once what is open on {other} is closed, or in a process of its own",
                hint="isolated=True, which is the default",
            )


def check_graph(path: Path) -> Context | None:
    """What a model was compiled for, None where it was not. Raises as `check_file`, `unfit.check`, `context.read`."""
    import onnx

    from edgecore_onnxruntime import context, unfit

    check_file(path)
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own kind derives from nothing else.
        raise CorruptModel(f"{path}: no ONNX model: {runtime.said(error)}") from None
    unfit.check(model, path)
    return context.read(model, path)


def explained(
    path: Path,
    device: str,
    options: Mapping[str, Value],
    error: EdgecoreError,
    hint: str = "--allow-fallback, which computes them on the CPU and tells the share",
) -> EdgecoreError:
    """Why a model was not opened where nothing may fall back: opened again where all may, to see what stays behind."""
    from edgecore_onnxruntime import onnx_model

    again = runtime.session_options(1, options)
    add_npu(again, device, str(options.get("soc_model") or ""), options, allow_fallback=True)
    left = left_over(onnx_model.open_session(path, again, None))
    if not isinstance(error, PlacementRefused) or not left:
        return error
    named = ", ".join(f"{kind} ({number})" if number > 1 else kind for kind, number in left.items())
    return UnsupportedModel(
        f"{path.name}: {device} does not take these operators: {named}",
        supported="operators and types that QNN's HTP backend has for this chip, with fixed shapes",
        hint=hint,
    )


def missing(device: str) -> str:
    """Why a device is not here; empty where it is. Loads the execution provider, no backend of it."""
    if why := missing_package():
        return why
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


def missing_package() -> str:
    """What to install, where the execution provider is not; empty where it is."""
    return "" if find_spec("onnxruntime_qnn") else f"the package onnxruntime-qnn is not installed: {INSTALL}"


def versions() -> dict[str, str]:
    """Of QNN's SDK, which compiles and, in emulation, computes."""
    return {} if missing_package() else {"qnn": str(_package().build_and_package_info.qnn_version)}


def unavailable(device: str, why: str) -> DeviceUnavailable:
    """The error, with the command that helps where there is one."""
    if missing_package():
        return DeviceUnavailable(f"{device} is not here: {why}", supported="cpu", hint=INSTALL)
    here = [name for name in DEVICES if name != device and not missing(name)]
    hint = f"--device {EMULATOR}, which computes the same, hundreds of times slower" if EMULATOR in here else ""
    return DeviceUnavailable(f"{device} is not here: {why}", supported=", ".join(["cpu", *here]), hint=hint)


def _ep_devices(device: str) -> list[Any]:
    """QNN's own, of the kind that the device is. It takes any CPU for itself: with one it computes in emulation, on
    x86-64, and reaches the NPU by FastRPC on a Snapdragon with Linux, where ONNX Runtime finds no NPU."""
    _register()
    kinds = ort.OrtHardwareDeviceType
    found = [found for found in ort.get_ep_devices() if found.ep_name == QNN]
    npus = [one for one in found if one.device.type == kinds.NPU]
    by_cpu = device == EMULATOR or any(Path("/dev").glob("fastrpc-cdsp*"))
    return npus if device == NPU and npus else [one for one in found if by_cpu and one.device.type == kinds.CPU]


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
