"""What people type beside `run`: verify, diff, list; and what `edgecore backends` makes of a run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgecore import paths, registry
from edgecore.cli.backends import command as backends
from edgecore.contract.errors import BadRequest
from edgecore.verbs import proving
from edgecore_conformance.check import GROUPS
from edgecore_conformance.commands import group
from edgecore_conformance.compare import compare, moved

from support.cli import edgecore
from support.small_suite import GOOD, Wrong, run_small, small_suite, write_plugin


def call(*arguments: object) -> Result:
    """A command of the group, in this process."""
    with small_suite(*GOOD, Wrong):
        return CliRunner().invoke(group, [str(a) for a in arguments], standalone_mode=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundle `good` without, bundle `bad` with a check that fails; and the plugin that they are about."""
    folder = tmp_path_factory.mktemp("commands")
    plugin = write_plugin(folder / "mine")
    with small_suite(*GOOD):
        run_small(folder / "good", backend=str(plugin))
    with small_suite(*GOOD, Wrong):
        run_small(folder / "bad", backend=str(plugin), seed=5)
    return folder


def test_verify_says_consistent_how_much_it_judged_and_what_it_cannot_know(made: Path) -> None:
    done = call("verify", made / "bad")
    assert done.return_value == 0
    assert "consistent: 4 of 5 rows judged anew from their raw outputs" in done.output
    assert "whether the raw outputs came from this device" in done.output


