"""report.json: header, rows, sums that add up to the selection, groups, claims; its schema ships beside this file."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from edgecore.contract.errors import BadRequest
from edgecore.contract.manifest import Manifest
from edgecore_conformance.check import GROUPS, Cell, Check, row_id
from edgecore_conformance.claims import counted, find_claims
from edgecore_conformance.known import concerning
from edgecore_conformance.outcomes import Outcome, worst
from edgecore_conformance.rows import Row

SCHEMA_VERSION = 1
SCHEMA = "report.schema.json"


def build(
    header: Mapping[str, Any],
    sessions: Sequence[Mapping[str, Any]],
    manifest: Manifest,
    rows: Sequence[Row],
    pairs: Sequence[tuple[Check, Cell]],
) -> dict[str, Any]:
    """The report without its `files`. A function of its arguments alone: `verify` builds it again.

    rows:  one for each selected row, in order.
    pairs: every row that the level has for this plugin.
    """
    device = str(header["device"]["name"])
    mine = concerning(manifest, device)
    every = [(row_id(c.name(), cell), c.proves(manifest if c.whole else mine, cell)) for c, cell in pairs]
    findings = find_claims(manifest, device, rows, every)
    checks = {c.name(): c.summary() for c, _ in pairs}
    report = {
        "schema_version": SCHEMA_VERSION,
        "header": dict(header),
        "sessions": [dict(s) for s in sessions],
        "outcome": aggregate(rows).value,
        "rows_of_level": len(every),
        "rows_selected": len(rows),
        "outcomes": outcomes(rows),
        "groups": groups(rows, [i for i, _ in every]),
        "claims": {
            **counted(findings, device),
            "whole": len(rows) == len(every),
            "of": [f.to_dict() for f in findings],
        },
        "exceptions": exceptions(rows),
        "checks": {name: checks[name] for name in dict.fromkeys(r.check for r in rows) if name in checks},
        "rows": [row_of(r) for r in rows],
    }
    plain: dict[str, Any] = json.loads(json.dumps(_finite(report)))
    return plain


def row_of(row: Row) -> dict[str, Any]:
    """A row as the report has it: as the row file has it, without the state."""
    data = row.to_dict()
    del data["state"]
    return data


def aggregate(rows: Sequence[Row]) -> Outcome:
    """The worst of them. Rows that do not apply say nothing where others do."""
    return worst([r.outcome for r in rows if r.outcome is not Outcome.NOT_APPLICABLE] or [r.outcome for r in rows])


def outcomes(rows: Iterable[Row]) -> dict[str, int]:
    """How many of each, from the best to the worst; words that did not occur are left out."""
    found = Counter(r.outcome for r in rows)
    return {o.value: found[o] for o in Outcome if found[o]}


def groups(rows: Sequence[Row], every: Sequence[str]) -> dict[str, Any]:
    """By group: rows that are good, rows that were selected, rows that there are; and the worst outcome."""
    made = {}
    for group, title in GROUPS.items():
        inside = [r for r in rows if r.check.partition(".")[0] == group]
        total = sum(i.partition(".")[0] == group for i in every)
        if total or inside:
            made[group] = {
                "title": title,
                "outcome": aggregate(inside).value if inside else "not_selected",
                "good": sum(r.outcome.good for r in inside),
                "rows": len(inside),
                "of": total,
                "outcomes": outcomes(inside),
            }
    return made


def exceptions(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Every row that an entry of conformance.toml speaks of."""
    return [{"row": r.row, "outcome": r.outcome.value, **r.exception} for r in rows if r.exception]


def schema() -> dict[str, Any]:
    """The published JSON schema of report.json."""
    text = resources.files("edgecore_conformance.evidence").joinpath(SCHEMA).read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def validate(report: Any) -> None:
    """Raises `BadRequest` that names the place where a report is not what the schema says."""
    import jsonschema

    validator = jsonschema.Draft202012Validator(schema())
    error = next(iter(sorted(validator.iter_errors(report), key=lambda e: len(e.absolute_path))), None)
    if error is not None:
        where = "/".join(map(str, error.absolute_path)) or "the top"
        raise BadRequest(f"report.json at {where}: {error.message[:300]}", supported=f"version {SCHEMA_VERSION}")


def _finite(value: Any) -> Any:
    """JSON has no infinity: None stands for it."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {k: _finite(v) for k, v in value.items()}
        case list() | tuple():
            return [_finite(v) for v in value]
    return value
