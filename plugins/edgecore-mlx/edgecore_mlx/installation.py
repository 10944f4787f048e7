"""Whether MLX can be imported here, asked before it is: which package brought its code, and what that needs.

`mlx` alone is Python: the code, `libmlx`, comes in a package for each kind of device (`mlx-cpu`, `mlx-cuda-12`,
`mlx-cuda-13`, on a Mac `mlx-metal`), and all of them install the same file. To pip they are different distributions:
it installs `mlx` without any, or two over each other, and nothing tells until the first import fails, or a GPU that
was paid for stays idle.

The BLAS that comes along on Linux is the reference one, an order slower than others. Where the machine has OpenBLAS or
Intel's MKL under their plain names, loading it first makes MLX call that: the dynamic linker takes the first
`cblas_sgemm` in the process.
"""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import Distribution
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from edgecore.contract import BackendUnavailable, cache_folder, usable_threads

BACKENDS = ("mlx-metal", "mlx-cpu", "mlx-cuda-12", "mlx-cuda-13")
"""Packages that bring MLX's code."""
_EXTRAS = {"mlx-cpu": "mlx[cpu]", "mlx-cuda-12": "mlx[cuda12]", "mlx-cuda-13": "mlx[cuda13]", "mlx-metal": "mlx"}
_CODE = re.compile(r"mlx/lib/(lib)?mlx\.(so|dylib|dll|metallib)")
REFERENCE = "reference BLAS"
"""What comes with MLX on Linux."""
_OPENBLAS = "libopenblas.so.0"
_MKL = "libmkl_rt.so.*"


@dataclass(frozen=True, slots=True)
class Wheel:
    """A distribution that says that it installed MLX's code."""

    name: str
    version: str
    differs: str
    """The first of its files of code that is missing or has another size; empty where all are as it brought them."""

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, slots=True)
class Blas:
    """What computes products of dense matrices on `cpu`."""

    name: str
    library: Any = None
    """As ctypes opened it; None for the one that MLX brings."""

    def limit(self, threads: int | None) -> int:
        """Take so many threads (None: as many as may be used here) from now on; answers how many there are."""
        wanted = threads or usable_threads()
        for name in ("openblas_set_num_threads", "MKL_Set_Num_Threads"):
            if self.library is not None and hasattr(self.library, name):
                getattr(self.library, name)(ctypes.c_int(wanted))
                return wanted
        return 1


def check_installation() -> None:
    """Raises `BackendUnavailable`, with the command that mends it, unless `mlx.core` can be imported; imports it."""
    spec = find_spec("mlx")
    places = [Path(place) for place in spec.submodule_search_locations or ()] if spec else []
    if not places:
        raise BackendUnavailable("the package mlx is not installed", hint=_install(_wanted()))
    found = wheels(places[0].parent)
    release = _release(places[0].parent)
    names = " and ".join(map(str, found))
    if len(found) > 1:
        kept = next((w for w in found if not w.differs), found[0])
        raise BackendUnavailable(
            f"{names} are installed over each other: they bring the same files",
            supported="one of them in an environment",
            hint=_reinstall(kept, [w.name for w in found if w != kept]),
        )
    if not found and not list(places[0].glob("lib/*mlx.*")):  # Of what no installer wrote down nothing is known.
        raise BackendUnavailable(
            f"mlx {release} is installed without a package that brings its code, libmlx",
            supported="mlx[cpu], mlx[cuda12] or mlx[cuda13] on Linux",
            hint=_install(f"{_wanted()}=={release}"),
        )
    for wheel in found:
        if release != wheel.version:
            raise BackendUnavailable(
                f"mlx {release} and {wheel} are of different releases",
                hint=_install(f"{_EXTRAS[wheel.name]}=={release}"),
            )
        if wheel.differs:
            raise BackendUnavailable(f"{wheel.differs} is not what {wheel} brought", hint=_reinstall(wheel))
    _import(found[0] if found else None)


