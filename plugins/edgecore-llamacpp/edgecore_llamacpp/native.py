"""libllama and ggml through llama-cpp-python's ctypes: started once, silenced, and asked why it failed.

The package's high-level class costs 8 to 15 % of decode speed (it copies logits nobody reads), so only its declarations
are used. What it does not declare of ggml is declared here.
"""

from __future__ import annotations

import ctypes
from collections import deque
from ctypes import c_bool, c_char, c_char_p, c_int, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp
import numpy as np
from numpy.typing import NDArray

libllama: Any = llama_cpp.llama_cpp
"""The declarations, without types: ctypes has none that a checker could follow."""
WARNING = 3
"""ggml's log levels: 3 warning, 4 error, 5 goes on with the line before."""
OP_NONE, OP_MUL_MAT = "NONE", "MUL_MAT"
VIEWS = frozenset({OP_NONE, "VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE"})
"""Operators that compute nothing."""

_log: deque[str] = deque(maxlen=20)


class Tensor(ctypes.Structure):
    """`struct ggml_tensor` (ggml.h). A test holds it to the library by names, shapes and data."""


Tensor._fields_ = [
    ("type", c_int),
    ("buffer", c_void_p),
    ("ne", c_int64 * 4),
    ("nb", c_size_t * 4),
    ("op", c_int),
    ("op_params", c_int32 * 16),
    ("flags", c_int32),
    ("src", ctypes.POINTER(Tensor) * 10),
    ("view_src", ctypes.POINTER(Tensor)),
    ("view_offs", c_size_t),
    ("data", c_void_p),
    ("name", c_char * 64),
    ("extra", c_void_p),
    ("padding", c_char * 8),
]


class _ThreadpoolParams(ctypes.Structure):
    """`struct ggml_threadpool_params` (ggml.h)."""

    _fields_ = (
        ("cpumask", c_bool * 512),
        ("n_threads", c_int),
        ("prio", c_int),
        ("poll", c_uint32),
        ("strict_cpu", c_bool),
        ("paused", c_bool),
    )


@libllama.llama_log_callback  # type: ignore[untyped-decorator]
def _keep(level: int, text: bytes, _data: Any) -> None:
    line = (text or b"").decode("utf-8", "replace")
    if level == 5 and _log:
        _log[-1] += line
    elif level >= WARNING:
        _log.append(line)


@cache
def start() -> None:
    """Starts the library and takes its log away from standard error. Later calls do nothing."""
    libllama.llama_log_set(_keep, c_void_p(0))
    libllama.llama_backend_init()


def forget_words() -> None:
    """Before a call whose failure shall be explained by its own words alone."""
    _log.clear()


def last_words() -> str:
    """The last complaints of the library, in one line."""
    lines = [" ".join(line.split()) for line in _log if line.strip(" =\n")]
    return "; ".join(lines[-3:]) or "libllama did not say why"


@cache
def _function(name: str, result: Any, *arguments: Any) -> Any:
    """A function of ggml: found through libllama where the loader looks into its dependencies, else in its own file."""
    try:
        function = getattr(libllama._lib, name)
    except AttributeError:
        folder = Path(libllama.__file__).parent / "lib"
        found = [lib for lib in map(_library, sorted(folder.glob("*ggml*"))) if lib and hasattr(lib, name)]
        if not found:
            raise
        function = getattr(found[0], name)
    function.restype, function.argtypes = result, list(arguments)
    return function


@cache
def _library(file: Path) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(file))
    except OSError:
        return None


def op_name(op: int) -> str:
    return str(_function("ggml_op_name", c_char_p, c_int)(op).decode())


def buffer_name(buffer: int) -> str:
    """`CPU`, `CPU_Mapped`, `Metal`, `CUDA0`: where a tensor lies, and so what computes it."""
    name: bytes = _function("ggml_backend_buffer_name", c_char_p, c_void_p)(buffer)
    return name.decode()


@dataclass(frozen=True, slots=True)
class Device:
    """A device that ggml registered."""

    name: str
    description: str
    accelerator: bool
    """A GPU, integrated or not, as against the CPU and its math libraries."""


@cache
def devices() -> tuple[Device, ...]:
    start()
    get = _function("ggml_backend_dev_get", c_void_p, c_size_t)
    name, text = (_function(f"ggml_backend_dev_{what}", c_char_p, c_void_p) for what in ("name", "description"))
    kind = _function("ggml_backend_dev_type", c_int, c_void_p)
    found = [get(i) for i in range(_function("ggml_backend_dev_count", c_size_t)())]
    return tuple(Device(name(d).decode(), text(d).decode(), kind(d) in (1, 2)) for d in found)


def features() -> dict[str, str]:
    """What the library was built with, as it says: `{"AVX2": "1", "OPENMP": "1"}`."""
    start()
    text = libllama.llama_print_system_info().decode()
    pairs = (part.rpartition(":")[2].split("=") for part in text.split("|") if "=" in part)
    return {key.strip(): value.strip() for key, value in pairs}


class Threadpool:
    """Threads that wait between graphs. Without one, a build without OpenMP starts them anew for every token."""

    def __init__(self, context: Any, threads: int) -> None:
        params = _ThreadpoolParams()
        _function("ggml_threadpool_params_init", None, c_void_p, c_int)(ctypes.byref(params), threads)
        self._pool = _function("ggml_threadpool_new", c_void_p, c_void_p)(ctypes.byref(params))
        if self._pool:
            _function("llama_attach_threadpool", None, c_void_p, c_void_p, c_void_p)(context, self._pool, None)

    def free(self) -> None:
        """After the context."""
        if self._pool:
            _function("ggml_threadpool_free", None, c_void_p)(self._pool)
            self._pool = None


def is_host(tensor: Tensor) -> bool:
    """Whether a tensor's data can be read where it lies."""
    return bool(tensor.buffer is None or _function("ggml_backend_buffer_is_host", c_bool, c_void_p)(tensor.buffer))


def read_device(tensor: Tensor) -> NDArray[np.float32]:
    """A float32 tensor's data, copied from a device."""
    size = int(_function("ggml_nbytes", c_size_t, c_void_p)(ctypes.addressof(tensor)))
    data = np.empty(size // 4, np.float32)
    get = _function("ggml_backend_tensor_get", None, c_void_p, c_void_p, c_size_t, c_size_t)
    get(ctypes.addressof(tensor), data.ctypes.data, 0, size)
    return data
