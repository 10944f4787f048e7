"""What is seen of a process from outside: against real processes, and against what drivers write on other machines."""

from __future__ import annotations

import plistlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from edgecore_conformance import watching
from edgecore_conformance.checks import upsets

BURN = "import time\nprint(1, flush=True)\nend = time.time() + 60\nwhile time.time() < end: pass"
SLEEP = "import time\nprint(1, flush=True)\ntime.sleep(60)"
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, which tells it")


@contextmanager
def process(program: str) -> Iterator[int]:
    started = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert started.stdout
    try:
        started.stdout.readline()
        yield started.pid
    finally:
        started.kill()
        started.wait()
        started.stdout.close()


def seen(pid: int, seconds: float) -> dict[str, object]:
    before = watching.glance(pid)
    time.sleep(seconds)
    return watching.between(before, watching.glance(pid)).facts()


@linux
def test_a_process_that_computes_wants_one_cpu_however_busy_the_machine_is() -> None:
    with process(BURN) as pid:
        assert 0.85 < (watching.demand(seen(pid, 0.3)) or 0) < 1.15


def test_a_process_that_sleeps_wants_none() -> None:
    with process(SLEEP) as pid:
        assert (watching.demand(seen(pid, 0.2)) or 0) < 0.1


def test_a_process_that_is_gone_has_used_nothing_that_is_known() -> None:
    with process(SLEEP) as pid:
        pass
    gone = watching.glance(pid)
    assert gone.cpu is None
    assert watching.demand(watching.between(gone, gone).facts()) is None


def test_a_suspension_is_as_long_as_asked_and_begins_where_asked() -> None:
    with process(BURN) as pid:
        before = watching.glance(pid)
        with watching.suspensions(pid, [0.05, 0.15], 0.1) as lasted:
            deadline = time.monotonic() + 20
            while len(lasted) < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
        after = watching.between(before, watching.glance(pid))
    assert len(lasted) == 2
    assert min(lasted) >= 0.1
    assert after.cpu is not None
    assert after.wall >= 0.15 + sum(lasted)
    assert after.cpu >= 0.14


def test_suspensions_that_are_never_reached_end_with_the_block() -> None:
    with process(SLEEP) as pid, watching.suspensions(pid, [5.0], 1.0) as lasted:
        pass
    assert lasted == []


def test_a_suspension_ends_with_the_block_however_the_block_ends() -> None:
    begun = time.monotonic()

    def interrupted(pid: int) -> None:
        with watching.suspensions(pid, [0.0], 60.0):
            while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
                time.sleep(0.01)
            raise KeyboardInterrupt

    with process(SLEEP) as pid:
        with pytest.raises(KeyboardInterrupt):
            interrupted(pid)
        assert psutil.Process(pid).status() != psutil.STATUS_STOPPED
    assert time.monotonic() - begun < 30


SUSPENDS = """
import sys, time
from edgecore import registry
from edgecore.workers import connect
from edgecore_conformance import watching
with connect(registry.find("reference")) as backend, watching.suspensions(backend.pid, [0.0], 600.0):
    print(backend.pid, flush=True)
    time.sleep(600)
"""


