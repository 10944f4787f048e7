"""Progress of libraries that tell none: bytes written over bytes predicted."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edgecore.contract import watch_growth
from edgecore.contract.errors import Cancelled


def test_written_bytes_are_reported_over_predicted_ones_and_never_decrease(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    with watch_growth(tmp_path, 1000, lambda *report: seen.append(report), "packing", every=0.01):
        for n in range(5):
            (tmp_path / f"part{n}").write_bytes(bytes(300))
            time.sleep(0.04)
    done = [d for d, _, _ in seen]
    assert done == sorted(done)
    assert {0, 300, 600, 900, 999, 1000} <= set(done)
    assert set(seen) == {(d, 1000, "packing") for d in done}
    assert done[-1] == 1000


def test_a_cancellation_is_raised_when_the_block_has_ended(tmp_path: Path) -> None:
    def stop(done: int, total: int, stage: str = "") -> None:
        if done:
            raise Cancelled("enough")

    ended = []

    def work() -> None:
        with watch_growth(tmp_path, 1000, stop, every=0.01):
            (tmp_path / "part").write_bytes(bytes(300))
            time.sleep(0.1)
            ended.append(True)

    with pytest.raises(Cancelled, match="enough"):
        work()
    assert ended


def test_what_the_block_raises_comes_first(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), watch_growth(tmp_path, 10, lambda *_: None, every=0.01):
        raise ZeroDivisionError
