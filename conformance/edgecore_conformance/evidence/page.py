"""The report as one page that needs nothing else: a matrix of checks and cells; each opens its figures, without script.

jinja2 lays it out, as in the core's own report; this module only arranges what report.json says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from edgecore_conformance.evidence.badge import words
from edgecore_conformance.outcomes import Outcome

GOOD = ("passed", "unsupported")
MARKS = {
    "passed": "✓", "unsupported": "✓", "not_applicable": "–", "xfail": "!", "disabled": "!", "unavailable": "?",
    "unplaced": "?", "fell_back": "✗", "xpass": "✗", "failed": "✗", "timeout": "✗", "crashed": "✗", "error": "✗",
    "missing": "✗",
}  # fmt: skip
"""Beside the word, never instead of it: colour alone tells some people nothing."""


def page(report: Mapping[str, Any]) -> str:
    """HTML with its style inside and no address of anything outside."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgecore_conformance.evidence", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(number=_number, kind=_kind, spaced=lambda word: str(word).replace("_", " "))
    rows = [{**row, "id": f"r{n}"} for n, row in enumerate(report["rows"])]
    claims = [_claim(n, claim, rows) for n, claim in enumerate(report["claims"]["of"])]
    return environment.get_template("page.html.j2").render(
        report=report,
        header=report["header"],
        words=words(report),
        marks=MARKS,
        groups=[_matrix(name, facts, rows, report["checks"]) for name, facts in report["groups"].items()],
        tables=claim_tables(claims),
        claims=claims,
        rows=rows,
        facts=facts_of(report["header"]),
    )


def _matrix(
    name: str, facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], summaries: Mapping[str, str]
) -> dict[str, Any]:
    """One group: checks down, cells across. Checks with cells of a kind share a table: none is mostly holes."""
    inside = [r for r in rows if r["check"].partition(".")[0] == name]
    by_check: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in inside:
        by_check.setdefault(row["check"], {})[_label(row["cell"])] = row
    tables: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for check, cells in by_check.items():
        kind = tuple(sorted({key for row in cells.values() for key in row["cell"]}))
        tables.setdefault(kind, []).append({"check": check, "summary": summaries.get(check, ""), "cells": cells})
    return {
        **facts,
        "name": name,
        "tables": [
            {"columns": list(dict.fromkeys(label for line in lines for label in line["cells"])), "lines": lines}
            for lines in tables.values()
        ],
    }


def _label(cell: Mapping[str, str]) -> str:
    """`gemma3`; `gemma3, f16` where a cell has more than one field; empty for the only one."""
    return ", ".join(cell[key] for key in sorted(cell))


def _claim(number: int, claim: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """With the id of its section, and its reasons: each with the row that it is about, where it is about one."""
    ids = {row["row"]: row["id"] for row in rows}
    reasons = [(words, ids.get(words.rpartition(": ")[0], "")) for words in claim["because"]]
    return {**claim, "id": f"c{number}", "reasons": reasons}


def claim_tables(claims: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Families down, precisions across: one table a task, format and device."""
    tables: dict[tuple[str, str, str], dict[str, Any]] = {}
    for claim in claims:
        key = (claim["task"], claim["format"], claim["device"])
        table = tables.setdefault(key, {"title": ", ".join(key), "precisions": {}, "families": {}})
        table["precisions"][claim["precision"]] = True
        table["families"].setdefault(claim["family"], {})[claim["precision"]] = claim
    return list(tables.values())


def facts_of(header: Mapping[str, Any]) -> dict[str, str]:
    """The header in words."""
    host, device = header["host"], header["device"]
    return {
        "plugin": f"{header['plugin']['distribution']} {header['plugin']['version']} ({header['plugin']['origin']})",
        "runtime": f"{header['runtime']['distribution']} {header['runtime']['version'] or 'missing'}",
        "loaded": ", ".join(f"{n} {v}" for n, v in header["drivers"].items()),
        "device": f"{device['name']}{' (emulated)' if device['emulated'] else ''}: {device.get('description', '')}",
        "machine": f"{host['chip']}, {host['threads']} of {host['cpus']} CPUs, {host['memory'] / 1e9:.1f} GB",
        "system": f"{host['system']} {host['release']} {host['architecture']}, {header['python']}",
        "power": ", ".join(f"{n}: {v}" for n, v in header["power"].items()) or "not told",
        "suite": f"{header['suite']['version']}, digest {header['suite']['digest'][:16]}",
        "contract": f"{header['contract']}, edgecore {header['core']}",
        "level, seed": f"{header['level']}, {header['seed']}",
        "command": header["command"],
        "begun": header["begun"],
        "run": header["run"],
    }


def _kind(outcome: str) -> str:
    """The class that colours it."""
    if outcome in GOOD:
        return "good"
    if outcome == "not_applicable":
        return "none"
    return "weak" if Outcome(outcome).good or outcome == "unplaced" else "bad"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"
