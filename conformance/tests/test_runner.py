"""The testers' door as testers use it: a process in an empty folder, quiet, with nothing of anybody's pytest in it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecore import registry
from edgecore.contract.errors import DeviceUnavailable
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, all_checks
from edgecore_conformance.known import Known
from edgecore_conformance.observation import Observation
from edgecore_conformance.outcomes import Outcome
from edgecore_conformance.rows import Row
from edgecore_conformance.running import run_row
from edgecore_conformance.verify import verify

from support.cli import Result
from support.small_suite import GOOD, NO_DEVICE, Wrong, exception, run_small, small_suite, write_plugin

DRIVER = Path(__file__).parents[2] / "tests/support/small_edgecore.py"


def conformance(*arguments: object, more: str = "", cwd: Path, **env: str) -> Result:
    """`edgecore conformance ARGUMENTS` with the small suite, and `more` of its checks."""
    done = subprocess.run(
        [sys.executable, str(DRIVER), more, "conformance", *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(DRIVER.parents[1]), **env},
    )  # fmt: skip
    return Result(done.returncode, done.stdout, done.stderr)


def test_a_good_run_ends_with_0_and_says_every_row_every_group_and_every_claim(tmp_path: Path) -> None:
    folder = write_plugin(tmp_path / "mine")
    done = conformance("run", "--backend", folder, "--out", "bundle", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.err.count("  passed  ") == 3
    assert "not applicable  tensor.nothing" in done.err
    assert "quantize      1/1" in done.out
    assert "run, text     2/2" in done.out
    assert "claims about cpu: 2/2 proven" in done.out
    assert {p.name for p in (tmp_path / "bundle").iterdir()} == {
        "header.json", "manifest.json", "selected.json", "sessions.json", "rows.jsonl", "raw", "report.json",
        "junit.xml", "index.html", "badge.svg",
    }  # fmt: skip


def test_nothing_of_pytest_is_seen(tmp_path: Path) -> None:
    done = conformance("run", "--backend", "reference", "-k", "wrong", more="wrong", cwd=tmp_path)
    assert done.code == 1
    assert "failed  text.wrong" in done.err
    assert "value 3 misses <= 2" in done.err
    for word in ("pytest", "Traceback", "=====", "warning"):
        assert word not in done.out + done.err


def test_the_users_pytest_is_not_listened_to(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    (tmp_path / "conftest.py").write_text("raise SystemExit('loaded the conftest')\n")
    (tmp_path / "theirs.py").write_text("raise SystemExit('loaded the plugin')\n")
    ambient = {"PYTEST_ADDOPTS": "--no-such-option", "PYTEST_PLUGINS": "theirs"}
    done = conformance("run", "--backend", "reference", "-k", "llama", cwd=tmp_path, **ambient)
    assert done.code == 0, done.err
    assert {p.name for p in tmp_path.iterdir()} == {"pytest.ini", "conftest.py", "theirs.py"}, (
        "and leaves nothing there"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--backend", "reference", "-k", "nonesuch"], 2, "no row matches 'nonesuch'"),
        (["--backend", "reference", "-k", "llama and"], 2, "-k 'llama and' is no expression"),
        (["--backend", "reference", "--resume"], 2, "--resume goes on with a bundle"),
        (["--backend", "reference", "--device", "gpu"], 3, "supported: cpu"),
        (["--backend", "nonesuch"], 3, "there is no backend 'nonesuch'"),
        (["--backend", "reference", "--level", "slow"], 2, "slow"),
    ],
)
def test_a_bad_request_and_what_is_not_here_end_with_their_codes(
    arguments: list[str], code: int, says: str, tmp_path: Path
) -> None:
    done = conformance("run", *arguments, cwd=tmp_path)
    assert done.code == code
    assert says in done.err
    assert "Traceback" not in done.err


def test_json_is_all_that_is_on_standard_output(tmp_path: Path) -> None:
    done = conformance("run", "--backend", "reference", "-k", "llama", "--json", cwd=tmp_path)
    assert done.json["outcomes"] == {"passed": 1}
    assert (done.json["rows_selected"], done.json["rows_of_level"]) == (1, 6)
    assert done.json["claims"]["proven"] == 0, "one row proves no claim"
    assert done.err == ""


def test_a_bundle_is_never_written_into_a_folder_with_something_in_it(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    done = conformance("run", "--backend", "reference", "--out", "out", cwd=tmp_path)
    assert done.code == 2
    assert "is not empty" in done.err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_resume_keeps_finished_rows_and_never_shrinks_a_selection(tmp_path: Path) -> None:
    assert conformance("run", "--backend", "reference", "--out", "b", "-k", "llama", cwd=tmp_path).code == 0
    kept = (tmp_path / "b/raw/text.answers_family=llama_.npz").stat().st_mtime_ns
    done = conformance("run", "--backend", "reference", "--out", "b", "-k", "bits", "--resume", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.json["rows_selected"] == 4
    assert len(done.json["sessions"]) == 2
    assert (tmp_path / "b/raw/text.answers_family=llama_.npz").stat().st_mtime_ns == kept
    assert conformance("verify", "b", cwd=tmp_path).code == 0


def test_resume_with_something_else_is_refused_and_leaves_the_bundle(tmp_path: Path) -> None:
    conformance("run", "--backend", "reference", "--out", "b", "-k", "llama", cwd=tmp_path)
    again = conformance(
        "run", "--backend", "reference", "--out", "b", "-k", "bits", "--resume", "--challenge", 4, cwd=tmp_path
    )
    assert again.code == 2
    assert "the bundle was begun with another seed (0, now 4)" in again.err
    assert conformance("verify", "b", cwd=tmp_path).code == 0


def test_what_had_begun_and_never_ended_is_crashed_and_what_never_began_is_missing(tmp_path: Path) -> None:
    with small_suite():
        from edgecore_conformance.run import Run

        run = Run("reference", out=tmp_path / "b")
        run.select(["text.answers[family=llama]", "text.answers[family=qwen3]"])
        run.rows.start("text.answers[family=llama]")
        run.finish()
        assert run.report is not None
        assert [r["outcome"] for r in run.report["rows"]] == ["crashed", "missing"]
        assert run.report["rows"][0]["cell"] == {"family": "llama"}
        claims = {c["family"]: c["state"] for c in run.report["claims"]["of"] if c["precision"] == "f16"}
        assert (claims["llama"], claims["qwen3"]) == ("refuted", "unproven")


@pytest.mark.skipif(os.name == "nt", reason="needs signals of POSIX")
def test_ctrl_c_ends_with_130_and_leaves_a_bundle_that_says_what_is_missing(tmp_path: Path) -> None:
    code = (
        "import time, sys\n"
        "from edgecore.cli import main\n"
        "from support.small_suite import *\n"
        "class Slow(Wrong):\n"
        "    '''text.slow: takes a minute.'''\n"
        "    def observe(self, bench, cell):\n"
        "        open('begun', 'w').close()\n"
        "        time.sleep(60)\n"
        "with small_suite(*GOOD, Slow, Wrong):\n"
        "    main(['conformance', 'run', '--backend', 'reference', '--out', 'b'])\n"
    )
    env = {**os.environ, "PYTHONPATH": str(DRIVER.parents[1])}
    started = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if (tmp_path / "begun").exists() or started.poll() is not None:
            break
        time.sleep(0.1)
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=60)
    assert started.returncode == 130, err
    rows = json.loads((tmp_path / "b/report.json").read_text())["rows"]
    assert {r["row"]: r["outcome"] for r in rows}["text.slow"] == "crashed"
    assert {r["row"]: r["outcome"] for r in rows}["text.wrong"] == "missing"


def row_of(observe: Callable[[], Observation], folder: Path, backend: str | Path = "reference") -> Row:
    """The row of a check that observes so, and asks for at most 2."""

    class Check(Wrong):
        """text.check: asks for at most 2."""

        def observe(self, bench: Bench, cell: Cell) -> Observation:
            return observe()

    entry = registry.find(backend)
    bench = Bench(entry, Known(entry.ready_manifest, "cpu"), folder / "work")
    try:
        return run_row(Check(), {}, bench, folder / "bundle")
    finally:
        bench.close()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), np.float64("nan")])
def test_a_fact_that_is_no_finite_number_is_kept_and_fails_its_row(value: float, tmp_path: Path) -> None:
    row = row_of(lambda: Observation({"value": value, "more": [{"values": (1.5, value)}]}), tmp_path)
    assert (row.outcome, row.message) == (Outcome.FAILED, "value not finite misses <= 2")
    kept = json.loads((tmp_path / "bundle/raw/text.check.json").read_text(), parse_constant=pytest.fail)
    assert (kept["value"], kept["more"]) == (repr(float(value)), [{"values": [1.5, repr(float(value))]}])


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value", [{1, 2}, b"bytes", np.float32(3), {"a": 1, 2: 3}, nested(100_000)], ids=lambda value: type(value).__name__
)
def test_an_observation_that_cannot_be_kept_is_an_error_of_its_row(value: Any, tmp_path: Path) -> None:
    row = row_of(lambda: Observation({"value": value}), tmp_path)
    assert row.outcome is Outcome.ERROR
    assert "what was seen cannot be kept" in row.message


def no_device() -> Observation:
    raise DeviceUnavailable("there is no such device", supported="cpu")


NOTHING_OPENS = f"""{NO_DEVICE}
from edgecore.contract import DeviceUnavailable

