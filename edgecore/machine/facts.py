"""What this computer is, asked from the operating system: the same words on Linux, macOS and Windows.

CPU features carry the names that Linux prints in /proc/cpuinfo (`avx512_vnni`, `asimddp`), whatever system told them.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from edgecore.contract.cgroup import ROOT
from edgecore.contract.resources import usable_memory, usable_threads

_SAME_ON_INTEL_MAC = {"sse3": "pni", "avx1.0": "avx", "lzcnt": "abm", "lahf": "lahf_lm"}
_SYSCTL_ARM = {
    "AdvSIMD": "asimd",
    "FEAT_FP16": "asimdhp",
    "FEAT_DotProd": "asimddp",
    "FEAT_I8MM": "i8mm",
    "FEAT_BF16": "bf16",
    "FEAT_SVE": "sve",
    "FEAT_SME": "sme",
    "FEAT_SME2": "sme2",
}
_NUMPY = {
    "SSSE3": "ssse3", "SSE41": "sse4_1", "SSE42": "sse4_2", "POPCNT": "popcnt", "AVX": "avx", "F16C": "f16c",
    "FMA3": "fma", "AVX2": "avx2", "BMI": "bmi1", "BMI2": "bmi2", "LZCNT": "abm", "MOVBE": "movbe",
    "AVX512F": "avx512f", "AVX512CD": "avx512cd", "AVX512DQ": "avx512dq", "AVX512BW": "avx512bw",
    "AVX512VL": "avx512vl", "AVX512VNNI": "avx512_vnni", "AVX512BF16": "avx512_bf16", "ASIMD": "asimd",
    "ASIMDHP": "asimdhp", "ASIMDDP": "asimddp", "SVE": "sve",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Machine:
    """One computer, as this process sees it."""

    system: str
    """`platform.system()`: Linux, Darwin, Windows."""
    release: str
    architecture: str
    """`platform.machine()`: x86_64, AMD64, aarch64, arm64."""
    chip: str
    """The processor's own name (`Apple M2`); empty where the system does not tell."""
    features: frozenset[str]
    """CPU features by Linux's names."""
    cores: int
    """Physical cores; logical ones where the system does not tell them apart."""
    cpus: int
    """Logical CPUs of the computer."""
    threads: int
    """What this process may use (`usable_threads`)."""
    memory: int
    """Bytes this process may use: physical memory, or the container's limit where that is less."""
    memory_available: int
    """Bytes that are free now, without swapping."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON wants it; features sorted."""
        return {**asdict(self), "features": sorted(self.features)}


def facts(root: Path = ROOT) -> Machine:
    """This computer, now. Takes milliseconds and changes nothing."""
    total, available = usable_memory(root)
    chip, features = _processor(root)
    return Machine(
        system=platform.system(),
        release=platform.release(),
        architecture=platform.machine(),
        chip=chip,
        features=frozenset(features),
        cores=psutil.cpu_count(logical=False) or psutil.cpu_count() or 1,
        cpus=psutil.cpu_count() or 1,
        threads=usable_threads(root),
        memory=total,
        memory_available=available,
    )


def _processor(root: Path) -> tuple[str, Iterable[str]]:
    match platform.system():
        case "Linux":
            return cpuinfo((root / "proc/cpuinfo").read_text(errors="replace"))
        case "Darwin":
            return sysctl(
                subprocess.run(["/usr/sbin/sysctl", "-a"], capture_output=True, text=True, check=False).stdout
            )
        case _:
            return platform.processor(), _numpy_features()


def cpuinfo(text: str) -> tuple[str, frozenset[str]]:
    """Chip and features from the text of /proc/cpuinfo. Where cores differ (big.LITTLE), what all of them have."""
    chip, features = "", list[frozenset[str]]()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        match key.strip():
            case "model name" | "Model" | "Hardware":
                chip = chip or value.strip()
            case "flags" | "Features":
                features.append(frozenset(value.split()))
    return chip, frozenset.intersection(*features) if features else frozenset()


def sysctl(text: str) -> tuple[str, frozenset[str]]:
    """Chip and features from the output of `sysctl -a` on macOS, Intel's names turned into Linux's."""
    values = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    words = " ".join(values.get(f"machdep.cpu.{key}", "") for key in ("features", "leaf7_features", "extfeatures"))
    intel = (word.lower() for word in words.split())
    features = {_SAME_ON_INTEL_MAC.get(word, word.replace(".", "_")) for word in intel}
    features |= {ours for name, ours in _SYSCTL_ARM.items() if values.get(f"hw.optional.arm.{name}") == "1"}
    if values.get("hw.optional.neon") == "1":
        features.add("asimd")
    return values.get("machdep.cpu.brand_string", ""), frozenset(features)


def _numpy_features() -> Iterable[str]:
    """Windows tells no list; numpy asks the processor itself. Private to numpy, so its absence is no error."""
    try:
        found: dict[str, bool] = import_module("numpy._core._multiarray_umath").__cpu_features__
    except (ImportError, AttributeError):
        return ()
    return (_NUMPY[name] for name, present in found.items() if present and name in _NUMPY)
