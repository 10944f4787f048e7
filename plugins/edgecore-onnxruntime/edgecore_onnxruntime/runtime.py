"""ONNX Runtime, and its failures in words: options of a session, models opened, typed errors.

Files are looked at before ONNX Runtime reads them (model_file.py): what lies outside a model's folder is not read.
A forked child has a session without its threads, and computes on one alone: workers are started anew.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as native

from edgecore.contract import (
    BadRequest,
    CorruptModel,
    DoesNotFit,
    EdgecoreError,
    PlacementRefused,
    UnsupportedModel,
    Value,
    usable_threads,
)
from edgecore_onnxruntime.installation import check_installation as check_installation

MOST_THREADS = 512
CPU = "CPUExecutionProvider"
VERSION = ort.get_version_string()
FATAL = 4
"""A log severity: what fails is raised, and raised is what we say."""
ERRORS: tuple[type[Exception], ...] = (
    *(kind for kind in vars(native).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    RuntimeError, ValueError, TypeError, MemoryError, OSError,
)  # fmt: skip
"""Everything that ONNX Runtime raises: its own kinds derive from nothing but Exception."""
_LEVELS = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


@cache
def prepare() -> None:
    """What concerns the whole process, once: nothing phones home, nothing is logged."""
    ort.disable_telemetry_events()
    ort.set_default_logger_severity(FATAL)


def session_options(threads: int | None, options: Mapping[str, Value]) -> ort.SessionOptions:
    """From what `run` was asked for. `threads` None: all that this process may use. Raises `BadRequest`."""
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise BadRequest(f"{threads} threads", supported=f"1 to {MOST_THREADS} threads")
    prepare()
    made = ort.SessionOptions()
    made.log_severity_level = FATAL
    made.intra_op_num_threads = threads or usable_threads()
    made.inter_op_num_threads = 1
    made.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    made.graph_optimization_level = _LEVELS[str(options.get("graph_optimization", "all"))]
    made.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.get("spinning", True) else "0")
    made.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # Else sums of 8-bit products overflow on x86 without VNNI: 17 dB instead of 31 on a small classifier.
    made.add_session_config_entry("session.x64quantprecision", "1")
    return made


def open_model(
    path: Path, options: ort.SessionOptions, providers: Sequence[Any] | None = (CPU,)
) -> ort.InferenceSession:
    """A model from its .onnx and the files that it names.

    providers: None where `options` hold them already (`add_provider_for_devices`).
    Raises `ModelNotFound`; `CorruptModel` for files that are truncated, missing, contradict each other or lie outside
    the folder; `UnsupportedModel` for operators and versions; `PlacementRefused` where a device cannot take a node and
    nothing else may; `DoesNotFit`.
    """
    from edgecore_onnxruntime.model_file import check_file, check_room

    prepare()
    check_room(path, check_file(path))
    try:
        session = ort.InferenceSession(str(path), options, providers and list(providers), enable_fallback=0)
    except ERRORS as error:
        raise unopened(path, error) from None
    session.disable_fallback()
    return session


def versions() -> dict[str, str]:
    """Of what was loaded; they enter artifact ids."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"onnxruntime": VERSION}
    for name in ("onnx", "onnxruntime-qnn"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def give_back_memory() -> None:
    """What was freed, to the system: glibc keeps pieces below 32 MB, which are most of a model once one was closed."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def said(error: BaseException) -> str:
    """What ONNX Runtime says, without its error codes, source files and signatures, in one line."""
    words = _NOISE.sub("", " ".join(str(error).split()))
    return words[:600] or type(error).__name__


_NOISE = re.compile(
    r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : |Load model from .*? failed:|Exception during initialization: "
    r"|This is an invalid model\. |Fatal error: |\S*\.(?:cc|h):\d+ (?:[^()]*::[^()]*\([^)]*\) (?:const )?)?"
)
_LACKS_MEMORY = re.compile(r"bad_alloc|out of memory|Failed to allocate memory|allocat\w+ (?:failed|memory)", re.I)
_UNKNOWN = re.compile(
    r"(?<!Missing )opset|not a registered function/op|No Op registered|Could not find an implementation|"
    r"not implemented|Unsupported model IR version|Unknown model file format version|is not supported",
    re.I,
)
_NEWER = re.compile(r"Opset (?P<asked>\d+) is under development(?:.* till opset (?P<known>\d+))?", re.S)
_NOT_THERE = re.compile(r"fallback to (?:CPU|the CPU)|disable_cpu_ep_fallback|fallback to CPU EP has been", re.I)


def unopened(path: Path, error: BaseException) -> EdgecoreError:
    """Why a model could not be opened, typed."""
    words = said(error)
    if isinstance(error, MemoryError) or _LACKS_MEMORY.search(words):
        return DoesNotFit(f"{path}: opening it ran out of memory", hint="a precision with fewer bits")
    if _NOT_THERE.search(words):
        return PlacementRefused(f"{path}: {words}", hint="--allow-fallback, to run the rest on the CPU")
    if found := _NEWER.search(words):
        known = f"up to {found['known']}" if found["known"] else ""
        return UnsupportedModel(
            f"{path}: operator set {found['asked']}, newer than ONNX Runtime {VERSION}",
            supported=known,
            hint="onnx.version_converter.convert_version, which writes an older one",
        )
    if isinstance(error, native.NotImplemented) or _UNKNOWN.search(words):
        return UnsupportedModel(f"{path}: {words}", supported=f"operators of ONNX Runtime {VERSION}")
    return CorruptModel(f"{path}: {words}")


def failed(error: BaseException) -> EdgecoreError:
    """What stopped a computation, typed."""
    words = said(error)
    if isinstance(error, MemoryError) or _LACKS_MEMORY.search(words):
        return DoesNotFit(f"ONNX Runtime ran out of memory: {words}", hint="a smaller -c, or a precision of fewer bits")
    return EdgecoreError(f"ONNX Runtime could not compute: {words}")
