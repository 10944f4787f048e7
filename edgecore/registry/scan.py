"""The cold path of the registry: read entry points and manifests, here and in environments, and judge each plugin.

Nothing of a plugin is imported: its package is located by `find_spec` on a top-level name, or by looking into folders.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import Distribution, distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgecore.contract.errors import BadRequest
from edgecore.contract.manifest import CONTRACT_VERSION, ENTRY_POINT_GROUP, MANIFEST_FILE, contract_version, parse
from edgecore.registry import Discovery, Entry, State, _bad_folder, environment_records

COMMANDS_GROUP = "edgecore.commands"
WRAPPERS_GROUP = "edgecore.wrappers"


@dataclass(frozen=True)
class _Place:
    """Where distributions are looked for: this interpreter, or another environment's folders."""

    python: str
    origin: str
    path: tuple[str, ...] | None = None
    """None means `sys.path`."""

    def distributions(self) -> Iterable[Distribution]:
        return distributions() if self.path is None else distributions(path=list(self.path))

    def package(self, name: str) -> Path | None:
        """The folder of a top-level package."""
        if self.path is None:
            spec = find_spec(name)
            locations = list(spec.submodule_search_locations or ()) if spec else []
            return Path(locations[0]) if locations else None
        folders = [*map(Path, self.path), *_path_files(self.path)]
        return next((f / name for f in folders if (f / name).is_dir()), None)


def scan() -> Discovery:
    """Every plugin of this interpreter and of the environments, judged; commands and wrappers of this interpreter."""
    importlib.invalidate_caches()
    here = _Place(sys.executable, "installed")
    entries: list[Entry] = []
    groups: dict[str, dict[str, str]] = {COMMANDS_GROUP: {}, WRAPPERS_GROUP: {}}
    for place in (here, *_environments()):
        installed = _installed(place)
        for distribution in installed.values():
            for point in distribution.entry_points:
                if point.group == ENTRY_POINT_GROUP:
                    entries.append(_entry(point.name, point.value, distribution, place, installed))
                elif point.group in groups and place is here:
                    groups[point.group].setdefault(point.name, point.value)
    judged = _refuse_duplicates(entries)
    return Discovery(tuple(sorted(judged, key=lambda e: e.name)), groups[COMMANDS_GROUP], groups[WRAPPERS_GROUP])


def scan_environment(python: str, site: tuple[str, ...]) -> tuple[Entry, ...]:
    """The plugins of another interpreter, whose packages lie in `site`."""
    place = _Place(python, "environment", site)
    installed = _installed(place)
    return tuple(
        _entry(point.name, point.value, distribution, place, installed)
        for distribution in installed.values()
        for point in distribution.entry_points
        if point.group == ENTRY_POINT_GROUP
    )


def scan_folder(folder: Path) -> Entry:
    """The plugin under development in `folder`: the package itself, or the project that holds it, flat or under
    src/."""
    found = [p for pattern in ("", "*", "src/*") for p in sorted(folder.glob(f"{pattern}/{MANIFEST_FILE}".lstrip("/")))]
    if not found:
        raise _bad_folder(folder)
    file = found[0]
    here = _Place(sys.executable, "path")
    version = _version_of_project(file.parent.parent) or _version_of_project(file.parent.parent.parent)
    return _judge(file.parent.name, file, Entry(
        name="", state=State.READY, version=version, python=sys.executable,
        search_path=(str(file.parent.parent),), origin="path",
    ), _installed(here))  # fmt: skip


def _environments() -> Iterable[_Place]:
    for record in environment_records():
        try:
            data = json.loads(record.read_bytes())
            if not data["export"]:
                yield _Place(str(data["python"]), "environment", tuple(map(str, data["site"])))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # A damaged record: as good as no environment.


def _installed(place: _Place) -> dict[str, Distribution]:
    """By normalized name; of two copies on the path the first counts, as it does for imports."""
    found: dict[str, Distribution] = {}
    for distribution in place.distributions():
        try:
            name = distribution.metadata["Name"]
        except Exception:
            continue  # A half-removed metadata folder is no reason to list nothing.
        if name:
            found.setdefault(_normal(name), distribution)
    return found


