"""What a plugin's author knows to fail, said beside the plugin, with a reason and an end: `conformance.toml`.

    [[exceptions]]
    check = "text.seeds"             # or a pattern: "text.*"
    when = { device = "gpu", precision = "q2_*", level = "quick", platform = "linux-*" }
    kind = "xfail"                   # xfail: fails; flaky: tried up to three times; disabled: not run
    reason = "the sampler of the GPU build draws anew"
    issue = "https://example.org/issues/7"
    expires = 2027-03-01

An entry that no row matches, or that has expired, is an error: exceptions are kept short by force. A claim that leans
on one is not proven.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from edgecore.contract.errors import BadRequest
from edgecore.registry import Entry
from edgecore_conformance.outcomes import Outcome
from edgecore_conformance.rows import Row

if TYPE_CHECKING:
    from edgecore_conformance.check import Cell, Check
    from edgecore_conformance.run import Run

FILE = "conformance.toml"
KINDS = ("xfail", "flaky", "disabled")
LEVELS = ("quick", "full")
TRIES = 3
"""How often a flaky row is run before it counts as failed."""
_REQUIRED = ("check", "kind", "reason", "issue", "expires")
_FAILED = (Outcome.FAILED, Outcome.TIMEOUT, Outcome.CRASHED, Outcome.FELL_BACK, Outcome.UNPLACED)


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What an entry's `when` may ask for, beside the fields of a cell."""

    device: str
    level: str
    platform: str
    """`linux-x86_64`, `darwin-arm64`, `windows-amd64`."""

    @classmethod
    def of(cls, run: Run) -> Self:
        import platform

        return cls(run.known.device, run.known.level, f"{platform.system()}-{platform.machine()}".lower())


@dataclass(frozen=True, slots=True)
class Expectation:
    """One entry."""

    check: str
    kind: str
    reason: str
    issue: str
    expires: date
    when: Mapping[str, str] = field(default_factory=dict)

    def here(self, around: Circumstances) -> bool:
        """Whether this run is one that the entry speaks of at all."""
        return all(fnmatchcase(getattr(around, n), self.when[n]) for n in _AROUND if n in self.when)

    def matches(self, name: str, cell: Mapping[str, str], around: Circumstances) -> bool:
        asked = {n: pattern for n, pattern in self.when.items() if n not in _AROUND}
        return (
            fnmatchcase(name, self.check)
            and self.here(around)
            and all(fnmatchcase(cell.get(n, ""), pattern) for n, pattern in asked.items())
        )

    def to_dict(self) -> dict[str, Any]:
        """As a row's `exception` and the header keep it."""
        return {
            "check": self.check, "when": dict(self.when), "kind": self.kind, "reason": self.reason,
            "issue": self.issue, "expires": self.expires.isoformat(),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls(**{**data, "expires": date.fromisoformat(data["expires"])})


_AROUND = ("device", "level", "platform")


@dataclass(frozen=True, slots=True)
class Expectations:
    """The entries that a run goes by."""

    entries: tuple[Expectation, ...] = ()

    def find(self, name: str, cell: Mapping[str, str], around: Circumstances) -> Expectation | None:
        """The first that matches."""
        return next((e for e in self.entries if e.matches(name, cell, around)), None)

    def hold(self, rows: Iterable[tuple[str, Mapping[str, str]]], around: Circumstances, today: date) -> None:
        """Raises `BadRequest` for an entry that has expired, or that speaks of this run and matches no row of it.

        rows: name and cell of every row that there is, selected or not.
        """
        every = list(rows)
        for number, entry in enumerate(self.entries, 1):
            where = f"{FILE}: exception {number} ({entry.check})"
            if entry.expires < today:
                raise BadRequest(
                    f"{where} expired on {entry.expires}: {entry.reason}",
                    supported="an entry that is looked at again, or none",
                    hint="the same with --no-expectations",
                )
            if entry.here(around) and not any(entry.matches(name, cell, around) for name, cell in every):
                raise BadRequest(
                    f"{where} matches no row",
                    supported="names and patterns of checks, and fields of their cells",
                    hint="edgecore conformance list",
                )

    def disabled(self, check: Check, cell: Cell, run: Run) -> Row | None:
        """The row of a check that is not run, because an entry says so."""
        from edgecore_conformance.check import row_id
        from edgecore_conformance.running import inapplicable, manifest_for

        entry = self.find(check.name(), cell, Circumstances.of(run))
        if entry is None or entry.kind != "disabled" or inapplicable(check, run.known) is not None:
            return None
        return Row(
            row_id(check.name(), cell), check.name(), dict(cell), Outcome.DISABLED, message=entry.reason,
            proves=dict(check.proves(manifest_for(check, run.known), cell)), exception=entry.to_dict(),
        )  # fmt: skip

    def applied(self, row: Row, run: Run, again: Callable[[], Row] | None = None) -> Row:
        """The row with its exception, where there is one. `again` runs it anew, for flaky ones."""
        entry = self.find(row.check, row.cell, Circumstances.of(run))
        if entry is None or entry.kind == "disabled":
            return row
        if entry.kind == "xfail":
            return replace(row, outcome=excused(row.outcome), exception=entry.to_dict())
        tries = [row]
        while tries[-1].outcome in _FAILED and again is not None and len(tries) < TRIES:
            tries.append(again())
        told = ", ".join(t.outcome.value for t in tries)
        return replace(tries[-1], exception={**entry.to_dict(), "tries": told})


def excused(outcome: Outcome) -> Outcome:
    """What xfail makes of an outcome."""
    if outcome in _FAILED:
        return Outcome.XFAIL
    return Outcome.XPASS if outcome is Outcome.PASSED else outcome


def read_expectations(entry: Entry) -> Expectations:
    """Of the plugin's own file, beside its manifest. Raises `BadRequest` that names the entry and the field."""
    file = Path(entry.location).with_name(FILE)
    if not entry.location or not file.is_file():
        return Expectations()
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"{FILE} of {entry.name}: {error}", supported="TOML") from None
    return Expectations(parse(data, f"{FILE} of {entry.name}"))


