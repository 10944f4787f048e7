"""What the fuzzer has found stays found: every committed input runs once, without Atheris."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.fuzz_targets import TARGETS

FUZZ = Path(__file__).parents[2] / "fuzz"
CORPUS = FUZZ / "corpus"


def test_every_target_has_a_corpus_and_words() -> None:
    assert sorted(TARGETS) == sorted(folder.name for folder in CORPUS.iterdir())
    assert sorted(TARGETS) == sorted(file.stem for file in (FUZZ / "tokens").iterdir())
    assert sum(file.stat().st_size for file in CORPUS.rglob("*")) < 300_000


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_holds_good_files_and_refused_ones(name: str) -> None:
    for file in sorted((CORPUS / name).iterdir()):
        accepted = TARGETS[name](file.read_bytes())
        assert accepted or not file.name.startswith("good-"), file


def test_the_replay_needs_no_fuzzer() -> None:
    done = subprocess.run([sys.executable, str(FUZZ / "fuzz.py"), "--replay"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == list(TARGETS)


def test_the_fuzzer_says_what_it_needs() -> None:
    done = subprocess.run([sys.executable, str(FUZZ / "fuzz.py"), "nothing"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "gguf" in done.stderr
