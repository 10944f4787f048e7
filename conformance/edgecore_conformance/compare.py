"""What changed between two bundles: rows whose outcome changed, figures that moved, claims, versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgecore.contract.errors import BadRequest
from edgecore_conformance.bundle import open_bundle
from edgecore_conformance.evidence.report import validate
from edgecore_conformance.outcomes import Outcome

MOVED = 0.05
"""A figure has moved when it differs by more than this of the larger, and by more than this of its bound."""
_CONDITIONS = (
    ("suite", "version"), ("suite", "digest"), ("core",), ("contract",), ("plugin", "name"), ("plugin", "version"),
    ("plugin", "manifest"), ("runtime", "version"), ("drivers",), ("device", "name"), ("device", "description"),
    ("level",), ("seed",), ("model",), ("host", "chip"), ("host", "system"), ("host", "release"), ("host", "threads"),
    ("power",), ("python",),
)  # fmt: skip
_CLAIM = ("task", "family", "format", "precision", "device")
_ORDER = ("proven", "emulated", "unproven", "refuted")


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that differs; None stands for what one side lacks."""

    what: str
    before: Any
    after: Any
    worse: bool = False


@dataclass(slots=True)
class Difference:
    """From bundle A to bundle B."""

    conditions: list[Change] = field(default_factory=list)
    rows: list[Change] = field(default_factory=list)
    figures: list[Change] = field(default_factory=list)
    claims: list[Change] = field(default_factory=list)

    @property
    def worse(self) -> bool:
        return any(c.worse for c in (*self.rows, *self.claims))

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "worse": self.worse}


def compare(before: Path, after: Path) -> Difference:
    """Raises `BadRequest` for a folder that is no bundle. Verifies neither."""
    a, b = _report(before), _report(after)
    old, new = ({r["row"]: r for r in report["rows"]} for report in (a, b))
    return Difference(
        list(_conditions(a["header"], b["header"])),
        list(_rows(old, new)),
        list(_figures(old, new)),
        list(_claims(a, b)),
    )


def _report(folder: Path) -> Mapping[str, Any]:
    report = open_bundle(folder).report
    try:
        validate(report)
    except BadRequest as error:
        raise BadRequest(f"{folder}: {error.what}", supported=error.supported) from None
    return report


def _conditions(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Change]:
    for path in _CONDITIONS:
        old, new = _at(a, path), _at(b, path)
        if old != new:
            yield Change(" ".join(path), old, new)


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _rows(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    order = [o.value for o in Outcome]
    for row in [*old, *(r for r in new if r not in old)]:
        was, now = (side[row]["outcome"] if row in side else None for side in (old, new))
        if was != now:
            yield Change(row, was, now, worse=bool(was and now and order.index(now) > order.index(was)))


def _figures(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for row, then in old.items():
        now = {f["name"]: f for f in new.get(row, {}).get("figures", ())}
        for figure in then["figures"]:
            other = now.get(figure["name"])
            if other is not None and moved(figure["value"], other["value"], other["bound"]):
                yield Change(f"{row} {figure['name']}", figure["value"], other["value"])


def moved(a: float | None, b: float | None, bound: float | None) -> bool:
    """Whether a figure went further than the noise of a repeated run."""
    if a is None or b is None:
        return a is not b
    return abs(a - b) > MOVED * max(abs(a), abs(b), abs(bound or 0.0))


def _claims(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Change]:
    old, new = ({" ".join(str(c[n]) for n in _CLAIM): c["state"] for c in r["claims"]["of"]} for r in (a, b))
    for claim in [*old, *(c for c in new if c not in old)]:
        was, now = old.get(claim), new.get(claim)
        if was != now:
            yield Change(claim, was, now, worse=bool(was and now and _ORDER.index(now) > _ORDER.index(was)))
