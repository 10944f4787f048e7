"""The one table that shows speed, always with the quality beside it."""

from __future__ import annotations

from collections.abc import Sequence

from edgecore.cli.output import size, table
from edgecore.report import Row


def speed_table(rows: Sequence[Row]) -> str:
    """One line an arm; rates in tokens per second with the 95 % interval of decode, times in milliseconds."""
    headers = (
        "artifact", "size", "bits/weight", "prefill t/s", "decode t/s", "95 %", "bandwidth", "first token",
        "p50/p95/p99 ms", "memory anon + mapped", "KL", "top-1", "verdict",
    )  # fmt: skip
    return table(headers, [_cells(row) for row in rows], right=range(1, len(headers) - 1))


def _cells(row: Row) -> tuple[str, ...]:
    memory = [size(n) if n is not None else "?" for n in (row.anonymous, row.mapped)]
    return (
        row.label,
        size(row.bytes),
        _number(row.bits_per_weight, ".2f"),
        _number(row.prefill, ".0f"),
        _number(row.decode, ".1f"),
        f"{row.decode_interval[0]:.1f}-{row.decode_interval[1]:.1f}" if row.decode_interval else "",
        _number(row.bandwidth_share, ".0%"),
        f"{row.first_token * 1000:.0f} ms" if row.first_token is not None else "",
        "/".join(f"{p * 1000:.2f}" for p in row.percentiles) if row.percentiles else "",
        f"{memory[0]} + {memory[1]}",
        _number(row.kl_mean, ".2g"),
        _number(row.top1, ".1%"),
        row.verdict,
    )


def _number(value: float | None, how: str) -> str:
    return "" if value is None else format(value, how)
