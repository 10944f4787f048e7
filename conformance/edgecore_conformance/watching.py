"""What the suite sees of a worker from outside, without asking the plugin: CPU time, waiting for a CPU, loaded
libraries, open device files, and the counters that drivers keep.

A placement that only the plugin vouches for is no evidence, and a benchmark's clock needs a second one. Linux tells all
of this under /proc; other systems tell CPU time, a Mac its GPU's too, and what is not told is None, never a guess.
"""

from __future__ import annotations

import os
import plistlib
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

import psutil

PROC = Path("/proc")
LIBRARIES = re.compile(
    r"lib(cuda|cudart|cublas\w*|nvidia-\w+|nvrtc|amdhip64|hsa-runtime64|hiprtc|rocblas|vulkan\w*|OpenCL|ze_loader|"
    r"ze_intel_gpu|ze_intel_vpu|igdrcl|sycl|QnnHtp\w*|QnnGpu|cdsprpc|xrt_\w+|rknnrt|neuron\w*|edgetpu)[.\-\d]"
)
"""Drivers and runtimes of accelerators, by the name of their library. Loaded is not used: see `engines`."""
DEVICES = re.compile(
    r"^/dev/(nvidia\d+|dri/(renderD|card)\d+|kfd|accel/accel\d+|apex_\d+|xdna\w*|fastrpc-cdsp\w*|rknpu)$"
)
"""Device files of accelerators. `/dev/nvidiactl` is opened by whoever counts devices, so it is not among them."""
SMI_SECONDS = 5.0
IOREG = ("ioreg", "-a", "-l", "-r", "-c", "IOAccelerator")
"""The accelerator of a Mac and all below it, as a property list; anybody may ask."""


@dataclass(frozen=True, slots=True)
class Glance:
    """A process and all that it started, at one moment. Counters only ever grow while they live."""

    when: float
    """Seconds of this process's monotonic clock."""
    cpu: float | None
    """CPU seconds used; None where the process is gone."""
    waited: float | None
    """Seconds that its threads were ready to run and had no CPU; None where the system does not tell."""
    engines: Mapping[str, float] = field(default_factory=dict)
    """Seconds that engines of accelerators worked for it, by driver and engine, as the kernel's driver counts them."""
    libraries: tuple[str, ...] = ()
    """Loaded libraries that drive accelerators."""
    devices: tuple[str, ...] = ()
    """Open device files of accelerators."""
    nvidia: Mapping[str, float] = field(default_factory=dict)
    """`utilization` of the busiest GPU in percent, machine-wide, and `memory` in MiB that the process holds."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What passed between two glances."""

    wall: float
    cpu: float | None
    waited: float | None
    engines: Mapping[str, float]
    libraries: tuple[str, ...]
    devices: tuple[str, ...]
    nvidia: Mapping[str, float]

    def facts(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "wall": self.wall, "cpu": self.cpu, "waited": self.waited, "engines": dict(self.engines),
            "libraries": list(self.libraries), "devices": list(self.devices), "nvidia": dict(self.nvidia),
        }  # fmt: skip


def glance(pid: int, *, nvidia: bool = False) -> Glance:
    """Now. `nvidia` asks nvidia-smi too, which takes up to a second where there is one."""
    pids = family(pid)
    when = time.perf_counter()
    return Glance(
        when, cpu_seconds(pids), waited_seconds(pids), engines(pids), libraries(pids), devices(pids),
        nvidia_smi(pids) if nvidia else {},
    )  # fmt: skip


def between(before: Glance, after: Glance, nvidia: Mapping[str, float] | None = None) -> Seen:
    """`nvidia`: what was read in the middle of the work, where the counter is a level rather than a sum."""
    return Seen(
        after.when - before.when,
        _grown(before.cpu, after.cpu),
        _grown(before.waited, after.waited),
        {name: value - before.engines.get(name, 0.0) for name, value in after.engines.items()},
        tuple(sorted({*before.libraries, *after.libraries})),
        tuple(sorted({*before.devices, *after.devices})),
        nvidia or after.nvidia,
    )


