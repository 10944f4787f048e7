"""OpenVINO's core, and its failures in words: one core a process, files checked before they are read, typed errors.

Device names are the manifest's (`cpu`, `gpu`, `npu`, `auto`, `hetero`); which one of several and in what order they are
tried are options, and become properties here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import openvino as ov

from edgecore.contract import (
    BadRequest,
    CorruptModel,
    DeviceUnavailable,
    DoesNotFit,
    EdgecoreError,
    ModelNotFound,
    PlacementRefused,
    UnsupportedModel,
    Value,
    cache_folder,
    usable_memory,
    usable_threads,
)

MOST_THREADS = 512
COMBINED = ("auto", "hetero")
"""Devices that hand the work to others."""
VERSIONS = (10, 11)
"""Of the IR, that this OpenVINO reads."""
VERSION = ov.__version__.partition("-")[0]
PADDING = 64
"""Bytes by which a .bin may be longer than what its .xml speaks of: an alignment, not another model."""
_OWN_OPTIONS = {
    "inference_precision": ("INFERENCE_PRECISION_HINT", ("cpu", "gpu", "npu")),
    "kv_cache": ("KV_CACHE_PRECISION", ("cpu", "gpu")),
    "dynamic_quantization_group_size": ("DYNAMIC_QUANTIZATION_GROUP_SIZE", ("cpu", "gpu")),
}
"""Options of `run` that a device takes as they are: the property, and which devices have it."""


@cache
def core() -> ov.Core:
    """The process' own."""
    return ov.Core()


def read_model(path: Path) -> ov.Model:
    """A model from its .xml and the .bin beside it, weights mapped.

    Raises `ModelNotFound`, `CorruptModel`, `UnsupportedModel` for what another OpenVINO wrote, `DoesNotFit`.
    """
    text = _header(path)
    weights = path.with_suffix(".bin")
    needed, held = _weights(path, weights, text)
    try:
        model = core().read_model(path)
    except (RuntimeError, ValueError, OSError, MemoryError) as error:
        raise _unreadable(path, text, error) from None
    if not model.outputs:
        raise CorruptModel(f"{path}: <layers> holds no output: the model computes nothing")
    if held > needed + PADDING:
        raise CorruptModel(
            f"{weights}: holds {held:,} bytes, {path.name} speaks of {needed:,}: one of them is another model's"
        )
    return model


def compile_model(model: ov.Model, device: str, properties: Mapping[str, Any]) -> ov.CompiledModel:
    """The model made ready for a device of the manifest, with what `properties` answered.

    Raises `DeviceUnavailable`, `PlacementRefused`, `DoesNotFit`, `BadRequest` for a property that the device does not
    take, `UnsupportedModel` for a model that it cannot compute.
    """
    from edgecore_openvino.devices import check_device

    check_device(device, properties)
    try:
        compiled = core().compile_model(model, device.upper(), dict(properties))
    except (RuntimeError, ValueError, MemoryError) as error:
        raise _uncompiled(device, error) from None
    check_execution(compiled, device, properties)
    return compiled


def check_execution(compiled: ov.CompiledModel, device: str, properties: Mapping[str, Any]) -> None:
    """Raises `PlacementRefused` where the runtime says that a device which was asked for got nothing."""
    used = execution_devices(compiled)
    asked = [unit(name) for name in str(properties.get("MULTI_DEVICE_PRIORITIES", "")).split(",") if name]
    wanted = asked[:1] if device == "hetero" else asked if device == "auto" else [device]
    if wanted and not set(wanted) & {unit(name) for name in used}:
        raise PlacementRefused(
            f"{' and '.join(wanted)} asked for, and OpenVINO runs the model on {', '.join(used) or 'nothing it names'}",
            supported=f"--device {unit(used[0]) if used else 'cpu'}, or a model whose operators {wanted[0]} has",
            hint="edgecore doctor",
        )


