"""The pytest plugin: selects rows, runs each as a test, and hands every row to the evidence.

Loaded by `edgecore conformance run` and, through the entry point group `pytest11`, wherever this distribution is
installed, for `BackendConformance` (authors.py); both doors lead through `Run`. Whoever has no such class pays for this
module only, so it imports the rest on first use.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from edgecore_conformance.run import Run

RUN = pytest.StashKey["dict[tuple[str, str, str], Run]"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("edgecore conformance")
    group.addoption("--conformance-backend", help="name, or path of a plugin under development")
    group.addoption("--conformance-device", default="", help="a device of the backend; its first by default")
    group.addoption("--conformance-level", default="quick", choices=("quick", "full"))
    group.addoption("--conformance-out", type=Path, help="the bundle's folder; a temporary one by default")
    group.addoption("--conformance-resume", action="store_true", help="keep finished rows of an earlier run")
    group.addoption("--conformance-challenge", type=int, default=0, metavar="SEED", help="draw inputs from this seed")
    group.addoption("--conformance-model", type=Path, help="a model for level full, where there is no network")
    group.addoption("--conformance-no-expectations", action="store_true", help="ignore the plugin's conformance.toml")


def pytest_configure(config: pytest.Config) -> None:
    config.stash.setdefault(RUN, {})


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "conformance_row" not in metafunc.fixturenames:
        return
    if hasattr(metafunc.config, "workerinput"):
        raise pytest.UsageError(
            "the conformance suite times the backend, so its rows run one after the other: the same with -n 0"
        )
    run = _run(metafunc.config, metafunc.cls)
    pairs = run.pairs()
    metafunc.parametrize(
        "conformance_row", [(run, c, cell) for c, cell in pairs], ids=[_id(c.name(), cell) for c, cell in pairs]
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Which rows are selected is known now (-k has spoken): written down before the first of them runs. Not in
    `pytest_collection_finish`, which pytest calls for a selection that failed too."""
    if session.testsfailed or session.config.option.collectonly:
        return
    for run in session.config.stash[RUN].values():
        chosen = [i.callspec.params["conformance_row"] for i in session.items if hasattr(i, "callspec")]
        if ids := [_id(c.name(), cell) for r, c, cell in chosen if r is run]:
            run.select(ids)


def pytest_sessionfinish(session: pytest.Session) -> None:
    for run in session.config.stash[RUN].values():
        run.finish()


@pytest.fixture
def conformance_outcome(conformance_row: Any) -> Any:
    """The finished row."""
    run, check, cell = conformance_row
    return run.row(check, cell)


def _id(name: str, cell: Mapping[str, str]) -> str:
    from edgecore_conformance.check import row_id

    return row_id(name, cell)


def _run(config: pytest.Config, kind: type | None) -> Run:
    """One run a backend, device and level: a class of an author's names its own, the command line the other."""
    from edgecore.contract.errors import BadRequest
    from edgecore_conformance.run import Run

    option = config.getoption
    backend = str(getattr(kind, "backend", None) or option("--conformance-backend") or "")
    device = str(getattr(kind, "device", None) or option("--conformance-device") or "")
    level = str(getattr(kind, "level", None) or option("--conformance-level"))
    key = (backend, device, level)
    if key not in config.stash[RUN]:
        if option("--conformance-out") and config.stash[RUN]:
            raise BadRequest(
                "--conformance-out holds one run, and these tests are of several",
                supported="tests of one backend, device and level",
                hint="the same with the file and the class: pytest FILE::CLASS",
            )
        config.stash[RUN][key] = Run(
            backend,
            device,
            level,
            out=option("--conformance-out"),
            resume=option("--conformance-resume"),
            seed=option("--conformance-challenge"),
            model=option("--conformance-model"),
            expectations=not option("--conformance-no-expectations"),
        )
    return config.stash[RUN][key]
