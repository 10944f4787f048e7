"""What a run leaves for others: report.json, JUnit, a page to look at, a badge, and a note for `edgecore backends`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgecore_conformance import bundle
from edgecore_conformance.evidence.badge import badge
from edgecore_conformance.evidence.junit import junit
from edgecore_conformance.evidence.page import page
from edgecore_conformance.evidence.record import record
from edgecore_conformance.evidence.report import build, validate

if TYPE_CHECKING:
    from edgecore_conformance.run import Run

__all__ = ["rendered", "write_reports"]


def write_reports(run: Run) -> dict[str, Any]:
    """Writes every report of a run that ended, however it ended; answers what report.json says."""
    header = json.loads((run.folder / "header.json").read_text(encoding="utf-8"))
    sessions = json.loads((run.folder / "sessions.json").read_text(encoding="utf-8"))
    pairs = [(c, cell) for c, cell in run.pairs()]
    report = build(header, sessions, run.known.whole, run.finished(), pairs)
    for name, text in rendered(report).items():
        (run.folder / name).write_text(text, encoding="utf-8", newline="\n")
    report["files"] = bundle.digests(run.folder)
    validate(report)
    (run.folder / bundle.REPORT).write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    record(report)
    return report


def rendered(report: Mapping[str, Any]) -> dict[str, str]:
    """The reports that follow from report.json alone, by file name: `verify` makes them again."""
    return {bundle.JUNIT: junit(report), bundle.PAGE: page(report), bundle.BADGE: badge(report)}
