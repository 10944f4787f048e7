"""Which plugins are here, without importing any of them, so that one bad plugin is a row in a list and help stays fast.

The warm path reads one JSON file and compares names and modification times; standard library only, no
importlib.metadata and no TOML parser. What those are needed for lies in `scan`, which runs after something was
installed, removed or edited.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecore import paths
from edgecore.contract.errors import BackendUnavailable, BadRequest

if TYPE_CHECKING:
    from edgecore.contract.manifest import Manifest

__all__ = ["Discovery", "Entry", "State", "discover", "find", "usable"]

ONLY = "EDGECORE_ONLY"
"""Environment variable: names of the backends that may be used, separated by commas; unset or empty allows all."""
CACHE_SCHEMA = 2


class State(StrEnum):
    """What may be done with a plugin."""

    READY = "ready"
    """Its manifest is good; whether its runtime and devices are is for the probe to say."""
    INCOMPATIBLE = "incompatible"
    """Written for another major version of the contract; `hint` mends it."""
    BROKEN = "broken"
    """Its package or manifest is missing or wrong; `problem` says where."""
    DUPLICATE = "duplicate"
    """Two distributions provide a backend of this name, and neither is used."""
    EXCLUDED = "excluded"
    """Not on the allow-list `EDGECORE_ONLY`."""


@dataclass(frozen=True)
class Entry:
    """One plugin, usable or not. Errors are values here: only `find` raises."""

    name: str
    state: State
    distribution: str = ""
    version: str = ""
    runtime: str = ""
    """The manifest's runtime distribution, here too so that listing parses no manifest."""
    runtime_version: str | None = None
    """Of the runtime as installed beside the plugin; None where it is missing."""
    python: str = ""
    """The interpreter that a worker of this plugin runs in."""
    search_path: tuple[str, ...] = ()
    """Folders that a worker adds to `sys.path`, for a plugin that is named by path."""
    origin: str = "installed"
    """`installed` in the caller's interpreter, in an `environment` of its own, or named by `path`."""
    problem: str = ""
    """What is wrong, empty where nothing is."""
    hint: str = ""
    """The command that mends it."""
    warning: str = ""
    """For a usable plugin: what a person should know."""
    location: str = ""
    """Path of its `backend.toml`."""
    data: str = field(default="", repr=False)
    """The manifest as JSON: parsed when it is asked for, because listing fifty plugins needs few of them."""

    @cached_property
    def manifest(self) -> Manifest | None:
        """None where it could not be read, or follows another contract."""
        if not self.data:
            return None
        from edgecore.contract.manifest import parse

        return parse(json.loads(self.data), self.location)

    @property
    def ready_manifest(self) -> Manifest:
        """The manifest of a usable plugin. Raises `BackendUnavailable` for any other."""
        if self.manifest is None or self.state is not State.READY:
            raise self.unavailable()
        return self.manifest

    def unavailable(self) -> BackendUnavailable:
        return BackendUnavailable(f"backend {self.name!r} is {self.state}: {self.problem}", hint=self.hint)


@dataclass(frozen=True)
class Discovery:
    """Everything that installed distributions add to edgecore."""

    entries: tuple[Entry, ...] = ()
    """Sorted by name."""
    commands: Mapping[str, str] = field(default_factory=dict)
    """Commands by name as object references (`package.module:attribute`), entry point group `edgecore.commands`."""
    wrappers: Mapping[str, str] = field(default_factory=dict)
    """Hook wrappers by name, as object references, entry point group `edgecore.wrappers`."""


def discover() -> Discovery:
    """What is here now: a cached answer when nothing changed since, a scan otherwise. Never raises for a plugin's
    fault."""
    found = _cached()
    if found is None:
        from edgecore.registry.scan import scan

        # The fingerprint is taken before the scan, so that what changes during it is seen next time.
        fingerprint = _fingerprint()
        found = scan()
        _write(fingerprint, found)
    return Discovery(_allowed(found.entries), found.commands, found.wrappers)


def find(name_or_path: str | os.PathLike[str]) -> Entry:
    """The usable plugin of this name, or the one under development in this folder.

    Raises `BackendUnavailable` that lists what could be named and, where known, the command that installs it;
    `BadRequest` for a folder without a plugin.
    """
    name = os.fspath(name_or_path)
    if os.sep in name or (os.altsep and os.altsep in name) or isinstance(name_or_path, Path) or name in (".", ".."):
        from edgecore.registry.scan import scan_folder

        entry = scan_folder(Path(name).expanduser().resolve())
        if entry.state is not State.READY:
            raise entry.unavailable()
        return entry
    entries = discover().entries
    named = [e for e in entries if e.name == name]
    ready = [e for e in named if e.state is State.READY]
    if ready:
        return ready[0]
    if named:
        raise named[0].unavailable()
    if os.path.isdir(name):
        return find(Path(name))
    raise _unknown(name, entries)


