"""What must be said beside figures, in sentences."""

from __future__ import annotations

from edgecore.measure import Comparison

NOISY = 0.1
"""Noise floor above which a reader is told that the figures mean little."""


def remarks(comparison: Comparison) -> list[str]:
    """Ratios, the noise floor and whatever speaks against the figures, one line each."""
    lines = [
        f"{r.label} over {r.over}, {r.what}: {r.interval.median:.3f} ({r.interval.low:.3f} to {r.interval.high:.3f})"
        for r in comparison.ratios
    ]
    if comparison.noise_floor is not None:
        lines.append(f"noise floor (the first arm against itself): {comparison.noise_floor:.1%}")
        if comparison.noise_floor > NOISY:
            lines.append("this machine was busy: measure again when it is quiet before you believe a difference")
    if comparison.bandwidth:
        lines.append(f"memory bandwidth measured here: {comparison.bandwidth / 1e9:.1f} GB/s")
    lines += [f"not comparable: {reason}" for reason in comparison.not_comparable]
    return lines + [f"note: {note}" for note in comparison.notes]