@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_suite_that_is_ended_during_a_suspension_leaves_no_worker(number: int) -> None:
    suite = subprocess.Popen(
        [sys.executable, "-c", SUSPENDS], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert suite.stdout
    try:
        worker = psutil.Process(int(suite.stdout.readline()))
        while worker.status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
        suite.send_signal(number)
        suite.wait(20)
        assert upsets.gone(worker.pid)
    finally:
        suite.kill()
        suite.wait()
        suite.stdout.close()


def test_libraries_of_accelerators_are_known_by_their_file() -> None:
    maps = """\
7f0000000000-7f0000001000 r-xp 00000000 fe:00 101 /usr/lib/x86_64-linux-gnu/libcuda.so.550.54
7f0000002000-7f0000003000 r-xp 00000000 fe:00 102 /usr/lib/x86_64-linux-gnu/libOpenCL.so.1.0.0
7f0000004000-7f0000005000 r-xp 00000000 fe:00 103 /usr/lib/libze_loader.so.1
7f0000006000-7f0000007000 r-xp 00000000 fe:00 104 /opt/my folder/libQnnHtpV75Stub.so
7f0000008000-7f0000009000 r-xp 00000000 fe:00 105 /usr/lib/libggml-cpu.so
7f000000a000-7f000000b000 r-xp 00000000 fe:00 106 /usr/lib/libcudabar.so
7f000000c000-7f000000d000 rw-p 00000000 00:00 0 [heap]
7f000000e000-7f000000f000 rw-p 00000000 00:00 0
"""
    assert watching.accelerator_libraries(maps) == {
        "libcuda.so.550.54", "libOpenCL.so.1.0.0", "libze_loader.so.1", "libQnnHtpV75Stub.so",
    }  # fmt: skip


def test_engine_seconds_are_read_as_the_kernel_documents_them() -> None:
    fdinfo = """\
pos:	0
flags:	02100002
drm-driver:	i915
drm-client-id:	7
drm-engine-render:	25662044495 ns
drm-engine-capacity-video:	2
drm-engine-video:	0 ns
"""
    assert watching.drm_usage(fdinfo) == ("i915", "7", {"render": 25.662044495, "video": 0.0})
    assert watching.drm_usage("pos:\t0\nflags:\t02\n") == ("", "", {})


def test_a_macs_gpu_seconds_are_those_of_our_processes() -> None:
    """In the shape that `ioreg -a -l -r -c IOAccelerator` has: clients below the accelerator, one or more a process."""

    def client(creator: str, *nanoseconds: int) -> dict[str, Any]:
        usage = [{"API": "Metal", "accumulatedGPUTime": ns, "lastSubmittedTime": 5} for ns in nanoseconds]
        return {"IOObjectClass": "AGXDeviceUserClient", "IOUserClientCreator": creator, "AppUsage": usage}

    clients = [
        client("pid 395, WindowServer", 9_000_000_000), client("pid 41, python3.11", 1_500_000_000, 250_000_000),
        client("pid 42, python3.11", 250_000_000), client("pid 4, launchd", 1), {"IOObjectClass": "AGXFirmware"},
    ]  # fmt: skip
    registry = plistlib.dumps([{"IOObjectClass": "AGXAcceleratorG16G", "IORegistryEntryChildren": clients}])
    assert watching.apple_gpu(registry, [41, 42]) == {"agx gpu": 2.0}
    assert watching.apple_gpu(registry, [43]) == {}, "who never asked for the GPU has no counter"
    for nothing in (b"", b"no such object", plistlib.dumps([]), plistlib.dumps({}), registry[:-60]):
        assert watching.apple_gpu(nothing, [41]) == {}


def test_on_a_mac_the_counter_is_asked_for_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer:
        stdout = plistlib.dumps(
            [{"IOUserClientCreator": "pid 41, python", "AppUsage": [{"accumulatedGPUTime": 10**9}]}]
        )

    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(watching.sys, "platform", "darwin")
    monkeypatch.setattr(watching.subprocess, "run", lambda command, **_: asked.append(command) or Answer)
    assert watching.engines([41]) == {"agx gpu": 1.0}
    assert asked == [watching.IOREG]

    def missing(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("ioreg")

    monkeypatch.setattr(watching.subprocess, "run", missing)
    assert watching.engines([41]) == {}


def test_nvidia_smi_is_read_as_it_answers() -> None:
    assert watching.busiest("12\n87\n") == 87
    assert watching.busiest("[N/A]\n") == 0
    assert watching.held_memory("41, 512\n42, 300\n43, [N/A]\n", [42, 43]) == 300
    assert watching.held_memory("", [1]) == 0


NOTHING = {"wall": 1.0, "cpu": 1.0, "waited": 0.0, "engines": {}, "libraries": [], "devices": [], "nvidia": {}}


@pytest.mark.parametrize(
    ("more", "believed"),
    [
        ({}, False),
        ({"libraries": ["libcuda.so.1"]}, False),
        ({"engines": {"i915 render": 0.0}}, False),
        ({"engines": {"i915 render": 0.4}}, True),
        ({"nvidia": {"utilization": 90.0, "memory": 0.0}}, False),
        ({"nvidia": {"utilization": 90.0, "memory": 500.0}}, True),
        ({"nvidia": {"utilization": 90.0, "memory": 0.0}, "devices": ["/dev/nvidia0"]}, True),
        ({"nvidia": {"utilization": 0.0, "memory": 500.0}, "devices": ["/dev/nvidia0"]}, False),
    ],
)
def test_an_accelerator_worked_where_a_counter_says_so_and_a_library_alone_says_nothing(
    more: dict[str, object], believed: bool
) -> None:
    assert bool(watching.accelerated({**NOTHING, **more})) is believed


def test_devices_are_files_that_do_work_and_not_those_that_only_list_them() -> None:
    names = ["/dev/nvidia0", "/dev/nvidiactl", "/dev/dri/renderD128", "/dev/accel/accel0", "/dev/null"]
    assert [n for n in names if watching.DEVICES.match(n)] == [
        "/dev/nvidia0", "/dev/dri/renderD128", "/dev/accel/accel0",
    ]  # fmt: skip