def parse(data: Mapping[str, Any], where: str) -> tuple[Expectation, ...]:
    """Entries from parsed TOML. Raises `BadRequest`."""
    if surplus := set(data) - {"exceptions"}:
        raise BadRequest(f"{where}: {', '.join(sorted(surplus))}", supported="[[exceptions]]")
    entries = data.get("exceptions", [])
    if not isinstance(entries, Sequence) or not all(isinstance(e, Mapping) for e in entries):
        raise BadRequest(f"{where}: exceptions is no array of tables", supported="[[exceptions]]")
    return tuple(_entry(e, f"{where}: exception {n}") for n, e in enumerate(entries, 1))


def _entry(data: Mapping[str, Any], where: str) -> Expectation:
    wanted = ", ".join((*_REQUIRED, "when"))
    missing = [n for n in _REQUIRED if not data.get(n)]
    if missing or (surplus := sorted(set(data) - {*_REQUIRED, "when"})):
        raise BadRequest(f"{where}: {'without ' + missing[0] if missing else surplus[0]}", supported=wanted)
    if data["kind"] not in KINDS:
        raise BadRequest(f"{where}: kind = {data['kind']!r}", supported=", ".join(KINDS))
    expires, when = data["expires"], data.get("when", {})
    expires = expires.date() if isinstance(expires, datetime) else expires
    if not isinstance(expires, date):
        raise BadRequest(f"{where}: expires = {expires!r}", supported="a date, like 2027-03-01")
    if not isinstance(when, Mapping) or not all(isinstance(v, str) for v in when.values()):
        raise BadRequest(f"{where}: when = {when!r}", supported="fields of a cell, device, level, platform, as strings")
    texts = {n: data[n] for n in ("check", "kind", "reason", "issue")}
    if wrong := [n for n, text in texts.items() if not isinstance(text, str)]:
        raise BadRequest(f"{where}: {wrong[0]} = {data[wrong[0]]!r}", supported="a string")
    if "level" in when and not any(fnmatchcase(level, when["level"]) for level in LEVELS):
        raise BadRequest(f"{where}: level = {when['level']!r}", supported=", ".join(LEVELS))
    return Expectation(**texts, expires=expires, when=dict(when))


def today() -> date:
    return datetime.now(UTC).date()
