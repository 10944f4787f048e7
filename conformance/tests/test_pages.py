"""The documentation of the suite is held to the suite: its words, its commands, its examples, its published reports."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from mutants import Mutant
from mutants.catching import Converted, rows_of_mutant

from edgecore import registry
from edgecore_conformance import check as checks
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Check, all_checks
from edgecore_conformance.known import Known
from edgecore_conformance.outcomes import Outcome
from edgecore_conformance.running import run_row

from support.cli import edgecore
from support.shown import BLOCK, PAGES, ROOT, shown_commands, takes
from support.small_suite import GOOD, Wrong, run_small, small_suite

PAGE = (ROOT / "docs/conformance.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("page", "line"), shown_commands(conformance=True))
def test_every_command_of_the_suite_that_is_shown_is_one_that_the_command_line_takes(page: str, line: str) -> None:
    takes(line)


def test_every_outcome_state_kind_and_option_is_documented() -> None:
    from edgecore_conformance.claims import ClaimState
    from edgecore_conformance.commands import run
    from edgecore_conformance.expectations import KINDS

    assert [o for o in Outcome if f"| `{o.value}` | {'yes' if o.good else 'no'} |" not in PAGE] == []
    assert [word for word in (*ClaimState, *KINDS) if f"| `{word}` |" not in PAGE] == []
    flags = [flag for option in run.params for flag in option.opts]
    assert [flag for flag in flags if f"`{flag}" not in PAGE] == []


def test_every_option_of_pytest_that_is_shown_is_one_that_the_plugin_adds() -> None:
    from edgecore_conformance import plugin

    added = Path(plugin.__file__).read_text(encoding="utf-8")
    shown = {word for page in PAGES for word in re.findall(r"--conformance-[a-z-]+", page.read_text(encoding="utf-8"))}
    assert "--conformance-out" in shown
    assert [word for word in sorted(shown) if f'"{word}"' not in added] == []


def test_what_verify_cannot_know_is_documented_in_full() -> None:
    from edgecore_conformance.verify import CANNOT_KNOW

    said = " ".join(PAGE.split())
    assert [words for words in CANNOT_KNOW if words.partition(":")[0].partition(",")[0] not in said] == []


def test_the_page_of_checks_is_what_the_checks_say() -> None:
    from edgecore_conformance.pages import page

    told = "run: python -m edgecore_conformance.pages > docs/checks.md"
    assert (ROOT / "docs/checks.md").read_text(encoding="utf-8") == page(), told


def test_the_order_of_checks_does_not_depend_on_what_was_imported_first() -> None:
    code = "from edgecore_conformance.check import all_checks; print(*all_checks())"
    orders = [
        subprocess.run([sys.executable, "-c", first + code], capture_output=True, text=True, check=True).stdout
        for first in ("", "import edgecore_conformance.checks.text_tokens, edgecore_conformance.checks.weights;")
    ]
    assert orders[0] == orders[1]


def test_every_check_says_what_is_done_and_why() -> None:
    """Or that it does as another, which says it."""
    checks = all_checks()
    texts = {n: (c.__doc__ or "").partition("\n")[2].split() for n, c in checks.items()}
    as_other = {n for n, t in texts.items() if t[:1] == ["As"] and t[1].rstrip(",.") in checks}
    assert [n for n, t in texts.items() if len(t) < 20 and n not in as_other] == []


# ---- the examples ----


@pytest.fixture
def example() -> Iterator[Check]:
    """The check of the page, registered while a test runs."""
    all_checks()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "CHECKS", dict(checks.CHECKS))
        exec(compile(_block("check"), "docs/conformance.md", "exec"), {"__name__": "shown"})
        yield checks.CHECKS["text.twice"]


def _block(title: str) -> str:
    (body,) = [body for _, named, body in BLOCK.findall(PAGE) if named == title]
    return str(body)


def test_the_check_of_the_page_lets_the_reference_pass(example: Check, tmp_path: Path) -> None:
    entry = registry.find("reference")
    bench = Bench(entry, Known(entry.ready_manifest, "cpu"), tmp_path / "work")
    try:
        row = run_row(example, {}, bench, tmp_path / "bundle")
    finally:
        bench.close()
    assert (row.outcome, row.message) == (Outcome.PASSED, "")
    assert [figure["name"] for figure in row.figures] == ["apart"]


def test_the_check_of_the_page_catches_the_mutant_of_the_page(
    example: Check, tmp_path: Path, converted: Converted
) -> None:
    names: dict[str, Mutant] = {}
    exec(compile(_block("mutant"), "docs/conformance.md", "exec"), names)
    (row,) = rows_of_mutant(names["KEEPS_ITS_CACHE"], tmp_path, converted)
    assert row.outcome is Outcome.FAILED
    assert row.message.startswith("apart ")


@pytest.fixture
def hello(tmp_path: Path) -> Path:
    """The plugin of the authors' page, as it stands there."""
    for _, title, body in BLOCK.findall((ROOT / "docs/authors.md").read_text(encoding="utf-8")):
        if title and title != "commands":
            path = tmp_path / "edgecore-hello" / title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(body, encoding="utf-8")
    return tmp_path


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(900)
def test_the_plugin_of_the_authors_page_proves_its_claim(hello: Path) -> None:
    command = ["conformance", "run", "--backend", "./edgecore-hello", "--out", "evidence"]
    done = edgecore(*command, cwd=hello, timeout=900)
    assert done.code == 0, done.err + done.out
    assert "claims about cpu: 1/1 proven" in done.out


