"""Every test, the core's and the plugins', works in a home of its own: no test may read or write the user's."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# A shell that starts the tests in the background has Ctrl-C ignored in them and in all that they start: here it counts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _session_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For fixtures that outlive one test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGECORE_HOME", str(tmp_path_factory.mktemp("edgecore-home")))
        patch.delenv("EDGECORE_ONLY", raising=False)
        yield


@pytest.fixture(autouse=True)
def edgecore_home(
    _session_home: None, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """This test's `EDGECORE_HOME`: exists, empty, and not inside `tmp_path`, which belongs to the test."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("EDGECORE_HOME", str(home))
    return home
