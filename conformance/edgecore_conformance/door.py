"""The testers' door: pytest in this process, with nothing of the user's: no settings, no plugins, no conftest.

pytest selects (`-k`) and survives what a check does; every word that people read is ours.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgecore.contract.errors import BadRequest
from edgecore_conformance.outcomes import Outcome
from edgecore_conformance.plugin import RUN
from edgecore_conformance.run import Run

_AMBIENT = ("PYTEST_ADDOPTS", "PYTEST_PLUGINS")
_SETTINGS = "[pytest]\npython_functions = test_conformance\n"


def drive(run: Run, expression: str = "") -> bool:
    """Runs the selected rows and writes the reports. False where a person interrupted it.

    Raises `BadRequest` for an expression that pytest does not take, or that selects nothing.
    """
    room = Path(run.room)
    (room / "pytest.ini").write_text(_SETTINGS, encoding="utf-8")
    arguments = [
        "-c", str(room / "pytest.ini"), "--rootdir", str(room), "--noconftest", "--import-mode=importlib",
        "--assert=plain", "-s", "-p", "no:cacheprovider", "-p", "no:terminal", "-p", "edgecore_conformance.plugin",
        "--pyargs", "edgecore_conformance.suite",
    ]  # fmt: skip
    if expression:
        arguments += ["-k", expression]
    inside = _Inside(run)
    with _alone():
        code = pytest.main(arguments, plugins=[inside])
    if inside.error is not None:
        raise inside.error
    if inside.problem:
        raise BadRequest(f"the rows could not be selected: {inside.problem}", hint="edgecore conformance list")
    if code == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise BadRequest(f"no row matches {expression!r}", hint="edgecore conformance list")
    if code == pytest.ExitCode.USAGE_ERROR:
        raise BadRequest(
            f"-k {expression!r} is no expression", supported='words with and, or, not: -k "text and not stop"'
        )
    return code != pytest.ExitCode.INTERRUPTED


class _Inside:
    """Hands the run to the plugin, and keeps what went wrong before the first row."""

    def __init__(self, run: Run) -> None:
        self.run, self.problem = run, ""
        self.error: BaseException | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        option = config.getoption
        asked = (option("--conformance-backend"), option("--conformance-device"), option("--conformance-level"))
        config.stash[RUN] = {("" if asked[0] is None else str(asked[0]), str(asked[1]), str(asked[2])): self.run}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.problem:
            self.problem = str(report.longrepr).strip().splitlines()[-1]

    def pytest_internalerror(self, excrepr: object, excinfo: pytest.ExceptionInfo[BaseException]) -> bool:
        self.error = self.error or excinfo.value
        return True


@contextmanager
def _alone() -> Iterator[None]:
    """Without the pytest settings of the user's environment."""
    before = {name: os.environ.pop(name, None) for name in _AMBIENT}
    before["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = os.environ.get("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def exit_code(run: Run) -> int:
    """0 good, 1 a row is not, 3 nothing that applies can be run here."""
    rows = run.report["rows"] if run.report else []
    outcomes = [Outcome(r["outcome"]) for r in rows]
    applicable = [o for o in outcomes if o is not Outcome.NOT_APPLICABLE]
    if applicable and all(o is Outcome.UNAVAILABLE for o in applicable):
        return 3
    return 0 if outcomes and all(o.good for o in outcomes) else 1