def usable() -> tuple[Entry, ...]:
    """The entries that `find` would answer, by name."""
    return tuple(e for e in discover().entries if e.state is State.READY)


def _unknown(name: str, entries: Iterable[Entry]) -> BackendUnavailable:
    from difflib import get_close_matches

    from edgecore.environments import install_command, known_plugins

    here = [e.name if e.state is State.READY else f"{e.name} ({e.state})" for e in entries]
    near = get_close_matches(name, [e.name for e in entries], 1)
    supported = ", ".join(here) or "none is installed"
    if name in known_plugins():
        return BackendUnavailable(f"backend {name!r} is not installed", supported=supported, hint=install_command(name))
    if near:
        return BackendUnavailable(
            f"there is no backend {name!r}; did you mean {near[0]!r}?", supported=supported, hint=f"--backend {near[0]}"
        )
    others = [n for n in known_plugins() if n not in {e.name for e in entries}]
    what = f"there is no backend {name!r}" + (f"; not installed are: {', '.join(others)}" if others else "")
    return BackendUnavailable(what, supported=supported, hint="edgecore doctor")


def _allowed(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    only = {name.strip() for name in os.environ.get(ONLY, "").split(",") if name.strip()}
    if not only:
        return tuple(entries)
    from dataclasses import replace

    return tuple(
        e if e.name in only else replace(e, state=State.EXCLUDED, problem=f"not among {ONLY}={','.join(sorted(only))}")
        for e in entries
    )


# ---- the cache ----


def environment_records() -> list[Path]:
    """`environment.json` of every finished environment: one that was interrupted has none."""
    try:
        with os.scandir(paths.environments()) as folders:
            found = [Path(f.path, "environment.json") for f in folders if not f.name.startswith(".")]
    except OSError:
        return []
    return sorted(f for f in found if f.is_file())


def _cache_file() -> Path:
    from binascii import crc32

    # One file a `sys.path`, so that `edgecore` and `python -m edgecore` do not outdate each other.
    return paths.index() / f"plugins-{crc32(os.pathsep.join([sys.executable, *sys.path]).encode()):08x}.json"


def _fingerprint() -> str:
    """Changes whenever a distribution comes, goes or changes version or entry points, here or in an environment.

    Names of metadata folders carry versions; the modification time of `entry_points.txt` covers editable installs.
    """
    lines = [sys.version]
    for path in sys.path:
        lines += _metadata_of(path or os.curdir)
    for record in environment_records():
        lines.append(_stamp(str(record)))
        try:
            site = json.loads(record.read_bytes())["site"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        for path in site:
            lines += _metadata_of(str(path))
    return "\n".join(lines)


def _metadata_of(folder: str) -> list[str]:
    found = []
    try:
        with os.scandir(folder) as children:
            for child in children:
                if child.name.endswith((".dist-info", ".egg-info")):
                    found.append(_stamp(os.path.join(child.path, "entry_points.txt")))
    except OSError:
        return [_stamp(folder)]
    return [folder, *sorted(found)]


def _stamp(file: str) -> str:
    try:
        status = os.stat(file)
    except OSError:
        return f"{file} -"
    return f"{file} {status.st_mtime_ns} {status.st_size}"


def _cached() -> Discovery | None:
    try:
        kept = json.loads(_cache_file().read_bytes())
        if kept["schema"] != CACHE_SCHEMA or kept["fingerprint"] != _fingerprint():
            return None
        if any(_stamp(file) != stamp for file, stamp in kept["manifests"].items()):
            return None
        entries = tuple(
            Entry(**{**e, "state": State(e["state"]), "search_path": tuple(e["search_path"])}) for e in kept["entries"]
        )
        return Discovery(entries, kept["commands"], kept["wrappers"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write(fingerprint: str, found: Discovery) -> None:
    if any(e.state is State.BROKEN and not e.location for e in found.entries):
        return  # Nothing to watch: where its package will appear is not known.
    kept: dict[str, Any] = {
        "schema": CACHE_SCHEMA,
        "fingerprint": fingerprint,
        "manifests": {e.location: _stamp(e.location) for e in found.entries},
        "commands": dict(found.commands),
        "wrappers": dict(found.wrappers),
        "entries": [{k: v for k, v in vars(e).items() if k != "manifest"} for e in found.entries],
    }
    file = _cache_file()
    partial = f"{file}.{os.getpid()}"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "w", encoding="utf-8") as stream:
            json.dump(kept, stream)
        os.replace(partial, file)
    except OSError:
        pass  # A cache that cannot be written costs time, nothing else.


def _bad_folder(folder: Path) -> BadRequest:
    return BadRequest(
        f"{folder} holds no plugin",
        supported="a folder with a package that contains backend.toml, at its top or under src/",
    )
