"""The suite must not touch the user's home, or a test run would change what a user's next command does."""

from __future__ import annotations

import os
from pathlib import Path


def test_every_test_has_an_empty_home_of_its_own(edgecore_home: Path, tmp_path: Path) -> None:
    assert os.environ["EDGECORE_HOME"] == str(edgecore_home)
    assert list(edgecore_home.iterdir()) == []
    assert not edgecore_home.is_relative_to(Path.home() / ".cache")
    assert not edgecore_home.is_relative_to(tmp_path)
