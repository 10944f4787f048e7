"""Where the work ran, and who says so. A setting that merely was asked for is not evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class PlacementSource(StrEnum):
    """Who says where it ran, from the strongest to none."""

    RUNTIME_PROFILE = "runtime-profile"
    """Measured by the runtime while it ran, operator by operator."""
    RUNTIME_ASSIGNMENT = "runtime-assignment"
    """The runtime's own account of how it partitioned the graph."""
    OUTSIDE = "outside"
    """CPU time, loaded libraries or device counters, seen from outside the plugin."""
    NONE = "none"
    """Nobody knows."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Share of the work by compute unit, as fractions that sum to 1, or empty where unknown."""

    source: PlacementSource = PlacementSource.NONE
    operators: Mapping[str, float] = field(default_factory=dict)
    """Fraction of operators (or layers) by compute unit."""
    time: Mapping[str, float] = field(default_factory=dict)
    """Fraction of run time by compute unit."""
    detail: str = ""
    """What the source literally said, in one line."""

    def share(self, device: str) -> float | None:
        """The fraction on `device`, by time where known, else by operators; None where nobody knows."""
        known = self.time or self.operators
        return known.get(device, 0.0) if known else None
