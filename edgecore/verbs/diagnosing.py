"""What this machine is, which profiles describe it, what works here and what to install: the facts behind `doctor`."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

from edgecore import environments, registry
from edgecore.contract.errors import EdgecoreError
from edgecore.machine import Machine, Profile, Suited, facts, match
from edgecore.registry import Entry
from edgecore.verbs import probing


@dataclass(frozen=True, slots=True)
class Check:
    """One backend, probed afresh."""

    entry: Entry
    probe: dict[str, Any] | None
    """None where it could not be probed; `problem` says why."""
    problem: str = ""
    hint: str = ""

    @property
    def devices(self) -> list[str]:
        return [d["name"] for d in self.probe["devices"] if d["available"]] if self.probe else []


@dataclass(frozen=True, slots=True)
class Advice:
    """A backend that suits this machine and is not installed."""

    backend: str
    why: str
    command: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    machine: Machine
    profile: Profile | None
    checks: tuple[Check, ...]
    advice: tuple[Advice, ...]

    @property
    def usable(self) -> bool:
        """True when a backend other than the reference has a device here."""
        return any(c.devices for c in self.checks if c.entry.manifest and not c.entry.manifest.reference)


def diagnose() -> Diagnosis:
    """Probe every plugin afresh. One that fails is a row with its reason, not an exception."""
    machine = facts()
    profile = next(iter(match(machine)), None)
    checks = tuple(_check(entry) for entry in registry.discover().entries)
    working = {check.entry.name for check in checks if check.devices}
    return Diagnosis(machine, profile, checks, _advice(profile.suited if profile else (), working))


def _advice(rows: Sequence[Suited], working: Set[str]) -> tuple[Advice, ...]:
    """Once for each backend that is missing, by the first of its devices that suits."""
    missing = {row.backend: row.why for row in reversed(rows) if row.backend not in working}
    order = dict.fromkeys(row.backend for row in rows if row.backend in missing)
    return tuple(Advice(name, missing[name], environments.install_command(name)) for name in order)


def _check(entry: Entry) -> Check:
    if entry.state is not registry.State.READY:
        return Check(entry, None, entry.problem, entry.hint)
    try:
        return Check(entry, probing.probe(entry))
    except EdgecoreError as error:
        return Check(entry, None, error.what, error.hint)
