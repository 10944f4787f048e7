"""What ONNX Runtime can run on here, now, and what is missing where it cannot, with the package that brings it.

Its own wheel computes on a CPU (on a Mac, through Core ML too). An NPU comes with the extra `qnn`; a GPU with another
wheel of ONNX Runtime in this one's place, because they install the same files.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort

from edgecore.contract import BackendUnavailable, DeviceUnavailable, Probe, ProbedDevice, Value
from edgecore_onnxruntime import qnn, runtime
from edgecore_onnxruntime.chips import DEVICES, EMULATED, EMULATOR
from edgecore_onnxruntime.placement import QNN

PROVIDERS = {
    "gpu": ("CUDAExecutionProvider", "ROCMExecutionProvider", "MIGraphXExecutionProvider", "DmlExecutionProvider"),
    "coreml": ("CoreMLExecutionProvider",),
}
"""Execution providers that are part of a wheel, by our name of the device, best first."""
_BRING = {
    "gpu": "another wheel in onnxruntime's place: onnxruntime-gpu (NVIDIA), onnxruntime-directml (Windows), in an "
    "environment of its own",
    "coreml": "macOS, where the package onnxruntime has it",
}


def probe() -> Probe:
    """Every device of the manifest; loads the library of QNN, no model and no driver."""
    try:
        runtime.check_installation()
        broken = ""
    except BackendUnavailable as error:
        broken = str(error)
    found = [ProbedDevice("cpu", not broken, "" if broken else _processor(), broken)]
    for name in DEVICES:
        why = broken or qnn.missing(name)
        found.append(ProbedDevice(name, not why, "" if why else _npu(name), why))
    for name in PROVIDERS:
        here = provider(name)
        why = broken or ("" if here else f"this wheel has no {_words(name)}; it comes with {_BRING[name]}")
        found.append(ProbedDevice(name, not why, "" if why else f"{here}, as the wheel has it; not tried", why))
    return Probe(tuple(found), {**runtime.versions(), **qnn.versions()}, _features())


def open_on(path: Path, threads: int | None, device: str, options: Mapping[str, Value]) -> ort.InferenceSession:
    """A model opened on another device than `cpu`, where nothing computes elsewhere unless `allow_fallback` is given.

    Raises what `onnx_model.open_session` and `qnn.open_on_npu` do; `DeviceUnavailable`.
    """
    from edgecore_onnxruntime import onnx_model  # with onnx, which no probe needs

    if device in DEVICES:
        return qnn.open_on_npu(path, threads, device, options)
    check_device(device)
    made = runtime.session_options(threads, options)
    if not options.get("allow_fallback"):
        made.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return onnx_model.open_session(path, made, [provider(device)])


def check_device(device: str) -> None:
    """Raises `DeviceUnavailable` for one that is not here, or that nobody knows."""
    if device in DEVICES and (why := qnn.missing(device)):
        raise qnn.unavailable(device, why)
    if device not in ("cpu", *DEVICES) and not provider(device):
        known = f": this wheel of ONNX Runtime has no {_words(device)}" if device in PROVIDERS else ""
        raise DeviceUnavailable(
            f"{device or 'a device without a name'} is not here{known}",
            supported=", ".join(here.name for here in probe().devices if here.available),
            hint="edgecore doctor",
        )


def provider(device: str) -> str:
    """The execution provider in this wheel that computes on `gpu` or `coreml`; empty where there is none."""
    here = ort.get_available_providers()
    return next((name for name in PROVIDERS.get(device, ()) if name in here), "")


def _words(device: str) -> str:
    names = [name.removesuffix("ExecutionProvider") for name in PROVIDERS[device]]
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _processor() -> str:
    if (cpuinfo := Path("/proc/cpuinfo")).is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _npu(name: str) -> str:
    return f"QNN's HTP backend in emulation, playing {EMULATED}" if name == EMULATOR else "Hexagon, through QNN"


def _features() -> dict[str, str]:
    return {"execution providers": ", ".join(name.removesuffix("ExecutionProvider") for name in providers())}


def providers() -> list[str]:
    """Of the wheel, and QNN where it is installed."""
    extra = [] if qnn.missing_package() else [QNN]
    return list(dict.fromkeys([*ort.get_available_providers(), *extra]))
