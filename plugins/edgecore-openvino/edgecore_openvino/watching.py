"""NNCF shows its progress as bars on the screen and cannot be asked to stop. Here its bars become our reports, and
what a report raises ends NNCF."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from typing import Any

from nncf.common.logging.track_progress import track

from edgecore.contract import Progress


@contextmanager
def watched(progress: Progress) -> Iterator[None]:
    """Within it every `track` of NNCF reports to `progress` and prints nothing, and its log keeps to errors.

    A bar within a bar (the statistics of one layer within all layers) repeats what the outer one said.
    """
    outer: list[tuple[int, int, str]] = []

    def reported(self: Any) -> Iterator[Any]:
        total = int(self.total if self.total is not None else len(self.sequence))
        done = 0
        for weight, item in zip(chain(self.weights or (), repeat(1)), self.sequence, strict=False):
            outer.append((min(done, total), total, self.description.lower()))
            progress(*outer[0])
            try:
                yield item
            finally:
                outer.pop()
            done += weight
        if not outer:
            progress(total, total, self.description.lower())

    log = logging.getLogger("nncf")
    level, bars = log.level, track.__iter__
    log.setLevel(logging.ERROR)
    track.__iter__ = reported
    try:
        yield
    finally:
        track.__iter__ = bars
        log.setLevel(level)
