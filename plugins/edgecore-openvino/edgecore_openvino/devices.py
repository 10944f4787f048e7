"""What OpenVINO can run on here, now, and what is missing where it cannot: in words, with the package that brings it.

The runtime names a device only where its plugin loads and its driver answers. Why it does not name one it tells by a
loader's message or not at all, so the usual reasons are looked for here.
"""

from __future__ import annotations

import ctypes
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgecore.contract import DeviceUnavailable, Probe, ProbedDevice
from edgecore_openvino.runtime import COMBINED, core, last_line, unit, versions

NAMES = ("cpu", "gpu", "npu")
"""The devices that compute."""
_NODES = {"gpu": "/dev/dri/renderD*", "npu": "/dev/accel/accel*"}
"""Where Linux shows a device whose kernel driver is there."""
_LOADERS = {"gpu": "libOpenCL.so.1", "npu": "libze_loader.so.1"}
_PACKAGES = {
    "gpu": "Intel's OpenCL driver (Debian, Ubuntu: apt install intel-opencl-icd ocl-icd-libopencl1)",
    "npu": "Intel's NPU driver (intel-level-zero-npu and intel-fw-npu, https://github.com/intel/linux-npu-driver)",
}
_DESCRIBED = ("OPTIMIZATION_CAPABILITIES", "DEVICE_ARCHITECTURE", "INFERENCE_PRECISION_HINT", "NPU_DRIVER_VERSION")


def probe() -> Probe:
    """Every device of the manifest, what it is called, and what it can; loads the plugins of OpenVINO, no model."""
    found = available()
    devices = []
    for name in NAMES:
        here = [full for full in found if unit(full) == name]
        called = [_property(full, "FULL_DEVICE_NAME") for full in here]
        if len(here) > 1:
            called = [f"{full.lower()} {text}" for full, text in zip(here, called, strict=True)]
        devices.append(ProbedDevice(name, bool(here), ", ".join(called), "" if here else missing(name)))
    several = ", ".join(name.lower() for name in found)
    devices += [ProbedDevice(name, available=bool(found), description=f"over {several}") for name in COMBINED]
    features = {f"{full} {what}": text for full in found for what in _DESCRIBED if (text := _property(full, what))}
    return Probe(tuple(devices), versions(), features)


def available() -> tuple[str, ...]:
    """As OpenVINO names them: `CPU`, `GPU.0`, `GPU.1`."""
    return tuple(core().available_devices)


def check_device(device: str, properties: Mapping[str, Any]) -> None:
    """Raises `DeviceUnavailable` for a device that is not here, or that OpenVINO has not."""
    here = available()
    asked = [device.upper()]
    if device in COMBINED:
        asked = [name for name in str(properties.get("MULTI_DEVICE_PRIORITIES", "")).split(",") if name]
    elif "DEVICE_ID" in properties:
        asked = [f"{device.upper()}.{properties['DEVICE_ID']}"]
    for name in asked:
        if unit(name) not in NAMES:
            raise _unavailable(f"OpenVINO has no device {name.lower()!r}")
        # One device of its kind is named without a number, and answers to 0 all the same.
        if name not in here and unit(name) not in here and f"{name}.0" not in here:
            several = ", ".join(full for full in here if unit(full) == unit(name))
            why = f"there are {several}" if several else missing(unit(name))
            if name.removesuffix(".0") not in here:
                raise _unavailable(f"{name.lower()} is not here: {why}")


def _unavailable(what: str) -> DeviceUnavailable:
    here = [name.lower() for name in available()]
    return DeviceUnavailable(what, supported=", ".join([*here, *COMBINED]), hint="edgecore doctor")


def missing(device: str) -> str:
    """Why a device is not here, as far as can be told."""
    try:
        core().get_versions(device.upper())
    except RuntimeError as error:
        said = last_line(error)
        if "not registered" in said:
            return f"OpenVINO's package for {platform.system()} on {platform.machine()} has no {device} plugin"
        library = next((word.strip(":") for word in said.split() if re.match(r"lib\S+\.so", word)), "")
        what = f"the library {library} is missing" if library else said
        return f"{what}; it comes with {_PACKAGES[device]}" if device in _PACKAGES else what
    if device not in _PACKAGES:
        return "OpenVINO does not name it"
    if platform.system() != "Linux":
        return f"OpenVINO finds none: the computer has none, or lacks {_PACKAGES[device]}"
    reasons = []
    if not list(Path("/").glob(_NODES[device].lstrip("/"))):
        reasons.append(f"there is no {_NODES[device]}: the computer has none, or its kernel no driver for it")
    if not _loads(_LOADERS[device]):
        reasons.append(f"the library {_LOADERS[device]} is missing")
    return "; ".join([*reasons, f"it needs {_PACKAGES[device]}"])


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _property(device: str, name: str) -> str:
    try:
        value = core().get_property(device, name)
    except RuntimeError:
        return ""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return value.get_type_name() if hasattr(value, "get_type_name") else str(value)
