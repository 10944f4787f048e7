"""From rows to claims: what is proven on this device, and what each other claim lacks. Worst of, never an average.

A row speaks of a claim when every field that its `proves` names is the claim's. The rows counted are all that the level
has, selected or not: leaving rows out proves nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from edgecore.contract.manifest import Claim, Manifest
from edgecore_conformance.outcomes import Outcome
from edgecore_conformance.rows import Row

TASKS = ("text", "tensor")
"""Groups whose rows speak of claims of their own task only."""
_REFUTES = (Outcome.FAILED, Outcome.TIMEOUT, Outcome.CRASHED, Outcome.FELL_BACK)
_REASONS = 5
"""Rows that a claim names as its reasons; the rest is counted."""


class ClaimState(StrEnum):
    """What became of a claim."""

    PROVEN = "proven"
    """Every row that speaks of it is good, and its family and its precision were each run."""
    EMULATED = "emulated"
    """The same on a device that is declared emulated: never counted as proven."""
    UNPROVEN = "unproven"
    """Could not be run here, was not selected, or leans on an exception."""
    REFUTED = "refuted"
    """A row that speaks of it failed."""
    STALE = "stale"
    """Once proven with another plugin, runtime, driver or suite version; only a record that is read later says so."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One claim, with its numerator and denominator."""

    claim: Claim
    state: ClaimState
    good: int
    """Rows that speak of it, and on which it may lean."""
    rows: int
    """Rows of the level that speak of it."""
    because: tuple[str, ...] = ()
    """Why it is not proven: rows with their outcomes, or words."""

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self.claim), "state": self.state.value, "good": self.good, "rows": self.rows,
            "because": list(self.because),
        }  # fmt: skip


def find_claims(
    manifest: Manifest, device: str, rows: Sequence[Row], every: Iterable[tuple[str, Mapping[str, str]]]
) -> list[Finding]:
    """Every claim of the manifest, those of other devices too.

    every: id and `proves` of each row that the level has, in order; those without a row in `rows` were not selected.
    """
    done = {row.row: row for row in rows}
    spoken = [(i, {**_task(i), **proves}, done.get(i)) for i, proves in every]
    return [_find(claim, manifest, device, spoken) for claim in manifest.claims]


def _task(row: str) -> dict[str, str]:
    group = row.partition(".")[0]
    return {"task": group} if group in TASKS else {}


def _find(
    claim: Claim, manifest: Manifest, device: str, spoken: Iterable[tuple[str, Mapping[str, str], Row | None]]
) -> Finding:
    if claim.device != device:
        return Finding(claim, ClaimState.UNPROVEN, 0, 0, (f"about {claim.device}, this run is about {device}",))
    concerned = [(i, p, r) for i, p, r in spoken if all(getattr(claim, n, v) == v for n, v in p.items())]
    bad = [(i, r) for i, _, r in concerned if r is None or not leans_on(r)]
    good, rows = len(concerned) - len(bad), len(concerned)
    refuting = [(i, r) for i, r in bad if r is not None and r.outcome in _REFUTES]
    if refuting:
        return Finding(claim, ClaimState.REFUTED, good, rows, _told(refuting))
    if bad:
        return Finding(claim, ClaimState.UNPROVEN, good, rows, _told(bad))
    for name in ("precision", "family"):
        if not any(n == name for _, p, r in concerned if r and r.outcome is Outcome.PASSED for n in p):
            why = f"no row ran {name} {getattr(claim, name)}"
            return Finding(claim, ClaimState.UNPROVEN, good, rows, (why,))
    emulated = (found := manifest.device(device)) is not None and found.emulated
    return Finding(claim, ClaimState.EMULATED if emulated else ClaimState.PROVEN, good, rows)


def leans_on(row: Row) -> bool:
    """Whether a claim may lean on a row: good, and without an exception."""
    return row.outcome.proves and not row.exception


def _told(rows: Sequence[tuple[str, Row | None]]) -> tuple[str, ...]:
    words = [f"{i}: {_word(r)}" for i, r in rows[:_REASONS]]
    return (*words, f"and {len(rows) - _REASONS} more") if len(rows) > _REASONS else tuple(words)


def _word(row: Row | None) -> str:
    if row is None:
        return "not selected"
    kind = row.exception.get("kind")
    return f"{row.outcome.value} ({kind})" if kind == "flaky" else row.outcome.value


def counted(findings: Iterable[Finding], device: str) -> dict[str, int]:
    """States of the claims about this device, and how many there are: `{"claimed": 21, "proven": 20, ...}`."""
    here = [f for f in findings if f.claim.device == device]
    states = Counter(f.state.value for f in here)
    return {"claimed": len(here), **{s.value: states[s.value] for s in ClaimState if s is not ClaimState.STALE}}
