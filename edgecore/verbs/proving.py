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

NOTED = ("proven", "emulated", "unproven", "refuted")
"""What a note says of a claim; that it is stale, only who reads it later can tell."""
_FIELDS = ("task", "family", "format", "precision", "device")


@dataclass(frozen=True, slots=True)
class Standing:
    """One claim of the manifest, as it stands on this machine."""

    claim: Claim
    state: str
    """`proven`, `emulated`, `unproven`, `refuted` or `stale`."""
    why: str = ""
    """What is stale about it; or at which level and when it was found, and what is another since."""


def file_of(backend: str, device: str) -> Path:
    """Where the suite notes its findings."""
    return paths.home() / "conformance" / backend / f"{device}.json"


def standings(entry: Entry) -> list[Standing]:
    """Every claim of a usable plugin, in the manifest's order."""
    notes = {d.name: _note(entry, d.name) for d in entry.ready_manifest.devices}
    return [_standing(claim, notes[claim.device]) for claim in entry.ready_manifest.claims]


@dataclass(frozen=True, slots=True)
class _Note:
    """What the last run on a device noted."""

    found: str
    """Level and time."""
    states: Mapping[tuple[str, ...], Any]
    """By the claim's fields."""
    older: str
    """What is another now, in words; empty where nothing is."""


def _standing(claim: Claim, note: _Note | None) -> Standing:
    if note is None:
        return Standing(claim, "unproven", "the conformance suite has not run on this device")
    state = note.states.get(tuple(getattr(claim, n) for n in _FIELDS))
    if state in ("proven", "emulated") and note.older:
        return Standing(claim, "stale", f"{state} with {note.older}")
    found = f"{note.found}, with {note.older}" if note.older else note.found
    return Standing(claim, state, found) if state in NOTED else Standing(claim, "unproven", f"{found}: not among it")


def _note(entry: Entry, device: str) -> _Note | None:
    """None where there is none that can be read."""
    try:
        note = json.loads(file_of(entry.name, device).read_bytes())
        states = {tuple(str(c.get(n)) for n in _FIELDS): c.get("state") for c in note["claims"]}
        return _Note(f"{note['level']}, {note['when']}", states, _older(entry, note))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _older(entry: Entry, note: Mapping[str, Any]) -> str:
    """What is another now than when the note was made, in words; empty where nothing is."""
    now: dict[str, Any] = {
        "plugin": entry.version,
        "runtime": entry.runtime_version,
        "manifest": hashlib.sha256(entry.data.encode()).hexdigest(),
        "origin": entry.origin,
    }
    if suite := _suite_version():
        now["suite"] = suite
    # The suite probes for itself: an older probe knows older drivers.
    probe = probing.last(entry.name)
    if probe is not None and probe["plugin"] == entry.version and probe["when"] > note["when"]:
        now["drivers"] = probe["versions"]
    return ", ".join(_words(n, note.get(n), v) for n, v in now.items() if note.get(n) != v)


def _words(name: str, then: Any, now: Any) -> str:
    if name == "manifest":
        return "another manifest"
    if name == "drivers":
        then = then if isinstance(then, dict) else {}
        return ", ".join(_words(n, then.get(n), now.get(n)) for n in sorted({*then, *now}) if then.get(n) != now.get(n))
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