def properties(device: str, threads: int | None, options: Mapping[str, Value]) -> dict[str, Any]:
    """OpenVINO's properties from what `run` was asked for. Raises `BadRequest`."""
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise BadRequest(f"{threads} threads", supported=f"1 to {MOST_THREADS} threads")
    found: dict[str, Any] = {}
    if (hint := str(options.get("performance_hint", "latency"))) != "none":
        found["PERFORMANCE_HINT"] = hint.upper()
    if options.get("compile_cache", True) and (folder := _compile_cache()):
        found["CACHE_DIR"] = str(folder)
    if options.get("perf_count", device == "hetero"):
        found["PERF_COUNT"] = True
    if number := str(options.get("device_id", "")):
        if device != "gpu":
            raise BadRequest(f"device_id={number}: {device} has no numbers", supported="device_id with --device gpu")
        found["DEVICE_ID"] = number
    priorities = [name.strip().upper() for name in str(options.get("priorities", "")).split(",") if name.strip()]
    if device not in COMBINED:
        if priorities:
            raise BadRequest("priorities are for auto and hetero", supported="-O priorities=gpu,cpu with --device auto")
        return found | _own(device, threads, options, strict=True)
    from edgecore_openvino.devices import NAMES, available

    unknown = [name for name in priorities if unit(name) not in NAMES]
    if unknown:
        raise BadRequest(f"priorities: no device {unknown[0].lower()!r}", supported=", ".join(NAMES))
    if device == "auto":
        # Else the CPU computes until the device is ready, and where it runs changes under a measurement.
        found["ENABLE_STARTUP_FALLBACK"] = False
    if priorities:
        found["MULTI_DEVICE_PRIORITIES"] = ",".join(priorities)
    elif device == "hetero":
        found["MULTI_DEVICE_PRIORITIES"] = ",".join(available())
    units = {unit(name) for name in priorities or available()}
    found["DEVICE_PROPERTIES"] = {name.upper(): _own(name, threads, options, strict=False) for name in sorted(units)}
    return found


def stated(compiled: ov.CompiledModel) -> dict[str, str]:
    """`device`, `threads`, `compute`, `kv_cache` and `dynamic_quantization` as the compiled model itself says; what it
    does not say is left out. Where it runs on several devices, the words of each, joined."""
    devices = execution_devices(compiled)
    told = _property(compiled, "DEVICE_PROPERTIES")
    sources = [told[name].get for name in sorted(told)] if told else [lambda name: _property(compiled, name)]
    found = {"device": ", ".join(unit(name) for name in devices)}
    for condition, name in (
        ("threads", "INFERENCE_NUM_THREADS"),
        ("compute", "INFERENCE_PRECISION_HINT"),
        ("kv_cache", "KV_CACHE_PRECISION"),
        ("dynamic_quantization", "DYNAMIC_QUANTIZATION_GROUP_SIZE"),
    ):
        values = [_word(value) for ask in sources if (value := ask(name)) is not None]
        if values:
            found[condition] = ", ".join(dict.fromkeys(values))
    return found


def execution_devices(compiled: ov.CompiledModel) -> list[str]:
    """Where OpenVINO says that it runs: `["CPU"]`, `["GPU.0", "CPU"]`."""
    return [name.strip("()") for name in _property(compiled, "EXECUTION_DEVICES") or ()]


def unit(name: str) -> str:
    """The manifest's name of a device: `gpu` for `GPU.1`."""
    return name.partition(".")[0].strip().lower()


def versions() -> dict[str, str]:
    """Of what was loaded; they enter artifact ids."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"openvino": ov.__version__}
    for name in ("nncf", "openvino-tokenizers"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def last_line(error: BaseException) -> str:
    """What an OpenVINO exception says in the end: before that come its source files and checks."""
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(("Exception from", "Check '", "FrontEnd API"))]
    return (telling or [line for line in lines if line] or [type(error).__name__])[-1]


def _own(device: str, threads: int | None, options: Mapping[str, Value], *, strict: bool) -> dict[str, Any]:
    """Properties of one real device. `strict` refuses an option that it does not have; else it is left out."""
    found: dict[str, Any] = {}
    if device == "cpu":
        found["INFERENCE_NUM_THREADS"] = threads or usable_threads()
    for option, (name, devices) in _OWN_OPTIONS.items():
        value = options.get(option, "device")
        if value == "device":
            continue
        if device in devices:
            found[name] = value
        elif strict and option != "kv_cache":  # That one has a default, and so is always given.
            raise BadRequest(f"{option}={value}: {device} has no such option", supported=", ".join(devices))
    return found


def _compile_cache() -> Path | None:
    """Blobs of other OpenVINO versions, devices and options are not found by theirs: the runtime sees to it. None where
    nothing can be written, as in a container's read-only file system: a model runs there all the same."""
    folder = cache_folder("openvino")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def _property(compiled: ov.CompiledModel, name: str) -> Any:
    try:
        return compiled.get_property(name)
    except RuntimeError:
        return None


def _word(value: Any) -> str:
    return value.get_type_name() if isinstance(value, ov.Type) else str(value)


