"""The report as JUnit XML, for build servers: one suite a group, one case a row, the outcome's own word kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from edgecore_conformance.outcomes import Outcome

_SKIPPED = (Outcome.NOT_APPLICABLE, Outcome.XFAIL, Outcome.DISABLED, Outcome.UNAVAILABLE)
_ERRORS = (Outcome.ERROR, Outcome.CRASHED, Outcome.TIMEOUT, Outcome.MISSING)
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, escaped or not."""


def junit(report: Mapping[str, Any]) -> str:
    """One document; the header's main facts are the properties."""
    root = ElementTree.Element("testsuites", name="edgecore conformance")
    for group, facts in report["groups"].items():
        rows = [r for r in report["rows"] if r["check"].partition(".")[0] == group]
        kinds = [_kind(Outcome(r["outcome"])) for r in rows]
        suite = ElementTree.SubElement(
            root, "testsuite", name=str(facts["title"]), tests=str(len(rows)), failures=str(kinds.count("failure")),
            errors=str(kinds.count("error")), skipped=str(kinds.count("skipped")),
            time=f"{sum(r['seconds'] for r in rows):.3f}", timestamp=str(report["header"]["begun"]),
        )  # fmt: skip
        _properties(suite, report["header"])
        for row in rows:
            _case(suite, row)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _kind(outcome: Outcome) -> str:
    if outcome in (Outcome.PASSED, Outcome.UNSUPPORTED):
        return ""
    if outcome in _SKIPPED:
        return "skipped"
    return "error" if outcome in _ERRORS else "failure"


def _case(suite: ElementTree.Element, row: Mapping[str, Any]) -> None:
    case = ElementTree.SubElement(
        suite, "testcase", classname=str(row["check"]), name=str(row["row"]), time=f"{row['seconds']:.3f}"
    )
    if kind := _kind(Outcome(row["outcome"])):
        first = str(row["message"]).partition("\n")[0]
        told = ElementTree.SubElement(
            case, kind, type=str(row["outcome"]), message=_clean(f"{row['outcome']}: {first}")
        )
        if kind != "skipped":
            told.text = _clean(str(row["message"]))
    if row["figures"]:
        ElementTree.SubElement(case, "system-out").text = _clean("\n".join(map(_figure, row["figures"])))


def _figure(figure: Mapping[str, Any]) -> str:
    bound = "" if figure["bound"] is None else f" {figure['relation']} {figure['bound']:.6g}"
    value = "not finite" if figure["value"] is None else f"{figure['value']:.6g}"
    return f"{figure['name']} = {value}{bound} {figure['unit']}".rstrip()


def _properties(suite: ElementTree.Element, header: Mapping[str, Any]) -> None:
    holder = ElementTree.SubElement(suite, "properties")
    for name, value in (
        ("plugin", f"{header['plugin']['name']} {header['plugin']['version']}"),
        ("runtime", f"{header['runtime']['distribution']} {header['runtime']['version']}"),
        ("device", header["device"]["name"]),
        ("level", header["level"]),
        ("seed", header["seed"]),
        ("suite", f"{header['suite']['version']} {header['suite']['digest']}"),
    ):
        ElementTree.SubElement(holder, "property", name=name, value=_clean(str(value)))


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("�", text)
