"""Progress and cancellation are one thing to a plugin: it reports, and the report raises when nobody waits any more."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Call it often; it is cheap. Raises `Cancelled` when the caller asked to stop."""

    def __call__(self, done: int, total: int, stage: str = "") -> None:
        """`done` of `total` units (bytes wherever bytes are known) of `stage`, never decreasing within a stage."""


def no_progress(done: int, total: int, stage: str = "") -> None:
    """For callers that do not watch."""