def family(pid: int) -> list[int]:
    """The process and everything that it started and that still runs."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.Error:
        return [pid]


def cpu_seconds(pids: Sequence[int]) -> float | None:
    """CPU seconds of all of them, ended children included. On Linux to the nanosecond for threads that live; the
    kernel's ticks of ten milliseconds know those that ended."""
    total, known = 0.0, False
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.Error:
            continue
        ticks = times.user + times.system
        total += (
            max(ticks, _scheduler(pid)[0]) + getattr(times, "children_user", 0) + getattr(times, "children_system", 0)
        )
        known = True
    return total if known else None


def waited_seconds(pids: Sequence[int]) -> float | None:
    """Seconds that threads waited for a CPU: what tells a busy machine from a lazy worker."""
    if not (PROC / "self" / "schedstat").is_file():
        return None
    return sum(_scheduler(pid)[1] for pid in pids)


def _scheduler(pid: int) -> tuple[float, float]:
    """(seconds on a CPU, seconds waiting for one) of the live threads, from /proc/PID/task/*/schedstat."""
    ran = waited = 0
    for file in (PROC / str(pid) / "task").glob("*/schedstat"):
        with suppress(OSError, ValueError):  # a thread that ends while it is read
            first, second, *_ = file.read_text(encoding="ascii").split()
            ran, waited = ran + int(first), waited + int(second)
    return ran / 1e9, waited / 1e9


def libraries(pids: Sequence[int]) -> tuple[str, ...]:
    return tuple(sorted({name for pid in pids for name in accelerator_libraries(_text(PROC / str(pid) / "maps"))}))


def accelerator_libraries(maps: str) -> set[str]:
    """Names of files in /proc/PID/maps that drive accelerators."""
    names = {line.split(None, 5)[5].rpartition("/")[2] for line in maps.splitlines() if line.count("/") > 0}
    return {name for name in names if LIBRARIES.match(name)}


def devices(pids: Sequence[int]) -> tuple[str, ...]:
    found: set[str] = set()
    for pid in pids:
        with suppress(OSError):
            for link in (PROC / str(pid) / "fd").iterdir():
                with suppress(OSError):
                    target = os.readlink(link)
                    if DEVICES.match(target):
                        found.add(target)
    return tuple(sorted(found))


def engines(pids: Sequence[int]) -> dict[str, float]:
    """Seconds by engine from /proc/PID/fdinfo (the kernel's drm usage statistics), clients that are shared between
    files once; on a Mac from the I/O registry."""
    if sys.platform == "darwin":
        try:
            return apple_gpu(subprocess.run(IOREG, capture_output=True, timeout=SMI_SECONDS, check=True).stdout, pids)
        except (OSError, subprocess.SubprocessError):
            return {}
    clients: dict[tuple[str, str], dict[str, float]] = {}
    for pid in pids:
        with suppress(OSError):
            for file in (PROC / str(pid) / "fdinfo").iterdir():
                driver, client, used = drm_usage(_text(file))
                if driver:
                    clients[driver, client or f"{pid}/{file.name}"] = used
    total: dict[str, float] = {}
    for (driver, _), used in clients.items():
        for engine, seconds in used.items():
            total[f"{driver} {engine}"] = total.get(f"{driver} {engine}", 0.0) + seconds
    return total


def drm_usage(fdinfo: str) -> tuple[str, str, dict[str, float]]:
    """(driver, client, seconds by engine) of one file; an empty driver where it is no accelerator's."""
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in fdinfo.splitlines())}
    used = {
        key.removeprefix("drm-engine-"): int(value.split()[0]) / 1e9
        for key, value in fields.items()
        if key.startswith("drm-engine-") and not key.startswith("drm-engine-capacity-") and value.endswith(" ns")
    }
    return fields.get("drm-driver", ""), fields.get("drm-client-id", ""), used


def apple_gpu(registry: bytes, pids: Sequence[int]) -> dict[str, float]:
    """Seconds that Apple's GPU worked for the processes: the driver keeps nanoseconds of every client, below the
    accelerator in the registry, with who opened it. Not documented by Apple; from what others read there."""
    try:
        entries = plistlib.loads(registry)
    except (plistlib.InvalidFileException, ExpatError, ValueError):
        return {}
    total, found = 0.0, False
    entries = list(entries) if isinstance(entries, list) else [entries]
    while entries:
        entry = entries.pop()
        entries += entry.get("IORegistryEntryChildren", [])
        creator = re.match(r"pid (\d+),", str(entry.get("IOUserClientCreator", "")))
        if creator and int(creator[1]) in pids:
            used = [usage["accumulatedGPUTime"] for usage in entry.get("AppUsage", ()) if "accumulatedGPUTime" in usage]
            total, found = total + sum(used) / 1e9, found or bool(used)
    return {"agx gpu": total} if found else {}