def test_no_bundle_of_a_stranger_writes_words_of_ours_to_the_terminal(made: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(made / "bad", tmp_path / "bundle")
    report = json.loads((bundle / "report.json").read_text())
    report["rows"][0]["row"] = "\x1b[2J\nconsistent: 5 of 5 rows"
    (bundle / "report.json").write_text(json.dumps(report))
    done = call("verify", bundle)
    assert "\\x1b[2J\\nconsistent: 5 of 5 rows" in done.output
    assert not any(line.startswith("consistent") or "\x1b" in line for line in done.output.splitlines())


def test_diff_with_what_is_no_report_says_which_and_where(made: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(made / "bad", tmp_path / "bundle")
    (bundle / "report.json").write_text('{"header": {}, "rows": [{"row": "x"}], "claims": {"of": []}}')
    for pair in ((bundle, made / "bad"), (made / "bad", bundle)):
        with pytest.raises(
            BadRequest, match=r"bundle: report.json at the top: 'schema_version' is a required property"
        ):
            compare(*pair)


def test_verify_lists_contradictions_and_ends_with_1(made: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(made / "bad", tmp_path / "bundle")
    (bundle / "badge.svg").write_text("<svg/>")
    done = call("verify", bundle)
    assert done.return_value == 1
    assert done.output.startswith("contradiction: badge.svg is another file")
    assert "not consistent" in done.output
    told = call("verify", bundle, "--json")
    assert told.return_value == 1
    assert json.loads(told.output)["consistent"] is False


def test_diff_shows_rows_claims_and_conditions_that_changed(made: Path) -> None:
    done = call("diff", made / "good", made / "bad")
    assert done.return_value == 1, "claims got worse"
    told = json.loads(call("diff", made / "good", made / "bad", "--json").output)
    assert {"what": "seed", "before": 0, "after": 5, "worse": False} in told["conditions"]
    assert {"what": "text.wrong", "before": None, "after": "failed", "worse": False} in told["rows"]
    assert [(c["before"], c["after"], c["worse"]) for c in told["claims"]] == [("proven", "refuted", True)] * 2
    assert "text.answers[family=llama] spread" in [c["what"] for c in told["figures"]]
    assert "text.wrong" in done.output


def test_a_change_for_the_better_ends_with_0(made: Path) -> None:
    assert call("diff", made / "bad", made / "good").return_value == 0


def test_diff_of_a_bundle_with_itself_says_nothing_changed(made: Path) -> None:
    done = call("diff", made / "good", made / "good")
    assert (done.return_value, done.output) == (0, "nothing changed\n")


def test_an_outcome_that_got_worse_is_worse(made: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(made / "bad", tmp_path / "bundle")
    report = json.loads((bundle / "report.json").read_text())
    next(r for r in report["rows"] if r["check"] == "text.answers")["outcome"] = "crashed"
    (bundle / "report.json").write_text(json.dumps(report))
    changed = compare(made / "bad", bundle).rows
    assert [(c.before, c.after, c.worse) for c in changed] == [("passed", "crashed", True)]


@pytest.mark.parametrize(
    ("a", "b", "bound", "went"),
    [(1.0, 1.04, None, False), (1.0, 1.1, None, True), (1e-6, 3e-6, 1e-3, False), (None, 1.0, None, True)],
)
def test_a_figure_moves_when_it_goes_further_than_noise(a: Any, b: Any, bound: Any, went: bool) -> None:
    assert moved(a, b, bound) is went


def test_list_names_every_check_of_the_real_suite_with_what_it_is_about() -> None:
    done = edgecore("conformance", "list", "--json")
    assert done.code == 0, done.err
    assert {c["group"] for c in done.json} == set(GROUPS)
    assert all(c["summary"] for c in done.json)
    said = edgecore("conformance", "list").out
    assert [c["name"] for c in done.json if f"  {c['name']} " not in said] == []


def test_an_authors_class_is_refused_beside_itself(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        "from edgecore_conformance import BackendConformance\n\nclass TestMine(BackendConformance):\n"
        '    backend = "reference"\n'
    )
    command = [sys.executable, "-m", "pytest", "-n", "2", "-k", "manifest.hooks"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "its rows run one after the other: the same with -n 0" in done.stdout
    assert "Traceback" not in done.stdout


# ---- edgecore backends ----


@pytest.fixture
def noted(made: Path, edgecore_home: Path) -> Callable[[str], Path]:
    """Notes what a bundle's run found in this test's home, as the run did in its own."""
    from edgecore_conformance.evidence.record import record

    def note(name: str) -> Path:
        report = json.loads((made / name / "report.json").read_text(encoding="utf-8"))
        assert record(report)
        file = proving.file_of("mine", "cpu")
        assert file.is_relative_to(edgecore_home)
        return file

    return note


def standings(made: Path) -> dict[str, proving.Standing]:
    """By family."""
    return {s.claim.family: s for s in proving.standings(registry.find(made / "mine"))}


def test_without_a_run_every_claim_is_unproven(made: Path) -> None:
    assert {s.state for s in standings(made).values()} == {"unproven"}


@pytest.mark.parametrize(("bundle", "state"), [("good", "proven"), ("bad", "refuted")])
def test_backends_shows_what_the_last_run_found(
    made: Path, noted: Callable[[str], Path], bundle: str, state: str
) -> None:
    noted(bundle)
    assert {s.state for s in standings(made).values()} == {state}
    told = CliRunner().invoke(backends, [str(made / "mine")], standalone_mode=False).output
    assert f"{2 if state == 'proven' else 0} of 2 claims are proven on this machine" in told
    assert told.count(f"  {state}  ") == 2
    facts = json.loads(CliRunner().invoke(backends, [str(made / "mine"), "--json"], standalone_mode=False).output)
    assert [c["state"] for c in facts["claims"]] == [state] * 2


@pytest.mark.parametrize(
    ("name", "then", "says"),
    [
        ("plugin", "0.0.9", "plugin 0.0.9 (now"),
        ("runtime", "1.0", "runtime 1.0 (now"),
        ("suite", "0.0.1", "suite 0.0.1 (now 0.1.0)"),
        ("manifest", "0" * 64, "another manifest"),
        ("origin", "installed", "origin installed (now path)"),
    ],
)
def test_a_claim_that_was_proven_with_something_else_is_stale(
    made: Path, noted: Callable[[str], Path], name: str, then: str, says: str
) -> None:
    file = noted("good")
    file.write_text(json.dumps({**json.loads(file.read_text()), name: then}))
    found = standings(made)
    assert {s.state for s in found.values()} == {"stale"}
    assert says in found["llama"].why


def test_another_driver_in_the_last_probe_makes_stale(made: Path, noted: Callable[[str], Path]) -> None:
    noted("good")
    version = registry.find(made / "mine").version
    probe = {"when": "2999", "plugin": version, "versions": {"numpy": "1.0"}, "devices": []}
    paths.index().mkdir(parents=True, exist_ok=True)
    (paths.index() / "probe-mine.json").write_text(json.dumps(probe))
    assert "numpy" in standings(made)["llama"].why
    assert standings(made)["llama"].state == "stale"


def test_what_was_refuted_stays_refuted_until_it_is_run_again(made: Path, noted: Callable[[str], Path]) -> None:
    file = noted("bad")
    file.write_text(json.dumps({**json.loads(file.read_text()), "plugin": "0.0.9"}))
    assert {s.state for s in standings(made).values()} == {"refuted"}


def test_a_run_of_some_rows_is_not_noted(made: Path, tmp_path: Path) -> None:
    with small_suite():
        run_small(tmp_path / "some", "llama", str(made / "mine"))
    assert not proving.file_of("mine", "cpu").exists()


def test_a_note_that_cannot_be_read_is_no_note(made: Path) -> None:
    file = proving.file_of("mine", "cpu")
    file.parent.mkdir(parents=True)
    for text in ("", "[]", "{", '{"claims": []}'):
        file.write_text(text)
        assert {s.state for s in standings(made).values()} == {"unproven"}


def test_backends_stays_free_of_numpy_metadata_and_the_suite() -> None:
    code = (
        "import sys; from edgecore.cli.backends import command; from edgecore import registry;"
        "from edgecore.verbs import proving; registry.discover();"
        "before = 'importlib.metadata' in sys.modules; proving.standings(registry.find('reference'));"
        "loaded = {'numpy', 'pytest', 'edgecore_conformance', 'edgecore_conformance.commands'} & set(sys.modules);"
        "assert not loaded, loaded; assert before or 'importlib.metadata' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    begin = time.perf_counter()
    proving.standings(registry.find("reference"))
    assert time.perf_counter() - begin < 1.0
