"""What tests of the suite share: the folder of this file is importable, and rows are run in this process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Tests are collected with --import-mode=importlib, which puts nothing on sys.path.
sys.path.insert(0, str(Path(__file__).parent))

from mutants.catching import Converted

from support.forging import bundle, made  # noqa: F401


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Converted]:
    """Artifacts of the truthful plugins, each made once: what mutants open that do not touch convert."""
    every = Converted(tmp_path_factory.mktemp("converted"))
    yield every
    every.close()
