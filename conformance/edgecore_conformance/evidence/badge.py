"""A badge: claims proven of claims made, the device, the level, and how many rows lean on an exception."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape

_GREEN, _YELLOW, _RED, _GREY, _BLUE = "#2a7d3f", "#8a6d00", "#b3261e", "#5f6368", "#1f5fa8"
_WIDTH = 6.6
"""Pixels a character, generously, so that no font overflows its box."""


def badge(report: Mapping[str, Any]) -> str:
    """SVG with its text as title too, for those who do not see it."""
    header = report["header"]
    left = f"{header['plugin']['name']} · {header['device']['name']} · {header['level']}"
    right = words(report)
    first, second = (round(_WIDTH * len(text)) + 14 for text in (left, right))
    title = escape(f"edgecore conformance: {left}: {right}")
    text = 'font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" fill="#fff" text-anchor="middle"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{first + second}" height="20" role="img" aria-label="{title}">'
        f"<title>{title}</title>"
        f'<rect width="{first}" height="20" fill="#3c4043"/>'
        f'<rect x="{first}" width="{second}" height="20" fill="{colour(report)}"/>'
        f'<g {text}><text x="{first / 2}" y="14">{escape(left)}</text>'
        f'<text x="{first + second / 2}" y="14">{escape(right)}</text></g></svg>\n'
    )


def words(report: Mapping[str, Any]) -> str:
    """`20/21 proven, 1 refuted, 2 exceptions`: zeros are left out, what is bad never is."""
    claims = report["claims"]
    parts = [f"{claims['proven']}/{claims['claimed']} proven"]
    parts += [f"{claims[state]} {state}" for state in ("emulated", "refuted") if claims[state]]
    if number := len(report["exceptions"]):
        parts.append(f"{number} exception{'s' if number > 1 else ''}")
    if not claims["whole"]:
        parts.append(f"{report['rows_selected']} of {report['rows_of_level']} rows")
    return ", ".join(parts)


def colour(report: Mapping[str, Any]) -> str:
    claims = report["claims"]
    if claims["refuted"]:
        return _RED
    if not claims["claimed"] or not claims["whole"]:
        return _GREY
    if claims["proven"] == claims["claimed"]:
        return _GREEN
    return _BLUE if claims["emulated"] == claims["claimed"] else _YELLOW
