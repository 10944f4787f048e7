"""Who ran what, where: written before the first row, and every raw output is stamped with its digest (running.py), so
that outputs of another device, another seed or another version do not pass for this run's.

Nothing of it names a person or a computer: no user, no host name, and paths are reduced to what they mean.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecore import machine, paths
from edgecore.contract.errors import BadRequest, EdgecoreError
from edgecore_conformance import __version__

if TYPE_CHECKING:
    from edgecore_conformance.known import Known
    from edgecore_conformance.run import Run

FILE = "header.json"
MANIFEST = "manifest.json"
"""The manifest as it was tested, beside the header: verifying needs no plugin."""
SAME = (
    ("suite", "version"), ("suite", "digest"), ("plugin", "name"), ("plugin", "version"), ("plugin", "manifest"),
    ("runtime", "version"), ("drivers",), ("device", "name"), ("device", "description"), ("device", "available"),
    ("level",), ("seed",), ("model",), ("expectations",),
)  # fmt: skip
"""What must not change between a run and its continuation."""


def header(run: Run) -> dict[str, Any]:
    """The header of a run that begins now. Probes the device, in a worker of its own."""
    from edgecore_conformance.fixtures import suite_digest

    entry, known = run.entry, run.known
    return {
        "run": uuid.uuid4().hex,
        "begun": run.begun.isoformat(timespec="seconds"),
        "suite": {"distribution": "edgecore-conformance", "version": __version__, "digest": suite_digest()},
        "core": _core_version(),
        "contract": ".".join(map(str, known.manifest.contract)),
        "plugin": {
            "name": entry.name,
            "distribution": entry.distribution,
            "version": entry.version,
            "origin": entry.origin,
            "manifest": sha256(entry.data),
        },
        "runtime": {"distribution": entry.runtime, "version": entry.runtime_version},
        **_probed(run),
        "level": known.level,
        "seed": known.seed,
        "model": model_of(known),
        "expectations": [e.to_dict() for e in run.expectations.entries],
        "command": command(sys.argv),
        "host": _host(),
        "power": power(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def check_same(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises `BadRequest` where a bundle was begun with something else than what would go on with it."""
    for path in SAME:
        old, new = _at(before, path), _at(now, path)
        if old != new:
            raise BadRequest(
                f"the bundle was begun with another {' '.join(path)} ({old!r}, now {new!r})",
                supported="going on with what it was begun with, or a new folder",
                hint="the same with another --out and without --resume",
            )


def _at(header: Mapping[str, Any], path: Sequence[str]) -> Any:
    value: Any = header
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _core_version() -> str:
    from edgecore import __version__ as version

    return version


def _probed(run: Run) -> dict[str, Any]:
    """The device as the runtime names it. A probe that fails is a fact too: the checks say the rest."""
    declared = run.known.whole.device(run.known.device)
    device: dict[str, Any] = {"name": run.known.device, "emulated": bool(declared and declared.emulated)}
    found = run.bench.probed
    if isinstance(found, EdgecoreError):
        return {"device": {**device, "description": "", "reason": reduced(str(found))}, "drivers": {}, "features": {}}
    if (probed := run.bench.found) is not None:
        device |= {"available": probed.available, "description": probed.description, "reason": probed.reason}
    features = {str(k): str(v) for k, v in found.features.items()}
    told: dict[str, Any] = reduced_facts({"device": device, "drivers": dict(found.versions), "features": features})
    return told


def model_of(known: Known) -> dict[str, str] | None:
    """Name and digest of the real model of level full; None where it is not here yet."""
    if known.level != "full":
        return None
    try:
        path = known.fixture("real")
    except EdgecoreError as error:
        return {"missing": reduced(str(error.what))}
    digest = hashlib.sha256()
    for file in sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]:
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return {"name": path.name, "sha256": digest.hexdigest()}


def _host() -> dict[str, Any]:
    facts = machine.facts().to_dict()
    return {name: value for name, value in facts.items() if name != "memory_available"}


def power(root: Path = Path("/sys")) -> dict[str, str]:
    """Whether it runs on mains, and the CPU's governor, where the system tells."""
    found: dict[str, str] = {}
    try:
        import psutil

        battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
        if battery is not None:
            found["source"] = "mains" if battery.power_plugged else "battery"
            found["charge"] = f"{battery.percent:.0f} %"
    except Exception:  # a sensor that is there and cannot be read; nothing depends on it
        found = {}
    governor = root / "devices/system/cpu/cpu0/cpufreq/scaling_governor"
    with suppress(OSError):
        found["governor"] = governor.read_text(encoding="utf-8").strip()
    return found


def command(argv: Sequence[str]) -> str:
    """The exact command, with paths reduced to their last part."""
    program = Path(argv[0]).name
    if program in ("__main__.py", "edgecore", "edgecore.exe", "edgecore-script.py"):
        program = "edgecore"
    return " ".join([program, *(_last_part(a) for a in argv[1:])])


def _last_part(argument: str) -> str:
    name, equals, value = argument.partition("=")
    if equals and name.startswith("-"):
        return f"{name}={_last_part(value)}"
    if os.sep in argument or (os.altsep and os.altsep in argument):
        return Path(argument).name or "."
    return argument


def reduced(text: str) -> str:
    """Without the folders that name a person or a run: home, edgecore's home, temporary folders."""
    for folder, word in _places():
        text = re.sub(rf"(?<![\w/.]){re.escape(folder)}(?=[/\\]|\b)", word, text)
    return text


def reduced_facts(value: Any) -> Any:
    """The same for every string within JSON data."""
    match value:
        case str():
            return reduced(value)
        case Mapping():
            return {k: reduced_facts(v) for k, v in value.items()}
        case list() | tuple():
            return [reduced_facts(v) for v in value]
    return value


def _places() -> list[tuple[str, str]]:
    """The longest first: one may lie in another."""
    named = [
        (str(paths.home()), "$EDGECORE_HOME"),
        (sys.prefix, "$PREFIX"),
        (tempfile.gettempdir(), "$TMP"),
        (str(Path.home()), "~"),
    ]
    with suppress(OSError):  # it may be gone
        named.append((str(Path.cwd()), "$PWD"))
    named += [(os.path.realpath(folder), word) for folder, word in named]
    named = sorted(dict(reversed(named)).items(), key=lambda place: -len(place[0]))
    # Folders of one part (`/tmp` is one; `/root` another) are short, but nobody's answer to a prompt names them.
    return [(folder, word) for folder, word in named if len(folder) > 3]
