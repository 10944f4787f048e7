"""Peak memory of another process, its private part apart from what is mapped from files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgecore.measure.memory import MemoryWatch, resident

MB = 1 << 20
HOLD = """
import mmap, sys, time
print("ready", flush=True)
sys.stdin.readline()
held = bytearray(b"x") * (60 << 20)
file = open(sys.argv[1], "rb")
mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
total = sum(mapped[::4096])
time.sleep(0.3)
del held
print("done", flush=True)
sys.stdin.readline()
"""


def test_private_and_mapped_memory_are_told_apart_and_the_peak_stays(tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(os.urandom(MB) * 40)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(big)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == "ready\n"
        before = resident(child.pid)
        assert before is not None
        with MemoryWatch(child.pid) as watch:
            child.stdin.write("\n")
            child.stdin.flush()
            assert child.stdout.readline() == "done\n"
        child.communicate("\n")
    grown = watch.peak.anonymous - before.anonymous
    assert grown > 55 * MB
    if watch.peak.split:
        assert grown < 75 * MB
        assert 39 * MB < watch.peak.file_mapped - before.file_mapped < 50 * MB


def test_a_process_that_ends_leaves_its_peak() -> None:
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child,
        MemoryWatch(child.pid) as watch,
    ):
        child.communicate(b"\n")
        child.wait()
    assert watch.peak.anonymous > 0
    assert resident(child.pid) is None


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, which tells proportional sizes")
def test_linux_tells_the_proportional_size() -> None:
    with MemoryWatch(os.getpid()) as watch:
        pass
    assert watch.peak.proportional > MB
