"""Make, list and remove environments of plugins and exporters.

An environment is a folder under a name of its own that nothing refers to until `environment.json` appears in it,
written last and at once. So an interrupted installation leaves nothing that is listed, and a new one replaces the old
only when it works.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgecore import paths
from edgecore.contract.errors import BackendUnavailable, BadRequest
from edgecore.contract.manifest import Manifest
from edgecore.environments.commands import install_command, origin_of, requirement
from edgecore.environments.installer import Installer
from edgecore.registry import Entry, State, discover, environment_records
from edgecore.registry.scan import scan_environment, scan_folder

RECORD = "environment.json"
SCHEMA = 1


@dataclass(frozen=True)
class Environment:
    """One interpreter with edgecore and one plugin, or one plugin's exporter."""

    name: str
    """The backend's name; `NAME-export` for its exporter."""
    backend: str
    export: bool
    requirement: str
    """What was installed: a distribution, a path or a wheel."""
    path: Path
    python: str
    """Its interpreter."""
    site: tuple[str, ...]
    """Folders of its packages, where manifests are read without starting it."""
    packages: tuple[str, ...]
    """Every distribution in it, pinned as installed."""
    created: str

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path), "site": list(self.site), "packages": list(self.packages)}


def install(
    name_or_path: str | os.PathLike[str], *, export: bool = False, on_line: Callable[[str], None] | None = None
) -> Environment:
    """Make an environment for a plugin (`llamacpp`), a distribution with or without version, a wheel or a project
    folder.

    export:  the plugin's exporter in place of its runtime: the plugin itself without its dependencies, and what the
             manifest's `exporter.requires` pins.
    on_line: gets what the installer prints.
    Replaces the environment of the same name once the new one is complete. Raises `BackendUnavailable` when the
    installer fails or what it installed is no plugin, `BadRequest` for a plugin that names no exporter.
    """
    name = os.fspath(name_or_path)
    target = _target(name, export)
    _sweep()
    with _folder(target) as folder:
        installer = Installer(folder, on_line or (lambda line: None))
        installer.create()
        if export:
            installer.install([_core()])
            installer.install([target], dependencies=False)
            entry = _plugin_in(installer, name)
            requires = _exporter_of(entry)[1]
            if not requires:
                raise BadRequest(
                    f"the exporter of {entry.name!r} needs no environment of its own",
                    supported="the plugin itself, without --export",
                    hint=f"edgecore plugin install {name}",
                )
            installer.install([_core(), *requires])
        else:
            installer.install([_core(), target])
            entry = _plugin_in(installer, name)
        environment = Environment(
            name=f"{entry.name}-export" if export else entry.name,
            backend=entry.name,
            export=export,
            requirement=target,
            path=folder,
            python=str(installer.python),
            site=installer.site(),
            packages=installer.packages(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        older = [e for e in list_environments() if e.name == environment.name]
        _write(environment)
    for old in older:
        _delete(old)
    return environment


def list_environments() -> tuple[Environment, ...]:
    """The complete ones, by name; a record that cannot be read is passed over, and the next installation sweeps it."""
    found = []
    for record in environment_records():
        with suppress(OSError, ValueError, TypeError, KeyError):
            data = json.loads(record.read_bytes())
            if data.pop("schema") == SCHEMA:
                lists = {key: tuple(data[key]) for key in ("site", "packages")}
                found.append(Environment(**{**data, **lists, "path": record.parent}))
    return tuple(sorted(found, key=lambda e: (e.name, e.created)))


def remove(name: str) -> None:
    """Remove an environment by the name that `list_environments` gives. Raises `BadRequest` where there is none."""
    found = [e for e in list_environments() if e.name == name]
    if not found:
        names = ", ".join(e.name for e in list_environments())
        raise BadRequest(f"there is no environment {name!r}", supported=names or "none is installed")
    for environment in found:
        _delete(environment)
    _sweep()


def find_exporter(entry: Entry) -> tuple[str, str]:
    """The hooks module of a backend's exporter and the interpreter that has it: the plugin's own where it needs nothing
    that the plugin does not. Raises `BackendUnavailable`."""
    hooks, requires = _exporter_of(entry)
    if not requires:
        return hooks, entry.python
    for environment in list_environments():
        if environment.export and environment.backend == entry.name:
            return hooks, environment.python
    raise BackendUnavailable(
        f"the exporter of {entry.name!r} is not installed", hint=install_command(entry.name, export=True)
    )


def _exporter_of(entry: Entry) -> tuple[str, tuple[str, ...]]:
    manifest: Manifest = entry.ready_manifest
    if manifest.exporter is None:
        raise BadRequest(f"backend {entry.name!r} names no exporter", supported="the plugin itself, without --export")
    return manifest.exporter.hooks, manifest.exporter.requires


def _target(name: str, export: bool) -> str:
    """What the installer gets: a path stays a path, a backend that is installed here comes from where it came."""
    path = Path(name).expanduser()
    if os.sep in name or (os.altsep and os.altsep in name) or path.suffix == ".whl" or name in (".", ".."):
        if not path.exists():
            raise BadRequest(f"{name} does not exist", supported="a plugin's name, a distribution, a wheel or a folder")
        path = path.resolve()
        if path.is_dir():
            scan_folder(path)  # Refuses what is no plugin before minutes are spent.
            if not (path / "pyproject.toml").is_file():
                raise BadRequest(f"{path} has no pyproject.toml", supported="a folder that can be built")
        return str(path)
    entry = next((e for e in discover().entries if e.name == name and e.origin == "installed"), None)
    if entry is not None and entry.distribution:
        origin = origin_of(entry.distribution)
        return str(origin.path or f"{entry.distribution}=={entry.version}")
    return requirement(name)


def _core() -> str:
    """edgecore as the environment gets it: the same code as here, editable where it is editable here."""
    from edgecore.environments.commands import core_origin

    origin = core_origin()
    if origin.path is None:
        return f"edgecore=={origin.version}"
    return f"-e {origin.path}" if origin.editable else str(origin.path)


def _plugin_in(installer: Installer, asked: str) -> Entry:
    """The one usable plugin that was installed."""
    entries = scan_environment(str(installer.python), installer.site())
    ready = [e for e in entries if e.state is State.READY]
    if len(ready) == 1:
        return ready[0]
    if entries:
        raise entries[0].unavailable()
    raise BackendUnavailable(f"{asked} was installed, but it provides no backend of edgecore", hint="edgecore backends")


def _write(environment: Environment) -> None:
    partial = environment.path / f"{RECORD}.partial"
    with partial.open("w", encoding="utf-8") as stream:
        json.dump({"schema": SCHEMA, **environment.to_dict()}, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, environment.path / RECORD)


def _delete(environment: Environment) -> None:
    """Unlisted first, then removed: half an environment is never used."""
    with suppress(OSError):
        (environment.path / RECORD).unlink()
    shutil.rmtree(environment.path, ignore_errors=True)


@contextmanager
def _folder(target: str) -> Iterator[Path]:
    """A new folder, locked while it is being filled, and removed again unless its record was written."""
    from filelock import FileLock

    stem = "".join(c if c.isalnum() else "-" for c in Path(target.partition("==")[0]).stem)[:40]
    folder = paths.environments() / f"{stem}-{uuid.uuid4().hex[:8]}"
    lock = _lock_file(folder)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        try:
            folder.mkdir(parents=True)
            yield folder
        except OSError as error:
            raise BackendUnavailable(f"the environment {folder} cannot be made: {error}") from error
        finally:
            if not (folder / RECORD).is_file():
                shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                lock.unlink()


def _lock_file(folder: Path) -> Path:
    return paths.locks() / f"environment-{folder.name}.lock"


def _sweep() -> None:
    """Remove what killed installations left: folders without a record whose lock nobody holds."""
    from filelock import FileLock, Timeout

    with suppress(OSError):
        for folder in paths.environments().iterdir():
            if folder.is_dir() and not (folder / RECORD).is_file():
                paths.locks().mkdir(parents=True, exist_ok=True)
                with suppress(Timeout), FileLock(_lock_file(folder), timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)
                with suppress(OSError):
                    _lock_file(folder).unlink()