def nvidia_smi(pids: Sequence[int]) -> dict[str, float]:
    """The driver's own account; empty where there is no nvidia-smi or it fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    ask = [program, "--format=csv,noheader,nounits"]
    try:
        levels = _run([*ask, "--query-gpu=utilization.gpu"])
        held = _run([*ask, "--query-compute-apps=pid,used_memory"])
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"utilization": busiest(levels), "memory": held_memory(held, pids)}


def busiest(text: str) -> float:
    """The largest number of `--query-gpu=utilization.gpu`, 0 where none is told."""
    return max((float(line) for line in text.split("\n") if line.strip().isdecimal()), default=0.0)


def held_memory(text: str, pids: Sequence[int]) -> float:
    """MiB of our processes in `--query-compute-apps=pid,used_memory`."""
    total = 0.0
    for line in text.splitlines():
        pid, _, used = (part.strip() for part in line.partition(","))
        if pid.isdecimal() and int(pid) in pids and used.isdecimal():
            total += float(used)
    return total


@contextmanager
def suspensions(pid: int, at: Sequence[float], seconds: float) -> Iterator[list[float]]:
    """Suspends the process each time when it has used so many more CPU seconds (`at`, rising) since the block began.
    Counted in CPU seconds because they do not depend on who else uses the machine. Yields the list of how long each
    suspension was; the block's end ends one that lasts."""
    done = threading.Event()
    lasted: list[float] = []
    pids = family(pid)
    start = cpu_seconds(pids) or 0.0

    def watch() -> None:
        for threshold in at:
            while (cpu_seconds(pids) or 0.0) - start < threshold:
                if done.wait(0.002):
                    return
            begin = time.perf_counter()
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                process.suspend()
                try:
                    done.wait(seconds)
                finally:
                    process.resume()
                lasted.append(time.perf_counter() - begin)

    # No daemon, and nothing that it waits for but `done`: however this process ends in Python, the other goes on.
    thread = threading.Thread(target=watch, name=f"suspensions of {pid}")
    thread.start()
    try:
        yield lasted
    finally:
        done.set()
        thread.join()


def demand(seen: Mapping[str, Any]) -> float | None:
    """How many threads on average wanted a CPU: used and waited-for seconds over what passed. From `Seen.facts`."""
    if seen["cpu"] is None or not seen["wall"]:
        return None
    return float((seen["cpu"] + (seen["waited"] or 0.0)) / seen["wall"])


def accelerated(seen: Mapping[str, Any]) -> str:
    """Why one must believe that an accelerator worked for the process, empty where nothing says so. From `Seen.facts`.

    An engine's own seconds are counted by process and stand alone. nvidia-smi's utilization is the machine's: it counts
    for a process that holds memory there, or at least has the device open.
    """
    worked = {name: s for name, s in seen["engines"].items() if s > 0.001}
    if worked:
        return ", ".join(f"{name} worked {s:.3f} s for it" for name, s in sorted(worked.items()))
    smi = seen["nvidia"]
    opened = [d for d in seen["devices"] if d.startswith("/dev/nvidia")]
    if smi.get("utilization", 0) > 0 and (smi.get("memory", 0) > 0 or opened):
        return f"it has {', '.join(opened) or 'memory on a GPU'}, and nvidia-smi shows {smi['utilization']:.0f} % use"
    return ""


HELD = ("open files", "threads", "processes that it started")
"""What `held` counts."""


def held(pid: int) -> list[int]:
    """How many of `HELD` a process has; -1 where the system does not tell."""
    with suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        files = process.num_fds() if hasattr(process, "num_fds") else -1
        return [files, process.num_threads(), len(process.children(recursive=True))]
    return [-1] * len(HELD)


def _grown(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else max(0.0, after - before)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if sys.platform == "linux" else ""
    except OSError:
        return ""


def _run(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS, check=True).stdout
