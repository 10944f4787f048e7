"""Machines as data: what people buy, described once with the public source of each figure, and matched to what is here.

The files lie in `hwprofiles/` of the repository and travel inside the wheel. `hwprofiles/schema.json` is their full
schema, held by the tests; here only what the code relies on is checked, so that a profile of one's own gets a clear
error.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from edgecore.contract.errors import BadRequest
from edgecore.machine.facts import Machine, facts

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Source:
    """Where a figure comes from."""

    id: str
    title: str
    url: str


@dataclass(frozen=True, slots=True)
class Figure:
    """One number with its source."""

    value: float
    source: Source
    note: str = ""


@dataclass(frozen=True, slots=True)
class Precision:
    """One number format that a unit computes in natively, and the instruction or block that does."""

    name: str
    through: str
    source: Source


@dataclass(frozen=True, slots=True)
class Unit:
    """One compute unit."""

    name: str
    """`cpu`, `gpu` or `npu`."""
    precisions: tuple[Precision, ...] = ()
    operations: Figure | None = None
    """Operations a second at best, as the maker states it; `note` says in which precision, where it was said."""


@dataclass(frozen=True, slots=True)
class Suited:
    """One backend that suits the machine, best first."""

    backend: str
    device: str
    why: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """What its runtime needs here (a SoC model, a Hexagon version), by option name."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One machine, or one class of machines."""

    name: str
    title: str
    summary: str
    systems: frozenset[str]
    machines: frozenset[str]
    """`platform.machine()` values; empty matches any."""
    features: frozenset[str]
    """CPU features that must all be there."""
    chip: str
    """The processor's own name in full; empty matches any."""
    units: tuple[Unit, ...]
    memory_bandwidth: Figure | None
    """Bytes a second at best, as the maker states it."""
    suited: tuple[Suited, ...]
    sources: tuple[Source, ...]
    data: Mapping[str, Any] = field(repr=False, compare=False)
    """The parsed file, as `edgecore_compile` receives it."""

    def describes(self, machine: Machine) -> bool:
        """True when every condition that the profile states holds on the machine; a profile without any can only be
        named."""
        return (
            bool(self.systems or self.machines or self.features or self.chip)
            and (not self.systems or machine.system in self.systems)
            and (not self.machines or machine.architecture in self.machines)
            and (not self.chip or machine.chip == self.chip)
            and self.features <= machine.features
        )

    @property
    def specificity(self) -> tuple[bool, int]:
        """Greater is more specific: a named chip first, then the number of features."""
        return bool(self.chip), len(self.features)


def match(machine: Machine | None = None, among: Iterable[Profile] | None = None) -> tuple[Profile, ...]:
    """The profiles that describe a machine (this one by default), the most specific first."""
    here = machine or facts()
    found = [p for p in (profiles() if among is None else among) if p.describes(here)]
    return tuple(sorted(found, key=lambda p: p.specificity, reverse=True))


def profile(name: str) -> Profile:
    """A profile by name, or from the TOML file of that path. Raises `BadRequest` that names those that exist."""
    if name.endswith(".toml"):
        return read(Path(name))
    for known in profiles():
        if known.name == name:
            return known
    raise BadRequest(
        f"there is no profile {name!r}",
        supported=", ".join(p.name for p in profiles()) + ", or the path of a .toml file",
        hint="edgecore doctor",
    )


@cache
def profiles() -> tuple[Profile, ...]:
    """Every profile that ships with edgecore, by name."""
    return tuple(read(path) for path in sorted(folder().glob("*.toml")))


def folder() -> Path:
    """Inside the package where it was installed from a wheel, beside it in a clone."""
    inside = Path(__file__).parent / "hwprofiles"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "hwprofiles"


def read(path: Path) -> Profile:
    """One profile from its file. Raises `BadRequest` that names the file and the field."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadRequest(f"{path}: {error.strerror}", supported="a profile as hwprofiles/*.toml are") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"{path}: is not TOML: {error}") from None
    try:
        return _profile(data)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        why = f"{error.args[0]!r} is missing or names nothing" if isinstance(error, KeyError) else str(error)
        raise BadRequest(f"{path}: {why}", supported="what hwprofiles/schema.json says") from None


def _profile(data: Mapping[str, Any]) -> Profile:
    if data["schema"] != SCHEMA:
        raise ValueError(f"schema = {data['schema']!r}: this edgecore reads {SCHEMA}")
    sources = {s["id"]: Source(s["id"], s["title"], s["url"]) for s in data.get("sources", ())}
    conditions = data.get("match", {})
    bandwidth = data.get("memory", {}).get("bandwidth")
    return Profile(
        name=data["name"],
        title=data["title"],
        summary=data.get("summary", ""),
        systems=frozenset(conditions.get("systems", ())),
        machines=frozenset(conditions.get("machines", ())),
        features=frozenset(conditions.get("features", ())),
        chip=conditions.get("chip", ""),
        units=tuple(_unit(unit, sources) for unit in data.get("units", ())),
        memory_bandwidth=bandwidth and _figure(bandwidth, sources),
        suited=tuple(
            Suited(s["backend"], s["device"], s.get("why", ""), s.get("options", {})) for s in data.get("suited", ())
        ),
        sources=tuple(sources.values()),
        data=data,
    )


def _unit(data: Mapping[str, Any], sources: Mapping[str, Source]) -> Unit:
    operations = data.get("operations")
    return Unit(
        name=data["name"],
        precisions=tuple(Precision(p["name"], p["through"], sources[p["source"]]) for p in data.get("precisions", ())),
        operations=operations and _figure(operations, sources),
    )


def _figure(data: Mapping[str, Any], sources: Mapping[str, Source]) -> Figure:
    return Figure(float(data["value"]), sources[data["source"]], data.get("note", ""))
