"""How each part of edgecore is installed, from where this edgecore came: a clone, a folder of wheels, or the package
index.

Every install command that edgecore prints comes from `install_command`, so that it works today and not only after a
release.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from edgecore.contract.manifest import Manifest

PLUGINS = ("llamacpp", "mlx", "onnxruntime", "openvino", "coreml", "reference")
"""Backends of this project; their distributions are `edgecore-NAME`."""
_OURS = (*PLUGINS, "conformance")


@dataclass(frozen=True)
class Origin:
    """Where a distribution in this interpreter was installed from."""

    path: Path | None = None
    """The project folder or the wheel; None for the package index."""
    editable: bool = False
    version: str = ""


def known_plugins() -> tuple[str, ...]:
    """Names of this project's backends that can be installed: those in the clone, where edgecore came from one."""
    clone = _clone()
    if clone is None:
        return PLUGINS
    return tuple(sorted(f.name.removeprefix("edgecore-") for f in clone.glob("plugins/edgecore-*") if _is_project(f)))


def install_command(name: str, *, export: bool = False, upgrade: bool = False) -> str:
    """The command that installs `name` for this interpreter, ready to be typed.

    name:   a backend (`llamacpp`), `conformance`, `edgecore` with or without an extra (`edgecore[hub]`), or any
            distribution.
    export: the backend's exporter, which always gets an environment of its own.
    """
    if export:
        return f"edgecore plugin install {name} --export"
    words = [*_installer(), *(["--upgrade"] if upgrade else []), requirement(name)]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def exporter_command(manifest: Manifest) -> str:
    """The command after which a backend's exporter is here: it comes with the plugin where it needs nothing more."""
    apart = manifest.exporter is None or manifest.exporter.requires
    return install_command(manifest.name, export=True) if apart else f"edgecore plugin install {manifest.name}"


def requirement(name: str) -> str:
    """What an installer takes for `name`: a path where the clone or the wheels beside edgecore's own have it, else the
    name on the index, with `edgecore-` before a backend's."""
    base, bracket, extras = name.partition("[")
    distribution = f"edgecore-{base}" if base in _OURS or base in known_plugins() else base
    path = _local(distribution)
    return f"{path or distribution}{bracket}{extras}"


@cache
def origin_of(distribution: str) -> Origin:
    """From `direct_url.json` (PEP 610), as the installer recorded it. Raises `PackageNotFoundError`."""
    from importlib.metadata import distribution as installed

    found = installed(distribution)
    try:
        record = json.loads(found.read_text("direct_url.json") or "{}")
    except ValueError:
        record = {}
    parts = urlsplit(str(record.get("url", "")))
    if parts.scheme != "file":
        return Origin(version=found.version)
    text = unquote(parts.path)
    path = Path(text[1:] if os.name == "nt" and text.startswith("/") else text)
    if not path.exists():
        return Origin(version=found.version)
    return Origin(path, bool(record.get("dir_info", {}).get("editable", False)), found.version)


def _local(distribution: str) -> Path | None:
    """A folder or wheel of `distribution` beside the edgecore that runs, None where there is none."""
    folder = _clone()
    if folder:
        places = {"edgecore": folder, "edgecore-conformance": folder / "conformance"}
        found = places.get(distribution, folder / "plugins" / distribution)
        return found if _is_project(found) else None
    core = core_origin().path
    if core and core.suffix == ".whl":
        stem = re.sub(r"[-.]+", "_", distribution)
        return next(iter(sorted(core.parent.glob(f"{stem}-[0-9]*.whl"), reverse=True)), None)
    return None


def _clone() -> Path | None:
    path = core_origin().path
    return path if path and _is_project(path) else None


def core_origin() -> Origin:
    """Where this edgecore came from."""
    from importlib.metadata import PackageNotFoundError

    try:
        return origin_of("edgecore")
    except PackageNotFoundError:  # Run from a source folder that was never installed.
        folder = Path(__file__).parents[2]
        return Origin(folder, editable=True) if _is_project(folder) else Origin()


def _is_project(folder: Path) -> bool:
    return (folder / "pyproject.toml").is_file()


def _installer() -> list[str]:
    """pip of this interpreter; uv where the interpreter has no pip, as uv's environments have none."""
    if importlib.util.find_spec("pip") is None and shutil.which("uv"):
        return ["uv", "pip", "install", "--python", sys.executable]
    on_path = shutil.which("python")
    same = on_path is not None and os.path.realpath(os.path.dirname(on_path)) == os.path.realpath(
        os.path.dirname(sys.executable)
    )
    return ["python" if same else sys.executable, "-m", "pip", "install"]