@hookimpl
def edgecore_run(artifact, device, context_length, threads, options):
    raise DeviceUnavailable("it was taken out")
"""
RAISING = """
from edgecore.contract import DeviceUnavailable, hookimpl

@hookimpl
def edgecore_probe():
    raise DeviceUnavailable("it was taken out")
"""
CHANGING = """
from pathlib import Path
from edgecore.contract import Probe, ProbedDevice, hookimpl

asked = Path(__file__).with_name("asked")

@hookimpl
def edgecore_probe():
    here = not asked.exists()
    asked.touch()
    return Probe((ProbedDevice("cpu", here, "numpy", "it was taken out"),), {"numpy": "2.0"})
"""


@pytest.mark.parametrize(
    ("hooks", "outcome"),
    [
        ("", Outcome.FAILED),
        (NO_DEVICE, Outcome.UNAVAILABLE),
        (NO_DEVICE.replace('"cpu"', '"gpu"'), Outcome.FAILED),
        (RAISING, Outcome.FAILED),
    ],
    ids=["there", "missing", "another is missing", "a probe that raises"],
)
def test_a_row_is_unavailable_only_where_probe_says_that_the_device_is_missing(
    hooks: str, outcome: Outcome, tmp_path: Path
) -> None:
    row = row_of(no_device, tmp_path, write_plugin(tmp_path / "mine", hooks=hooks))
    assert row.outcome is outcome
    assert "there is no such device" in row.message


def test_what_needs_a_device_that_is_missing_is_unavailable_and_never_a_failure(tmp_path: Path) -> None:
    entry = registry.find(write_plugin(tmp_path / "mine", hooks=NOTHING_OPENS))
    bench = Bench(entry, Known(entry.ready_manifest, "cpu"), tmp_path / "work")
    names = ("manifest.probe", "text.context_length", "robustness.interrupt", "robustness.memory_limit")
    cells = {"manifest.options": {"verb": "run", "option": "chunk"}, "robustness.misuse": {"case": "rewind"}}
    try:
        rows = [run_row(all_checks()[n], cells.get(n, {}), bench, tmp_path / "bundle") for n in (*names, *cells)]
    finally:
        bench.close()
    assert {row.row: row.outcome for row in rows} == {row.row: Outcome.UNAVAILABLE for row in rows}


def test_what_the_header_says_of_the_device_is_what_rows_are_held_to(tmp_path: Path) -> None:
    """A probe that answers otherwise later cannot make a row `unavailable` in a run whose device was there."""

    class Absent(Wrong):
        """text.absent: the device is not there."""

        def observe(self, bench: Bench, cell: Cell) -> Observation:
            with bench.fresh() as backend:
                assert not backend.probe().devices[0].available
            return no_device()

    with small_suite(Absent):
        run = run_small(tmp_path / "b", backend=str(write_plugin(tmp_path / "mine", hooks=CHANGING)))
        assert run.report is not None
        assert run.report["outcomes"] == {"failed": 1}
        assert verify(tmp_path / "b").contradictions == []


def test_expectations_are_read_at_this_door_and_can_be_left_aside(tmp_path: Path) -> None:
    folder = write_plugin(tmp_path / "mine", exception("text.wrong"))
    expected = conformance("run", "--backend", folder, "-k", "wrong", more="wrong", cwd=tmp_path)
    assert expected.code == 0
    assert "xfail  text.wrong" in expected.err
    assert "exceptions: 1 rows" in expected.out
    ignored = conformance("run", "--backend", folder, "-k", "wrong", "--no-expectations", more="wrong", cwd=tmp_path)
    assert ignored.code == 1


def authors(classes: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Their own pytest, with the small suite, of a file with these classes."""
    (cwd / "test_mine.py").write_text("from edgecore_conformance import BackendConformance\n\n" + classes)
    code = (
        "import sys, pytest\nfrom support.small_suite import *\n"
        "with small_suite(*GOOD, Wrong):\n"
        "    plugins = ['-p', 'edgecore_conformance.plugin', '-p', 'no:cacheprovider']\n"
        "    sys.exit(pytest.main(['-q', *plugins, *sys.argv[1:]]))\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(DRIVER.parents[1])},
    )  # fmt: skip