def _import(wheel: Wheel | None) -> None:
    if wheel and "cuda" in wheel.name:  # What CUDA compiles lies where only this user writes, not under /tmp.
        os.environ.setdefault("MLX_PTX_CACHE_DIR", str(cache_folder("mlx") / "ptx"))
    blas()
    try:
        import mlx.core as mx
    except ImportError as error:
        wanted = f"{_EXTRAS[wheel.name]}=={wheel.version}" if wheel else _wanted()
        if wheel and "libcuda.so" in str(error):
            raise BackendUnavailable(
                f"{wheel} needs libcuda.so.1, which comes with NVIDIA's driver",
                supported="mlx[cpu] where there is no NVIDIA GPU",
                hint=f"{_uninstall([wheel.name])} && {_install(f'mlx[cpu]=={wheel.version}')}",
            ) from None
        raise BackendUnavailable(f"mlx cannot be imported: {error}", hint=_install(wanted)) from None
    if not mx.is_available(mx.gpu):
        mx.disable_compile()  # For the reason that devices.use gives, and for those too who quantize and never open.


def wheels(folder: Path) -> list[Wheel]:
    """Those in an interpreter's folder of packages that brought MLX's code, by name."""
    found = []
    for info in sorted(folder.glob("mlx*.dist-info")):
        given = Distribution.at(info)
        code = [file for file in given.files or () if _CODE.fullmatch(file.as_posix())]
        if code:
            wrong = (str(file) for file in code if not _same(folder / file, file.size))
            found.append(Wheel(given.name.lower().replace("_", "-"), given.version, next(wrong, "")))
    return found


@cache
def blas() -> Blas:
    """What MLX takes for products of dense matrices. The first call, before MLX is imported, looks for a better one."""
    if sys.platform == "darwin":
        return Blas("Accelerate")
    if sys.platform != "linux":
        return Blas("MLX's own")
    with suppress(OSError):
        if hasattr(here := ctypes.CDLL(None), "cblas_sgemm"):
            return Blas("preloaded", here)
    for name, path in (("OpenBLAS", _OPENBLAS), *(("MKL", str(p)) for p in sorted(Path(sys.prefix, "lib").glob(_MKL)))):
        if "mlx.core" not in sys.modules:
            with suppress(OSError):
                return Blas(f"{name} ({path})", ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL))
    return Blas(REFERENCE)


@cache
def mlx_lm() -> ModuleType:
    """The package mlx_lm, with transformers (3 seconds); for architectures outside the neutral model alone.

    Raises `BackendUnavailable`.
    """
    with _limits_kept():
        try:
            return import_module("mlx_lm")
        except ImportError as error:
            raise BackendUnavailable(f"mlx_lm cannot be imported: {error}", hint=_install("mlx-lm")) from None


@contextmanager
def _limits_kept() -> Iterator[None]:
    """mlx_lm sets the process's limit of open files as it is imported: that fails where the hard limit is below 4096,
    and lowers it for good where it is above. Within this nothing of it happens."""
    if not find_spec("resource"):
        raise BackendUnavailable(
            "mlx_lm runs on macOS and Linux: it needs the module resource", supported="models of the neutral model"
        )
    import resource

    real = resource.setrlimit
    resource.setrlimit = lambda *_: None
    try:
        yield
    finally:
        resource.setrlimit = real


def _release(folder: Path) -> str:
    info = next(iter(sorted(folder.glob("mlx-*.dist-info"))), None)
    return Distribution.at(info).version if info else ""


def _same(file: Path, size: int | None) -> bool:
    try:
        return size in (None, file.stat().st_size)
    except OSError:
        return False


def _wanted() -> str:
    """The requirement that fits this machine."""
    if sys.platform == "darwin":
        return "mlx"
    return "mlx[cuda13]" if Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") else "mlx[cpu]"


def _install(requirement: str) -> str:
    return f"{_installer('install')} {shlex.quote(requirement)}"


def _uninstall(names: list[str]) -> str:
    return f"{_installer('uninstall')}{' -y' if find_spec('pip') else ''} {shlex.join(names)}"


def _reinstall(wheel: Wheel, others: list[str] | None = None) -> str:
    """others: removed first; what they take along of the wheel's files comes back with it."""
    again = "--force-reinstall" if find_spec("pip") else "--reinstall"
    removed = f"{_uninstall(others)} && " if others else ""
    return f"{removed}{_installer('install')} {again} --no-deps {wheel.name}=={wheel.version}"


def _installer(verb: str) -> str:
    python = shlex.quote(sys.executable)
    return f"{python} -m pip {verb}" if find_spec("pip") else f"uv pip {verb} --python {python}"