def _header(path: Path) -> bytes:
    """The text of an .xml that begins as IR does."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise ModelNotFound(f"{path} does not exist") from None
    except OSError as error:
        raise CorruptModel(f"{path}: cannot be read: {os.strerror(error.errno or 0)}") from None
    try:
        text.decode()
    except UnicodeDecodeError as error:  # OpenVINO reads on, and fails when it is asked for a name
        raise CorruptModel(f"{path}: byte {error.start} is no UTF-8") from None
    net = re.search(rb"<net\b[^>]*>", text[: 1 << 16])
    version = net and re.search(rb'\bversion\s*=\s*"(\d{1,9})"', net[0])
    if version is None:
        raise CorruptModel(f"{path}: no <net version=...> at its beginning", supported="an IR written by OpenVINO")
    if (number := int(version[1])) not in VERSIONS:
        age = "newer" if number > VERSIONS[-1] else "older"
        raise UnsupportedModel(
            f'{path}: <net version="{number}">{_writer(text)}: {age} than what OpenVINO {VERSION} reads',
            supported=f"IR version {' and '.join(map(str, VERSIONS))}",
            hint="pip install --upgrade edgecore-openvino" if age == "newer" else "",
        )
    return text


def _weights(path: Path, weights: Path, text: bytes) -> tuple[int, int]:
    """Bytes that the .xml speaks of, and that the .bin holds. Raises `CorruptModel` for too few, `DoesNotFit`."""
    places = re.findall(rb'\boffset="(\d{1,99})"\s+size="(\d{1,99})"', text)
    needed = max((int(offset) + int(size) for offset, size in places), default=0)
    if not weights.is_file():
        if needed:
            raise CorruptModel(f"{weights}: is missing; {path.name} keeps {needed:,} bytes of weights there")
        return 0, 0
    held = weights.stat().st_size
    if needed > held:
        raise CorruptModel(f"{weights}: holds {held:,} bytes, {path.name} speaks of {needed:,}: it is truncated")
    _, free = usable_memory()
    if held > free:
        raise DoesNotFit(
            f"{weights}: {held / 2**30:.1f} GiB of weights, and {free / 2**30:.1f} GiB of memory are free",
            hint="a precision with fewer bits",
        )
    return needed, held


def _writer(text: bytes) -> str:
    """`, written by OpenVINO 2027.1`, where the file says so."""
    found = re.search(rb'<(?:info name="OpenVINO Runtime"|Runtime_version) value="([^"]{1,100})"', text)
    return f", written by OpenVINO {found[1].decode(errors='replace').partition('-')[0]}" if found else ""


def _unreadable(path: Path, text: bytes, error: BaseException) -> EdgecoreError:
    if isinstance(error, MemoryError) or "bad_alloc" in str(error):
        return DoesNotFit(f"{path}: reading it ran out of memory", hint="a precision with fewer bits")
    said = last_line(error)
    if re.search(r"unsupported opset: \w|[Oo]pset \S+ doesn't contain|unsupported operation", said):
        return UnsupportedModel(
            f"{path}{_writer(text)}: {said}",
            supported=f"operators of OpenVINO {VERSION}",
        )
    return CorruptModel(f"{path}: {said}")


_LACKS_MEMORY = re.compile(
    r"bad_alloc|out of memory|OUT_OF_(HOST|DEVICE)_MEMORY|CL_OUT_OF|ALLOCATION_FAILURE|exceed(s|ed) max", re.I
)
_LACKS_DEVICE = re.compile(r"not registered in|Cannot load library|device id|No (available )?device|driver", re.I)
_LACKS_PROPERTY = re.compile(r"(Unsupported|not supported|was not found|Could not read|Wrong|Invalid) .*", re.I)


def _uncompiled(device: str, error: BaseException) -> EdgecoreError:
    said = str(error)
    if isinstance(error, MemoryError) or _LACKS_MEMORY.search(said):
        return DoesNotFit(
            f"{device}: the model does not fit in its memory: {last_line(error)}",
            hint="a precision with fewer bits, or a shorter context",
        )
    if _LACKS_DEVICE.search(said):
        return DeviceUnavailable(f"{device}: {last_line(error)}", hint="edgecore doctor")
    if "propert" in said.lower() and (found := _LACKS_PROPERTY.search(said)):
        return BadRequest(f"{device}: {' '.join(found[0].split())}", hint="edgecore backends openvino")
    return UnsupportedModel(
        f"{device} cannot compile the model: {last_line(error)}", hint="" if device == "cpu" else "--device cpu"
    )
