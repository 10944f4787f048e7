"""mlx-lm shows its progress as bars on the screen and cannot be asked to stop. Here a step of a bar becomes a step of
our reports, and what a report raises ends the work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from edgecore.contract import Progress


@contextmanager
def watched(module: ModuleType, progress: Progress, total: int, stage: str) -> Iterator[None]:
    """Within it all bars that functions of `module` make report to `progress` as one, of `total` steps, and print
    nothing."""
    steps = _Steps(progress, total, stage)

    class Bar:
        """As much of tqdm as mlx-lm uses."""

        def __init__(self, items: Iterable[Any], **_: Any) -> None:
            self._items = items

        def __iter__(self) -> Iterator[Any]:
            for item in self._items:
                steps.next()
                yield item

        def set_description(self, *_: Any, **__: Any) -> None:
            pass

        @staticmethod
        def write(*_: Any, **__: Any) -> None:
            pass

    bars = vars(module)["tqdm"]
    vars(module)["tqdm"] = Bar
    try:
        yield
    finally:
        vars(module)["tqdm"] = bars
    progress(total, total, stage)


class _Steps:
    def __init__(self, progress: Progress, total: int, stage: str) -> None:
        self._progress, self._total, self._stage = progress, total, stage
        self._done = 0

    def next(self) -> None:
        self._progress(min(self._done, self._total), self._total, self._stage)
        self._done += 1