@pytest.mark.slow
def test_the_test_class_of_the_authors_page_runs_under_pytest(hello: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-k", "manifest", "edgecore-hello/tests"]
    done = subprocess.run(command, cwd=hello, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


# ---- the reports ----


@pytest.fixture(scope="module")
def publishing() -> ModuleType:
    """The script that publishes."""
    spec = importlib.util.spec_from_file_location("reports", ROOT / "benchmarks/conformance_reports.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_published_pages_and_badges_follow_from_their_reports(publishing: ModuleType, tmp_path: Path) -> None:
    to = tmp_path / "reports"
    shutil.copytree(publishing.REPORTS, to)
    publishing.render(to)
    for file in publishing.REPORTS.rglob("*.*"):
        told = f"{file}: run benchmarks/conformance_reports.py --render"
        assert (to / file.relative_to(publishing.REPORTS)).read_bytes() == file.read_bytes(), told


def test_a_report_is_published_with_its_claims_machine_and_rows(publishing: ModuleType, tmp_path: Path) -> None:
    with small_suite(*GOOD, Wrong):
        bundle = run_small(tmp_path / "bundle").folder
        folder = publishing.publish(bundle, tmp_path / "reports")
    publishing.render(tmp_path / "reports")
    assert folder.name == "reference-cpu-quick"
    assert {file.name for file in folder.iterdir()} == {"report.json", "index.html", "badge.svg"}
    page = (tmp_path / "reports/index.md").read_text(encoding="utf-8")
    assert "](reference-cpu-quick/badge.svg)](reference-cpu-quick/index.html)" in page
    assert "7 of 7: 5 passed, 1 not applicable, 1 failed" in page
    assert (folder / "index.html").read_bytes() == (bundle / "index.html").read_bytes()


def test_a_bundle_that_contradicts_itself_is_not_published(publishing: ModuleType, tmp_path: Path) -> None:
    with small_suite():
        bundle = run_small(tmp_path / "bundle").folder
        (bundle / "badge.svg").write_text("<svg/>")
        with pytest.raises(SystemExit, match=r"badge.svg is another file"):
            publishing.publish(bundle, tmp_path / "reports")
    assert not (tmp_path / "reports").exists()


def test_a_bundle_of_some_rows_is_not_published(publishing: ModuleType, tmp_path: Path) -> None:
    with small_suite():
        bundle = run_small(tmp_path / "bundle", "llama").folder
        with pytest.raises(SystemExit, match="1 of 6 rows"):
            publishing.publish(bundle, tmp_path / "reports")


def test_a_bundle_that_names_this_machine_is_not_published(
    publishing: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_suite():
        bundle = run_small(tmp_path / "bundle").folder
        said = json.loads((bundle / "report.json").read_text(encoding="utf-8"))["header"]["plugin"]["distribution"]
        monkeypatch.setattr(publishing.socket, "gethostname", lambda: said)
        with pytest.raises(SystemExit, match=f"report.json names {said}"):
            publishing.publish(bundle, tmp_path / "reports")
