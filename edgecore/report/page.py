"""Rows of figures to a page. jinja2 lays it out; the plots are SVG drawn by the template from the numbers here.

Own SVG instead of a plotting library: the plots are bars and dots, and matplotlib or plotly would each be larger than
everything else that the core depends on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2


@dataclass(frozen=True, slots=True)
class Row:
    """One artifact as measured: tokens per second, seconds, bytes, nats; None where not measured."""

    label: str
    bytes: int
    bits_per_weight: float | None
    prefill: float | None
    decode: float | None
    decode_interval: tuple[float, float] | None
    first_token: float | None
    steps: Sequence[float]
    """Raw seconds of every decoded token of every repetition."""
    percentiles: tuple[float, float, float] | None
    """Inter-token p50, p95, p99."""
    load: float | None
    anonymous: int | None
    mapped: int | None
    bandwidth_share: float | None
    """Decode speed over what the measured memory bandwidth would allow."""
    kl_mean: float | None
    kl_p99: float | None
    top1: float | None
    perplexity_ratio: float | None
    verdict: str
    bound: str
    """The bound that the verdict was held to, in words."""
    answer: str = ""


def render(
    title: str, rows: Sequence[Row], facts: Mapping[str, Any], notes: Sequence[str] = (), question: str = ""
) -> str:
    """The page as HTML. `facts` are shown as they come: model, machine, conditions, versions, date."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgecore.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(size=_size, number=_number, ms=_ms, percent=_percent)
    return environment.get_template("report.html.j2").render(
        title=title,
        rows=rows,
        facts=facts,
        notes=notes,
        question=question,
        decode=_bars([(r.label, r.decode, r.decode_interval) for r in rows]),
        prefill=_bars([(r.label, r.prefill, None) for r in rows]),
        divergence=_bars([(r.label, r.kl_mean, None) for r in rows]),
        sizes=_bars([(r.label, r.bytes / 1e6, None) for r in rows]),
        steps=_dots(rows),
    )


def _bars(values: Sequence[tuple[str, float | None, tuple[float, float] | None]]) -> list[dict[str, Any]]:
    """Bars as fractions of the largest value or interval end."""
    largest = max((i[1] if i else v for _, v, i in values if v is not None), default=0.0) or 1.0
    return [
        {
            "label": label,
            "value": value,
            "length": (value or 0.0) / largest,
            "low": interval[0] / largest if interval else None,
            "high": interval[1] / largest if interval else None,
        }
        for label, value, interval in values
    ]


def _dots(rows: Sequence[Row], most: int = 400) -> dict[str, Any]:
    """Raw inter-token times on an axis that ends past the largest p99; what lies beyond is counted, not drawn."""
    end = max((r.percentiles[2] for r in rows if r.percentiles), default=0.0) * 1.1 or 1.0
    lanes = []
    for row in rows:
        shown = [s for s in row.steps if s <= end]
        stride = max(1, len(shown) // most)
        lanes.append(
            {
                "label": row.label,
                "dots": [s / end for s in shown[::stride]],
                "median": row.percentiles[0] / end if row.percentiles else None,
                "beyond": len(row.steps) - len(shown),
            }
        )
    return {"end_ms": end * 1000, "lanes": lanes}


def _size(n: float | None) -> str:
    return "–" if n is None else f"{n / 1e6:.0f} MB"


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else _number(seconds * 1000)


def _percent(share: float | None, digits: int = 0) -> str:
    return "–" if share is None else f"{share * 100:.{digits}f} %"


def _number(value: float | None, digits: int = 3) -> str:
    """Significant digits, without an exponent where a person would not write one."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    return (
        f"{value:.{digits}g}"
        if 0.001 <= abs(value) < 10**digits
        else f"{value:,.0f}"
        if abs(value) >= 1
        else f"{value:.1e}"
    )