def test_authors_have_a_door_of_their_own(tmp_path: Path) -> None:
    """One class with one line, in the tests of a plugin, run by their own pytest."""
    plugin = write_plugin(tmp_path / "mine")
    done = authors(
        f"class TestMine(BackendConformance):\n    backend = {str(plugin)!r}\n", "test_mine.py", cwd=tmp_path
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 3 passed, 1 skipped" in done.stdout
    assert "failed: value 3 misses <= 2" in done.stdout


def test_what_authors_mistype_is_said_and_never_a_run_of_nothing(tmp_path: Path) -> None:
    one = "class TestMine(BackendConformance):\n    backend = 'reference'\n"
    done = authors(one + "    level = 'slow'\n", "test_mine.py", cwd=tmp_path)
    assert "there is no level 'slow'" in done.stdout
    assert done.returncode == 2


def test_two_runs_of_authors_never_share_a_bundle_and_one_named_by_its_class_is_consistent(tmp_path: Path) -> None:
    plugin = write_plugin(tmp_path / "mine")
    two = "".join(
        f"class Test{n}(BackendConformance):\n    backend = {b!r}\n" for n, b in enumerate(("reference", str(plugin)))
    )
    done = authors(two, "test_mine.py", "--conformance-out", "b", "-k", "llama", cwd=tmp_path)
    assert "--conformance-out holds one run, and these tests are of several" in done.stdout
    assert done.returncode == 2
    done = authors(two, "test_mine.py::Test1", "--conformance-out", "b", "-k", "llama", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    with small_suite(*GOOD, Wrong):
        assert verify(tmp_path / "b").contradictions == []


def test_a_bundle_is_read_on_a_machine_that_has_not_the_plugin(tmp_path: Path) -> None:
    folder = write_plugin(tmp_path / "mine")
    with small_suite():
        run_small(tmp_path / "bundle", backend=str(folder))
        shutil.rmtree(folder)
        assert verify(tmp_path / "bundle").contradictions == []
