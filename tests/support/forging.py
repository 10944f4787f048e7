"""What a forger does to a bundle who has this very code; `sealed` makes everything else fit, and asks `verify`.

The fixtures `bundle` and `made` reach the tests of the suite through their conftest.py.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgecore_conformance import bundle as bundles
from edgecore_conformance.evidence import rendered
from edgecore_conformance.evidence.report import build
from edgecore_conformance.rows import Row
from edgecore_conformance.verify import verify

from support.small_suite import Answers, Bits, Nothing, Wrong, run_small, small_suite

SUITE = (Answers, Bits, Nothing, Wrong)
LLAMA = "text.answers[family=llama]"
LLAMA_RAW = "raw/text.answers_family=llama_"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same run twice, as if on two devices, and once for a challenge."""
    folder = tmp_path_factory.mktemp("bundles")
    with small_suite(*SUITE), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["edgecore", "conformance", "run", "--backend", "reference"])
        for name, seed in (("here", 0), ("elsewhere", 0), ("challenged", 7)):
            run_small(folder / name, seed=seed)
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def bundle(made: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(made["here"], tmp_path / "bundle")


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value), encoding="utf-8")


def edit_row(bundle: Path, row: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """In the report and in the row file alike."""
    report = read(bundle / "report.json")
    for data in report["rows"]:
        if data["row"] == row:
            change(data)
    write(bundle / "report.json", report)
    lines = [json.loads(line) for line in (bundle / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        if line["row"] == row and line["state"] == "finished":
            change(line)
    (bundle / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def edit_header(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    for file, inside in ((bundle / "header.json", False), (bundle / "report.json", True)):
        value = read(file)
        change(value["header"] if inside else value)
        write(file, value)


def restamp(bundle: Path) -> None:
    """Ties every raw output to the header as it is now."""
    digest = hashlib.sha256((bundle / "header.json").read_bytes()).hexdigest()
    for row in read(bundle / "report.json")["rows"]:
        for path in row["raw"]:
            if path.endswith(".json"):
                facts = read(bundle / path)
                facts["edgecore_conformance"] = {"row": row["row"], "header": digest}
                write(bundle / path, facts)
        digest_rows(bundle, row["row"])


def digest_rows(bundle: Path, row: str) -> None:
    """The row's digests become those of the files that lie there."""

    def change(data: dict[str, Any]) -> None:
        data["raw"] = {p: hashlib.sha256((bundle / p).read_bytes()).hexdigest() for p in data["raw"]}

    edit_row(bundle, row, change)


def reseal(bundle: Path, *keep: str) -> None:
    """Sums, groups, claims (but what `keep` names), the other reports and all digests are made to fit the rows."""
    from edgecore_conformance.check import all_checks
    from edgecore_conformance.known import Known
    from edgecore_conformance.running import rows_of

    opened = bundles.open_bundle(bundle)
    known = Known(opened.manifest, opened.header["device"]["name"], "quick")
    pairs = [(c, cell) for c in all_checks().values() for cell in rows_of(c, known)]
    rows = [Row.from_dict(r) for r in opened.report["rows"]]
    again = build(opened.header, opened.report["sessions"], opened.manifest, rows, pairs)
    report = {**opened.report, **{n: v for n, v in again.items() if n not in keep}}
    for name, text in rendered(report).items():
        (bundle / name).write_text(text, encoding="utf-8", newline="\n")
    write(bundle / "report.json", {**report, "files": bundles.digests(bundle)})


def found(bundle: Path) -> str:
    with small_suite(*SUITE):
        return "\n".join(verify(bundle).contradictions)


def sealed(bundle: Path, *keep: str) -> str:
    with small_suite(*SUITE):
        reseal(bundle, *keep)
    return found(bundle)


def drop(bundle: Path, row: str, *places: str) -> None:
    report = read(bundle / "report.json")
    if "report" in places:
        report["rows"] = [r for r in report["rows"] if r["row"] != row]
        write(bundle / "report.json", report)
    if "rows" in places:
        lines = (bundle / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["row"] != row]
        (bundle / "rows.jsonl").write_text("".join(kept), encoding="utf-8")
    if "selected" in places:
        write(bundle / "selected.json", [i for i in read(bundle / "selected.json") if i != row])
