"""A container's limits, read where the kernel keeps them, because os.cpu_count() and total memory tell the host's.

Both versions of control groups: 2 keeps one tree, 1 a tree a controller. A limit anywhere between this process' group
and the root binds, so the tightest of them is the answer. https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")


def cpu_quota(root: Path = ROOT) -> float | None:
    """CPUs that the tightest quota grants (1.5 is one and a half), None where none is set or this is not Linux."""
    return _tightest(root, "cpu", _cpus_v2, _cpus_v1)


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes that the tightest limit grants, None where none is set or this is not Linux."""
    limit = _tightest(root, "memory", _bytes_v2, _bytes_v1)
    return None if limit is None else int(limit)


def _tightest(
    root: Path, controller: str, v2: Callable[[Path], float | None], v1: Callable[[Path], float | None]
) -> float | None:
    limits = [(v1 if is_v1 else v2)(folder) for is_v1, folder in _groups(root, controller)]
    return min((limit for limit in limits if limit is not None), default=None)


def _groups(root: Path, controller: str) -> Iterator[tuple[bool, Path]]:
    """Folders from this process' group up to where its tree is mounted; the flag says version 1."""
    paths = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            paths[name] = path
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        kind, _, options = [*after.split(), "", "", ""][:3]
        is_v1 = kind == "cgroup" and controller in options.split(",")
        key = controller if is_v1 else ""
        if not (is_v1 or kind == "cgroup2") or key not in paths:
            continue
        mount_root, mount_point = before.split()[3:5]
        mounted = root / mount_point.lstrip("/")
        inside = PurePosixPath(paths[key])
        # In a container the path may be the host's, which is not visible here: then only the mount itself is.
        parts = inside.relative_to(mount_root).parts if inside.is_relative_to(mount_root) else ()
        for depth in range(len(parts), -1, -1):
            yield is_v1, mounted.joinpath(*parts[:depth])


def _cpus_v2(folder: Path) -> float | None:
    fields = _text(folder / "cpu.max").split()
    return int(fields[0]) / int(fields[1]) if len(fields) == 2 and fields[0].isdecimal() else None


def _cpus_v1(folder: Path) -> float | None:
    quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


def _bytes_v2(folder: Path) -> float | None:
    text = _text(folder / "memory.max")
    return int(text) if text.isdecimal() else None


def _bytes_v1(folder: Path) -> float | None:
    text = _text(folder / "memory.limit_in_bytes")
    # "No limit" is written as the largest multiple of the page size below 2^63.
    return int(text) if text.isdecimal() and int(text) < 2**62 else None


def _lines(path: Path) -> list[str]:
    return _text(path).splitlines()


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
