"""Threads follow what this process may really use: affinity and the container's CPU quota, both cgroup versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgecore.contract.cgroup import cpu_quota, memory_limit
from edgecore.contract.resources import usable_threads

V2_MOUNT = "30 23 0:28 {root} /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"
V1_MOUNTS = (
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
)


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v2(root: Path, path: str, mount_root: str = "/") -> Path:
    mounts = V2_MOUNT.format(root=mount_root)
    return tree(root, {"proc/self/cgroup": f"0::{path}\n", "proc/self/mountinfo": mounts})


def test_without_control_groups_the_affinity_decides(tmp_path: Path) -> None:
    expected = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert usable_threads(tmp_path) == expected
    assert cpu_quota(tmp_path) is None
    assert memory_limit(tmp_path) is None


def test_version_2_quota_is_read_from_cpu_max(tmp_path: Path) -> None:
    root = tree(v2(tmp_path, "/app"), {"sys/fs/cgroup/app/cpu.max": "150000 100000\n"})
    assert cpu_quota(root) == 1.5
    assert usable_threads(root) == 1


def test_the_tightest_quota_between_here_and_the_root_binds(tmp_path: Path) -> None:
    root = tree(
        v2(tmp_path, "/outer/inner"),
        {
            "sys/fs/cgroup/outer/inner/cpu.max": "max 100000\n",
            "sys/fs/cgroup/outer/cpu.max": "50000 100000\n",
            "sys/fs/cgroup/outer/memory.max": "2000\n",
            "sys/fs/cgroup/outer/inner/memory.max": "1000\n",
        },
    )
    assert cpu_quota(root) == 0.5
    assert usable_threads(root) == 1, "less than one CPU is still one thread"
    assert memory_limit(root) == 1000


def test_version_1_quota_and_memory_come_from_their_own_trees(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/box\n2:cpu,cpuacct:/box\n0::/\n",
            "proc/self/mountinfo": V1_MOUNTS,
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "1073741824\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert cpu_quota(root) == 3.0
    assert memory_limit(root) == 1 << 30


def test_a_container_that_sees_only_its_own_group_still_finds_its_quota(tmp_path: Path) -> None:
    root = tree(v2(tmp_path, "/docker/abc", mount_root="/docker/abc"), {"sys/fs/cgroup/cpu.max": "200000 100000\n"})
    assert cpu_quota(root) == 2.0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a system on which affinity can be set")
def test_a_pinned_process_gets_one_thread() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_threads() == 1
    finally:
        os.sched_setaffinity(0, before)
