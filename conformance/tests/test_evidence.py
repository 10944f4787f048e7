"""What a run leaves: a report that adds up, and reports for machines and people that say the same."""

from __future__ import annotations

import getpass
import json
import re
import shutil
import socket
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest

from edgecore.contract.errors import BadRequest
from edgecore_conformance import bundle as bundles
from edgecore_conformance import header as headers
from edgecore_conformance.evidence import rendered
from edgecore_conformance.evidence.badge import badge, words
from edgecore_conformance.evidence.report import schema, validate
from edgecore_conformance.outcomes import Outcome

from support.small_suite import GOOD, NO_DEVICE, Wrong, exception, run_small, small_suite, write_plugin

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference, with one bad check."""
    folder = tmp_path_factory.mktemp("evidence") / "bundle"
    with small_suite(*GOOD, Wrong):
        run_small(folder)
    return folder


@pytest.fixture
def report(bundle: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((bundle / "report.json").read_text(encoding="utf-8"))
    return read


def test_the_report_is_what_its_published_schema_says(report: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    validate(report)
    assert set(schema()["$defs"]["outcome"]["enum"]) == {o.value for o in Outcome}


def test_a_report_that_is_not_is_refused_with_the_place(report: dict[str, Any]) -> None:
    report["rows"][2]["outcome"] = "fine"
    with pytest.raises(BadRequest, match=r"report.json at rows/2/outcome: 'fine' is not one of"):
        validate(report)


def test_sums_add_up_to_the_selected_rows(report: dict[str, Any]) -> None:
    assert sum(report["outcomes"].values()) == len(report["rows"]) == report["rows_selected"] == 7
    assert sum(g["rows"] for g in report["groups"].values()) == 7
    assert report["outcomes"] == dict(Counter(r["outcome"] for r in report["rows"]))


def test_an_aggregate_is_the_worst_of_its_parts(report: dict[str, Any]) -> None:
    assert report["outcome"] == "failed"
    assert {n: g["outcome"] for n, g in report["groups"].items()} == {
        "quantize": "passed", "text": "failed", "tensor": "not_applicable",
    }  # fmt: skip
    assert (report["groups"]["text"]["good"], report["groups"]["text"]["rows"]) == (2, 3)


def test_figures_stand_beside_their_bounds(report: dict[str, Any]) -> None:
    row = next(r for r in report["rows"] if r["row"] == "text.answers[family=llama]")
    apart, spread = row["figures"]
    assert (apart["bound"], apart["relation"], apart["origin"]) == (1e-3, "<=", "chosen for a test")
    assert apart["value"] <= 1e-3
    assert spread["bound"] is None


def test_every_file_but_the_report_has_its_digest_in_it(bundle: Path, report: dict[str, Any]) -> None:
    here = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()} - {"report.json"}
    assert set(report["files"]) == here
    assert report["files"] == bundles.digests(bundle)
    assert "raw/text.answers_family=llama_.npz" in here


def test_the_header_says_who_ran_what_where(report: dict[str, Any]) -> None:
    header = report["header"]
    assert header["plugin"]["name"] == "reference"
    assert header["device"]["description"].startswith("numpy with ")
    assert header["drivers"]["numpy"] == header["runtime"]["version"]
    assert (header["level"], header["seed"]) == ("quick", 0)
    assert header["host"]["threads"] >= 1
    assert re.fullmatch("[0-9a-f]{32}", header["run"])


def test_nobody_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(p.read_text(encoding="utf-8", errors="ignore") for p in bundle.rglob("*") if p.is_file())
    named = [str(Path.home()) + "/", *([socket.gethostname()] if len(socket.gethostname()) > 6 else [])]
    named += [getpass.getuser()] if getpass.getuser() not in ("root", "user", "runner") else []
    assert [word for word in named if word in text] == []
    assert "$TMP/" in (bundle / "raw/text.answers_family=llama_.json").read_text(), "paths are reduced in raw outputs"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["/home/jane/venv/bin/edgecore", "conformance", "run"], "edgecore conformance run"),
        (["/x/edgecore/__main__.py", "conformance", "--out", "/home/jane/b"], "edgecore conformance --out b"),
        (["edgecore", "--backend=/home/jane/plugins/mine", "-k", "text"], "edgecore --backend=mine -k text"),
    ],
)
def test_a_command_is_kept_with_its_paths_reduced(argv: list[str], said: str) -> None:
    assert headers.command(argv) == said


def test_the_working_folder_and_what_links_lead_to_are_reduced_the_innermost_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data/jane/plugin").mkdir(parents=True)
    (tmp_path / "home").symlink_to(tmp_path / "data/jane")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/nowhere")
    monkeypatch.chdir(tmp_path / "data/jane/plugin")
    assert headers.reduced(f"{tmp_path}/data/jane/plugin/x.py and {tmp_path}/data/jane/y") == "$PWD/x.py and ~/y"
    monkeypatch.chdir(tmp_path / "data")
    assert headers.reduced(f"{tmp_path}/data/jane/y") == "~/y"


def test_a_probe_that_names_folders_is_reduced_too(tmp_path: Path) -> None:
    hooks = NO_DEVICE.replace('"it was taken out"', "__file__").replace('"2.0"', "__file__")
    with small_suite(Wrong):
        run_small(tmp_path / "b", backend=str(write_plugin(tmp_path / "mine", hooks=hooks)))
    header = json.loads((tmp_path / "b/header.json").read_text())
    assert header["device"]["reason"].startswith("$TMP/")
    assert header["drivers"]["numpy"].startswith("$TMP/")


def test_paths_are_reduced_and_words_that_contain_them_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "_places", lambda: [("/home/jane", "~"), ("/tmp", "$TMP")])
    assert headers.reduced("no /home/jane/model.gguf, no /tmp") == "no ~/model.gguf, no $TMP"
    assert headers.reduced("/home/janet /var/tmp/x /tmpfs") == "/home/janet /var/tmp/x /tmpfs"
    assert headers.reduced_facts({"a": ["/tmp/x", 3, None], "b": {"c": "/home/jane"}}) == {
        "a": ["$TMP/x", 3, None], "b": {"c": "~"},
    }  # fmt: skip


def test_the_governor_is_read_where_there_is_one(tmp_path: Path) -> None:
    file = tmp_path / "devices/system/cpu/cpu0/cpufreq/scaling_governor"
    file.parent.mkdir(parents=True)
    file.write_text("powersave\n")
    assert headers.power(tmp_path)["governor"] == "powersave"
    assert "governor" not in headers.power(tmp_path / "none")


def test_junit_has_a_case_a_row_and_the_outcomes_own_word(bundle: Path, report: dict[str, Any]) -> None:
    root = ElementTree.parse(bundle / "junit.xml").getroot()
    cases = {c.get("name"): c for c in root.iter("testcase")}
    assert set(cases) == {r["row"] for r in report["rows"]}
    failure = cases["text.wrong"].find("failure")
    assert failure is not None
    assert (failure.get("type"), failure.text) == ("failed", "value 3 misses <= 2")
    assert cases["tensor.nothing"].find("skipped") is not None
    assert sum(int(s.get("tests", "")) for s in root.iter("testsuite")) == 7
    assert sum(int(s.get("failures", "")) for s in root.iter("testsuite")) == 1


def test_junit_is_xml_whatever_a_message_holds(report: dict[str, Any]) -> None:
    report["rows"][-1].update(
        outcome="failed", message="a\x00b \x1b[31m ]]> <x> \ud800".encode("utf-8", "replace").decode()
    )
    ElementTree.fromstring(rendered(report)["junit.xml"].encode())


class _Page(HTMLParser):
    """Addresses and ids of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids, self.addresses, self.tags = set[str](), list[str](), Counter[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attributes:
            if name == "id":
                self.ids.add(value or "")
            if name in ("href", "src", "action", "data"):
                self.addresses.append(value or "")


def test_the_page_needs_nothing_else(bundle: Path) -> None:
    text = (bundle / "index.html").read_text(encoding="utf-8")
    page = _Page(text)
    assert {a[0] for a in page.addresses} == {"#"}
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert "url(" not in text
    assert "@import" not in text


def test_every_cell_opens_its_row_or_its_claim(bundle: Path, report: dict[str, Any]) -> None:
    page = _Page((bundle / "index.html").read_text(encoding="utf-8"))
    opened = {a.removeprefix("#") for a in page.addresses} - {"-"}
    rows, claims = len(report["rows"]), len(report["claims"]["of"])
    assert opened == {f"r{n}" for n in range(rows)} | {f"c{n}" for n in range(claims)}
    assert opened <= page.ids


def test_a_claim_names_the_rows_that_refute_it_and_leads_to_them(bundle: Path, report: dict[str, Any]) -> None:
    number = next(n for n, r in enumerate(report["rows"]) if r["row"] == "text.wrong")
    text = (bundle / "index.html").read_text(encoding="utf-8")
    refuted = [c for c in report["claims"]["of"] if c["task"] == "text"]
    assert text.count(f'<li><a href="#r{number}">text.wrong: failed</a></li>') == len(refuted) > 0


def test_the_page_escapes_what_a_plugin_says(report: dict[str, Any]) -> None:
    report["rows"][0]["message"] = "<script>alert(1)</script>"
    text = rendered(report)["index.html"]
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


CLICKS = """
<script>
const shown = () => [...document.querySelectorAll('.row')].filter(e => getComputedStyle(e).display != 'none');
const after = () => new Promise(done => setTimeout(done, 5));
addEventListener('load', async () => {
  const cells = [...document.querySelectorAll('td a')], found = {cells: cells.length, wrong: [], closed: 0};
  for (const cell of cells) {
    cell.click(); await after();
    const open = shown(), figures = open.length == 1 ? open[0].querySelectorAll('tbody tr').length : -1;
    found[open.map(e => e.id)] = figures;
    if (open.length != 1 || '#' + open[0].id != cell.getAttribute('href')) found.wrong.push(cell.innerText);
    open[0].querySelector('.close').click(); await after();
    found.closed += shown().length == 0;
  }
  found.wide = document.documentElement.scrollWidth <= innerWidth;
  document.title = JSON.stringify(found);
});
</script>"""
"""Every cell is clicked, what is open then is noted with its number of figures, and closed again."""


@pytest.mark.skipif(CHROMIUM is None, reason="neither chromium nor google-chrome is installed here")
def test_in_a_browser_every_cell_that_is_clicked_opens_its_own_figures_alone(
    bundle: Path, report: dict[str, Any], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    page.write_text((bundle / "index.html").read_text(encoding="utf-8") + CLICKS, encoding="utf-8")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'chromium'}",
        "--virtual-time-budget=20000", "--window-size=1000,800", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    title = re.search("<title>({.*?})</title>", done.stdout)
    assert title is not None, done.stderr[-2000:]
    rows, claims = report["rows"], report["claims"]["of"]
    figures = {f"r{n}": len(row["figures"]) for n, row in enumerate(rows)} | {f"c{n}": 0 for n in range(len(claims))}
    cells = len(rows) + len(claims)
    assert json.loads(title[1]) == {"cells": cells, "wrong": [], "closed": cells, "wide": True, **figures}


def test_the_badge_tells_proven_of_claimed_device_level_and_exceptions(tmp_path: Path) -> None:
    folder = write_plugin(tmp_path / "mine", exception("text.wrong"))
    with small_suite(*GOOD, Wrong):
        report = run_small(tmp_path / "bundle", backend=str(folder)).report
    assert report is not None
    assert words(report) == "0/2 proven, 1 exception"
    svg = badge(report)
    assert (
        ElementTree.fromstring(svg).get("aria-label")
        == "edgecore conformance: mine · cpu · quick: 0/2 proven, 1 exception"
    )


def test_the_badge_of_some_rows_says_so(tmp_path: Path) -> None:
    with small_suite():
        report = run_small(tmp_path / "bundle", "llama").report
    assert report is not None
    assert words(report) == "0/22 proven, 1 of 6 rows"


def test_an_emulator_is_never_proven(tmp_path: Path) -> None:
    folder = write_plugin(tmp_path / "mine", emulated=True)
    with small_suite():
        report = run_small(tmp_path / "bundle", backend=str(folder)).report
    assert report is not None
    assert words(report) == "0/2 proven, 2 emulated"
    assert "on an emulator" in rendered(report)["index.html"]
