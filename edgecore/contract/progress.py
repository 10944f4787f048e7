"""Progress and cancellation are one thing to a plugin: it reports, and the report raises when nobody waits any more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol


class Progress(Protocol):
    """Call it often; it is cheap. Raises `Cancelled` when the caller asked to stop."""

    def __call__(self, done: int, total: int, stage: str = "") -> None:
        """`done` of `total` units (bytes wherever bytes are known) of `stage`, never decreasing within a stage."""


def no_progress(done: int, total: int, stage: str = "") -> None:
    """For callers that do not watch."""


@contextmanager
def watch_growth(
    path: Path, predicted: int, progress: Progress, stage: str = "writing", every: float = 0.2
) -> Iterator[None]:
    """Reports bytes written over bytes predicted while the body runs, for a runtime that writes and tells nothing.

    path:      the file, or the folder, that grows; it need not exist yet.
    predicted: bytes that it will have; reports stop short of them until the body has ended.
    every:     seconds between reports, which come from a thread: the body must let other threads run, as ctypes does.

    When a report raises (`Cancelled`), the body goes on, because a native call cannot be interrupted from outside, and
    the exception is raised once it has ended. A caller that will not wait ends the worker instead.
    """
    stop = threading.Event()
    raised: list[BaseException] = []

    def watch() -> None:
        reported = 0
        while not stop.wait(every):
            reported = max(reported, min(grown(path), predicted - 1))
            try:
                progress(reported, predicted, stage)
            except BaseException as error:  # handed to the caller's thread below
                raised.append(error)
                return

    progress(0, predicted, stage)
    thread = threading.Thread(target=watch, name="edgecore-watch-growth", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if raised:
        raise raised[0]
    progress(predicted, predicted, stage)


def grown(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; those that vanish meanwhile count as nothing."""
    total = 0
    for file in path.rglob("*") if path.is_dir() else (path,):
        with suppress(OSError):
            total += file.stat().st_size
    return total
