"""An exporter is run as a command: what grows is the progress, its last words are the error."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from edgecore.contract import Cancelled, UnsupportedModel, no_progress, run_exporter


def script(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_the_growing_file_is_the_progress(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    code = f"import time; f = open({str(file)!r}, 'wb', 0); f.write(bytes(500)); time.sleep(1); f.write(bytes(500))"
    seen: list[tuple[int, int]] = []
    run_exporter("it", script(code), file, 1000, lambda done, total, stage="": seen.append((done, total)))
    assert seen == sorted(seen)
    assert (500, 1000) in seen
    assert seen[-1] == (1000, 1000)


def test_cancelling_ends_the_script(tmp_path: Path) -> None:
    def cancel(done: int, total: int, stage: str = "") -> None:
        raise Cancelled("enough")

    start = time.monotonic()
    with pytest.raises(Cancelled):
        run_exporter("it", script("import time; time.sleep(60)"), tmp_path / "x", 1, cancel)
    assert time.monotonic() - start < 30


def test_its_last_words_are_the_error(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="it failed: no such architecture"):
        run_exporter("it", script("raise SystemExit('no such architecture')"), tmp_path / "x", 1, no_progress)


def test_it_runs_without_a_network(tmp_path: Path) -> None:
    code = "import os; assert os.environ['HF_HUB_OFFLINE'] == os.environ['TRANSFORMERS_OFFLINE'] == '1'"
    run_exporter("it", script(code), tmp_path, 1, no_progress)
