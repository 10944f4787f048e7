"""What MLX can compute on here, now, and what is missing where it cannot, with the package that brings it.

MLX has two kinds of device. `gpu` is Metal on a Mac and CUDA on Linux, each in a package of its own that brings
`libmlx`, the code; which package is here tells which of the two. Asking imports `mlx.core` (20 ms) and never `mlx_lm`.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

import mlx.core as mx

from edgecore.contract import DeviceUnavailable, Probe, ProbedDevice
from edgecore_mlx.installation import BACKENDS, REFERENCE, blas

NAMES = ("gpu", "cpu")
"""The devices that compute, as the manifest has them and as MLX has."""
_CUDA = "pip install 'edgecore-mlx[cuda13]'"
TF32 = "MLX_ENABLE_TF32"
"""MLX's own switch, read with the first product; whoever sets it to 1 has it so, and conditions say so."""
_KINDS = {"cpu": mx.cpu, "gpu": mx.gpu}
_quiet = False
"""Whether it was this file that switched compiling off."""


def probe() -> Probe:
    """Every device of the manifest, what it is called and what it can; no model, no driver that is not there."""
    found = []
    for name in NAMES:
        why = missing(name)
        found.append(ProbedDevice(name, not why, "" if why else described(name), why))
    return Probe(tuple(found), versions(), _features())


def missing(device: str) -> str:
    """Why a device is not here, in words; empty where it is."""
    if device not in _KINDS:
        return f"MLX has no device {device!r}"
    if mx.is_available(_KINDS[device]):
        return ""
    if device == "cpu":
        return "this build of MLX has no CPU"
    system, machine = platform.system(), platform.machine()
    if system == "Darwin":
        if machine != "arm64":
            return f"this Python is for {machine}: MLX's Metal is for Apple Silicon, and for a Python of arm64"
        return "MLX's Metal finds no GPU: a virtual machine has none, and macOS before 14 is too old"
    if system != "Linux":
        return f"MLX on {system} has no GPU: Metal is a Mac's, CUDA comes on Linux"
    cuda = [name for name in backends() if "cuda" in name]
    if cuda:
        return f"{cuda[0]} is installed and finds no GPU: it needs one of NVIDIA's and its driver (nvidia-smi tells)"
    here = " and ".join(f"{name} {which}" for name, which in backends().items())
    instead = f"here is {here}; " if here else ""
    return f"{instead}CUDA on an NVIDIA GPU comes with another build of MLX, in an environment of its own: {_CUDA}"


def check_device(device: str) -> None:
    """Raises `DeviceUnavailable` for a device that is not here, or that MLX has not."""
    if why := missing(device):
        raise DeviceUnavailable(
            why if device not in _KINDS else f"{device} is not here: {why}",
            supported=", ".join(name for name in NAMES if not missing(name)),
            hint="edgecore doctor",
        )


def use(device: str) -> mx.Device:
    """From here on MLX computes on it, in all threads of this process; answers MLX's own name for it.

    On `cpu` nothing is compiled: MLX would hand fused kernels to a C++ compiler while the model runs and load what
    lies under the temporary folder, where others may have put it, and it makes no token faster.
    """
    global _quiet
    check_device(device)
    kind = mx.Device(_KINDS[device], 0)
    mx.set_default_device(kind)
    if device == "cpu" and not _quiet:
        mx.disable_compile()
        _quiet = True
    elif device != "cpu" and _quiet:
        mx.enable_compile()
        _quiet = False
    if device != "cpu":  # Else MLX multiplies float32 with 10 bits of mantissa, on CUDA and from Apple's M5 on.
        os.environ.setdefault(TF32, "0")
    return kind


def described(device: str) -> str:
    """As MLX names it."""
    info = mx.device_info(_KINDS[device])
    name = str(info.get("device_name", "")) or platform.machine()
    if device == "cpu":
        return name
    return ", ".join(filter(None, (name, str(info.get("architecture", "")), "Metal" if metal() else "CUDA")))


def metal() -> bool:
    """Whether `gpu` is Metal: memory is then the CPU's too."""
    return bool(mx.metal.is_available())


def versions() -> dict[str, str]:
    """Of MLX, the package that brings its code, and mlx-lm; they enter artifact ids."""
    return _installed(("mlx", *BACKENDS, "mlx-lm"))


def backends() -> dict[str, str]:
    """The packages here that bring MLX's code, with their versions: one, where all is well."""
    return _installed(BACKENDS)


def _installed(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _features() -> dict[str, str]:
    slow = ", as MLX brings it: with OpenBLAS installed dense prompts are read several times as fast"
    found = {"BLAS": blas().name + (slow if blas().name == REFERENCE else "")}
    if not missing("gpu"):
        info = mx.device_info(mx.gpu)
        for name in ("memory_size", "max_recommended_working_set_size", "total_memory", "free_memory"):
            if name in info:
                found[f"gpu {name.replace('_', ' ')}"] = f"{int(info[name]) / 2**30:.1f} GiB"
    return found
