"""What the conformance suite found here, claim by claim, as it noted it. Standard library only: listing reads this.

A claim that was proven with another plugin, runtime, driver or suite version is *stale*: what it was worth then, nobody
knows now. What was refuted stays refuted until it is run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecore import paths
from edgecore.verbs import probing

if TYPE_CHECKING:
    from edgecore.contract.manifest import Claim
    from edgecore.registry import Entry

_FIELDS = ("task", "family", "format", "precision", "device")


@dataclass(frozen=True, slots=True)
class Standing:
    """One claim of the manifest, as it stands on this machine."""

    claim: Claim
    state: str
    """`proven`, `emulated`, `unproven`, `refuted` or `stale`."""
    why: str = ""
    """What is stale about it; or when and at which level it was found."""


def file_of(backend: str, device: str) -> Path:
    """Where the suite notes its findings."""
    return paths.home() / "conformance" / f"{backend}-{device}.json"


def standings(entry: Entry) -> list[Standing]:
    """Every claim of a usable plugin, in the manifest's order."""
    records = {d.name: _read(file_of(entry.name, d.name)) for d in entry.ready_manifest.devices}
    older = {device: _older(entry, record) for device, record in records.items() if record}
    found = {
        tuple(str(c.get(n)) for n in _FIELDS): (str(c.get("state")), record)
        for record in records.values()
        if record
        for c in record.get("claims", ())
    }
    made = []
    for claim in entry.ready_manifest.claims:
        state, record = found.get(tuple(getattr(claim, n) for n in _FIELDS), ("unproven", {}))
        if not record:
            made.append(Standing(claim, "unproven", "the conformance suite has not run on this device"))
        elif state in ("proven", "emulated") and older[claim.device]:
            made.append(Standing(claim, "stale", f"{state} with {older[claim.device]}"))
        else:
            made.append(Standing(claim, state, f"{record.get('level')}, {record.get('when')}"))
    return made


def _older(entry: Entry, record: Mapping[str, Any]) -> str:
    """What is another now than when the record was made, in words; empty where nothing is."""
    now: dict[str, Any] = {
        "plugin": entry.version,
        "runtime": entry.runtime_version,
        "manifest": hashlib.sha256(entry.data.encode()).hexdigest(),
        "origin": entry.origin,
    }
    if suite := _suite_version():
        now["suite"] = suite
    if (probe := probing.last(entry.name)) is not None and probe.get("plugin") == entry.version:
        now["drivers"] = probe["versions"]
    return ", ".join(_words(n, record.get(n), v) for n, v in now.items() if record.get(n) != v)


def _words(name: str, then: Any, now: Any) -> str:
    if name == "manifest":
        return "another manifest"
    if name == "drivers":
        names = [n for n in sorted({*(then or {}), *now}) if (then or {}).get(n) != now.get(n)]
        return ", ".join(f"{n} {(then or {}).get(n)} (now {now.get(n)})" for n in names)
    return f"{name} {then} (now {now})"


def _suite_version() -> str:
    """Of the installed suite, from the name of its metadata folder: importlib.metadata costs more than the rest."""
    for folder in sys.path:
        try:
            with os.scandir(folder or os.curdir) as children:
                for child in children:
                    if child.name.startswith("edgecore_conformance-") and child.name.endswith(".dist-info"):
                        return child.name.removesuffix(".dist-info").rpartition("-")[2]
        except OSError:
            continue
    return ""


def _read(file: Path) -> Mapping[str, Any]:
    try:
        kept = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}