def _entry(
    name: str, value: str, distribution: Distribution, place: _Place, installed: Mapping[str, Distribution]
) -> Entry:
    base = Entry(
        name=name,
        state=State.READY,
        distribution=distribution.metadata["Name"],
        version=distribution.version,
        python=place.python,
        origin=place.origin,
    )
    package = value.partition(":")[0].partition(".")[0].strip()
    try:
        folder = place.package(package)
    except Exception as error:  # Finders are foreign code.
        return _broken(base, f"its package {package!r} cannot be located: {error}")
    if folder is None:
        return _broken(base, f"its package {package!r} is missing")
    return _judge(name, folder / MANIFEST_FILE, base, installed)


def _judge(name: str, file: Path, base: Entry, installed: Mapping[str, Distribution]) -> Entry:
    """`base` completed from the manifest, with its state. For a plugin named by path the manifest names it."""
    base = replace(base, location=str(file), name=base.name or name)
    try:
        data: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        return _broken(base, f"{file} cannot be read: {error.strerror}")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return _broken(base, f"{file}: not TOML: {error}")
    if base.origin == "path":
        base = replace(base, name=str(data.get("name", name)), distribution=str(data.get("distribution", "")))
    try:
        major, minor = contract_version(str(data.get("contract", "")), str(file))
        if major != CONTRACT_VERSION[0]:
            return _incompatible(base, major, minor)
        manifest = parse(data, str(file))
    except BadRequest as error:
        return _broken(base, error.what + (f" (supported: {error.supported})" if error.supported else ""))
    except Exception as error:
        return _broken(base, f"{file}: {type(error).__name__}: {error}")
    if manifest.name != base.name:
        return _broken(base, f"{file}: name: is {manifest.name!r}, but the entry point calls it {base.name!r}")
    runtime = installed.get(_normal(manifest.runtime.distribution))
    warning = ""
    if minor > CONTRACT_VERSION[1]:
        ours = ".".join(map(str, CONTRACT_VERSION))
        warning = f"written for contract {major}.{minor}, newer than {ours} here: what it adds is not used"
    return replace(
        base,
        runtime=manifest.runtime.distribution,
        runtime_version=runtime.version if runtime else None,
        warning=warning,
        data=json.dumps(data, default=str, separators=(",", ":")),
    )


def _broken(entry: Entry, problem: str) -> Entry:
    from edgecore.environments import install_command

    hint = "" if entry.origin == "path" else install_command(entry.distribution, upgrade=True)
    return replace(entry, state=State.BROKEN, problem=problem, hint=hint)


def _incompatible(entry: Entry, major: int, minor: int) -> Entry:
    from edgecore.environments import install_command

    ours = ".".join(map(str, CONTRACT_VERSION))
    older = "edgecore" if major > CONTRACT_VERSION[0] else entry.distribution
    return replace(
        entry,
        state=State.INCOMPATIBLE,
        problem=f"it is written for contract {major}.{minor}, and this edgecore has {ours}",
        hint=install_command(older, upgrade=True),
    )


def _refuse_duplicates(entries: Sequence[Entry]) -> Iterable[Entry]:
    """Two distributions with one backend name are both refused. One distribution here and in an environment of its own
    is the same plugin twice: the environment was made on purpose and is used."""
    for entry in entries:
        twins = [e for e in entries if e.name == entry.name and e is not entry]
        others = sorted({e.distribution for e in twins if _normal(e.distribution) != _normal(entry.distribution)})
        if others:
            yield replace(
                entry,
                state=State.DUPLICATE,
                problem=f"{', '.join([entry.distribution, *others])} all provide it",
                hint=_removal(entry),
            )
        elif entry.origin == "environment" and twins:
            here = next((e.version for e in twins if e.origin == "installed"), "")
            yield replace(entry, warning=entry.warning or f"version {here} in this interpreter is not used")
        elif not any(e.origin == "environment" for e in twins):
            yield entry


def _removal(entry: Entry) -> str:
    if entry.origin == "environment":
        return f"edgecore plugin remove {entry.name}"
    return f"{sys.executable} -m pip uninstall {entry.distribution}"


def _path_files(folders: Iterable[str]) -> Iterable[Path]:
    """Folders that `.pth` files name: how editable installs reach an interpreter that we are not."""
    for folder in folders:
        for file in sorted(Path(folder).glob("*.pth")):
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                if line.strip() and not line.startswith(("#", "import ", "import\t")):
                    yield Path(folder, line.strip())


def _version_of_project(folder: Path) -> str:
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
    except (OSError, ValueError):
        return ""
    return str(project.get("version", ""))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
