"""A bundle that somebody edited is found, by a message that names the row or the file, however well the rest was made
to fit: `reseal` is what a forger would do who has this very code."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecore_conformance import bundle as bundles
from edgecore_conformance.evidence import rendered
from edgecore_conformance.evidence.report import build
from edgecore_conformance.rows import Row
from edgecore_conformance.verify import CANNOT_KNOW, verify

from support.small_suite import Answers, Bits, Nothing, Wrong, run_small, small_suite

SUITE = (Answers, Bits, Nothing, Wrong)
LLAMA = "text.answers[family=llama]"
LLAMA_RAW = "raw/text.answers_family=llama_"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same run twice, as if on two devices, and once for a challenge."""
    folder = tmp_path_factory.mktemp("bundles")
    with small_suite(*SUITE):
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


def test_a_bundle_that_nobody_touched_is_consistent(bundle: Path) -> None:
    assert found(bundle) == ""


def test_a_bundle_that_was_only_sealed_again_is_consistent(bundle: Path) -> None:
    assert sealed(bundle) == ""


def test_a_figure_that_was_edited(bundle: Path) -> None:
    edit_row(bundle, LLAMA, lambda row: row["figures"][1].update(value=row["figures"][1]["value"] * 1.1))
    assert f"{LLAMA}: spread is" in sealed(bundle)


def test_a_figure_that_was_edited_in_the_report_alone(bundle: Path) -> None:
    report = read(bundle / "report.json")
    next(r for r in report["rows"] if r["row"] == LLAMA)["figures"][0]["value"] = 1e-8
    write(bundle / "report.json", report)
    assert f"{LLAMA}: figures in report.json is not what rows.jsonl has" in sealed(bundle)


def test_a_bound_that_was_edited(bundle: Path) -> None:
    edit_row(bundle, LLAMA, lambda row: row["figures"][0].update(bound=0.01))
    assert f"{LLAMA}: bound of apart is 0.01, computed 0.001" in sealed(bundle)


def test_an_outcome_that_was_edited(bundle: Path) -> None:
    edit_row(bundle, "text.wrong", lambda row: row.update(outcome="passed", message="", stage=""))
    assert "text.wrong: is passed, computed failed" in sealed(bundle)


def test_a_failure_that_became_not_applicable(bundle: Path) -> None:
    change = {"outcome": "not_applicable", "message": "", "stage": "", "figures": [], "raw": {}}
    edit_row(bundle, "text.wrong", lambda row: row.update(change))
    assert "text.wrong: is not_applicable, and the check applies to this manifest" in sealed(bundle)


def test_a_failure_that_became_a_missing_device(bundle: Path) -> None:
    change = {"outcome": "unavailable", "message": "no such device", "stage": "run", "figures": [], "raw": {}}
    edit_row(bundle, "text.wrong", lambda row: row.update(change))
    (bundle / "raw/text.wrong.json").unlink()
    assert "text.wrong: is unavailable, and header.json does not say that the device is" in sealed(bundle)


def test_a_failure_that_became_expected(bundle: Path) -> None:
    edit_row(bundle, "text.wrong", lambda row: row.update(outcome="xfail"))
    assert "text.wrong: is xfail without an exception that says so" in sealed(bundle)


def test_a_failure_that_became_expected_with_an_exception_of_its_own(bundle: Path) -> None:
    exception = {
        "check": "text.wrong",
        "when": {},
        "kind": "xfail",
        "reason": "r",
        "issue": "i",
        "expires": "2099-01-01",
    }
    edit_row(bundle, "text.wrong", lambda row: row.update(outcome="xfail", exception=exception))
    assert "text.wrong: its exception is not the one that the header lists for it" in sealed(bundle)


def test_a_pass_without_outputs(bundle: Path) -> None:
    change = {"outcome": "passed", "message": "", "stage": "", "figures": [], "raw": {}}
    edit_row(bundle, "text.wrong", lambda row: row.update(change))
    (bundle / "raw/text.wrong.json").unlink()
    assert "text.wrong: is passed without raw outputs" in sealed(bundle)


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


def test_a_row_that_was_dropped_from_the_report(bundle: Path) -> None:
    drop(bundle, "text.wrong", "report")
    assert "text.wrong has no row" in sealed(bundle)


def test_a_row_that_was_dropped_from_report_and_row_file(bundle: Path) -> None:
    drop(bundle, "text.wrong", "report", "rows")
    assert "text.wrong has no row" in sealed(bundle)


def test_a_row_that_was_dropped_everywhere(bundle: Path) -> None:
    drop(bundle, "text.wrong", "report", "rows", "selected")
    (bundle / "raw/text.wrong.json").unlink()
    said = sealed(bundle)
    assert "6 of 7 rows are selected, and the command selects all of them" in said
    assert "text.wrong" in said


def test_a_selection_that_was_shortened(bundle: Path) -> None:
    drop(bundle, "text.wrong", "selected")
    said = sealed(bundle)
    assert "text.wrong is in report.json, and selected.json does not have it" in said
    assert "text.wrong is in rows.jsonl, and was not selected" in said


def test_a_row_that_stands_twice(bundle: Path) -> None:
    report = read(bundle / "report.json")
    report["rows"].append(next(r for r in report["rows"] if r["row"] == LLAMA))
    write(bundle / "report.json", report)
    assert f"{LLAMA} was selected, and stands in report.json 2 times" in sealed(bundle)


def test_a_row_that_was_added(bundle: Path) -> None:
    report = read(bundle / "report.json")
    report["rows"].append({**report["rows"][0], "row": "text.answers[family=gemma3]"})
    write(bundle / "report.json", report)
    assert "text.answers[family=gemma3] is in report.json, and selected.json does not have it" in sealed(bundle)


def test_a_row_that_was_added_everywhere(bundle: Path) -> None:
    new = "text.answers[family=gemma3]"
    report = read(bundle / "report.json")
    row = {**report["rows"][0], "row": new}
    write(bundle / "report.json", {**report, "rows": [*report["rows"], row]})
    write(bundle / "selected.json", [*read(bundle / "selected.json"), new])
    with (bundle / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({**row, "state": "finished"}) + "\n")
    assert f"{new} is selected, and level quick of this suite has no such row" in sealed(bundle)


def test_a_word_that_is_no_outcome(bundle: Path) -> None:
    edit_row(bundle, "text.wrong", lambda row: row.update(outcome="nearly"))
    said = found(bundle)
    assert "report.json at rows/" in said
    assert "'nearly' is not one of" in said


def test_a_raw_output_that_was_replaced(bundle: Path) -> None:
    np.savez_compressed(bundle / f"{LLAMA_RAW}.npz", logits=np.zeros((6, 8), np.float32))
    said = found(bundle)
    assert f"{LLAMA_RAW}.npz is another file than the one whose digest is noted" in said
    assert f"{LLAMA}: {LLAMA_RAW}.npz is another file than the one whose digest the row has" in said


def test_a_raw_output_that_was_replaced_with_its_digests(bundle: Path) -> None:
    np.savez_compressed(bundle / f"{LLAMA_RAW}.npz", logits=np.zeros((6, 512), np.float32))
    digest_rows(bundle, LLAMA)
    assert f"{LLAMA}: " in (said := sealed(bundle))
    assert "computed failed" in said


def test_a_raw_output_that_was_removed(bundle: Path) -> None:
    (bundle / f"{LLAMA_RAW}.npz").unlink()
    assert f"{LLAMA_RAW}.npz is missing" in found(bundle)
    assert f"{LLAMA}: {LLAMA_RAW}.npz is missing" in sealed(bundle)


def test_outputs_of_another_device(bundle: Path, made: dict[str, Path]) -> None:
    for file in made["elsewhere"].glob("raw/*"):
        shutil.copy(file, bundle / "raw" / file.name)
    for row in read(bundle / "selected.json"):
        digest_rows(bundle, row)
    assert f"{LLAMA}: raw outputs are of a run with another header.json" in sealed(bundle)


def test_outputs_of_another_row(bundle: Path) -> None:
    shutil.copy(bundle / "raw/quantize.bits_precision=f16_.json", bundle / "raw/quantize.bits_precision=f32_.json")
    digest_rows(bundle, "quantize.bits[precision=f32]")
    said = sealed(bundle)
    assert "quantize.bits[precision=f32]: raw outputs are of row 'quantize.bits[precision=f16]'" in said


def test_a_challenge_answered_with_outputs_of_another_seed(bundle: Path) -> None:
    edit_header(bundle, lambda header: header.update(seed=7))
    restamp(bundle)
    said = sealed(bundle)
    assert f"{LLAMA}: " in said
    assert "the tokens are not those that the seed draws" in said


def test_a_challenge_that_was_answered_is_consistent(made: dict[str, Path]) -> None:
    assert found(made["challenged"]) == ""


def test_claims_that_were_raised_by_hand(bundle: Path) -> None:
    report = read(bundle / "report.json")
    claim = next(c for c in report["claims"]["of"] if c["state"] != "proven")
    claim.update(state="proven", because=[])
    report["claims"]["proven"] += 1
    write(bundle / "report.json", report)
    said = sealed(bundle, "claims")
    assert "claims in report.json does not follow from the rows" in said
    assert "proven" in said


def test_sums_that_were_edited(bundle: Path) -> None:
    report = read(bundle / "report.json")
    report["outcomes"] = {"passed": 6, "not_applicable": 1}
    write(bundle / "report.json", report)
    assert "outcomes in report.json does not follow from the rows" in sealed(bundle, "outcomes")


def test_a_row_that_speaks_of_fewer_claims(bundle: Path) -> None:
    edit_row(bundle, "text.wrong", lambda row: row.update(proves={"family": "none"}))
    assert "text.wrong: speaks of {'family': 'none'}, the check of {}" in sealed(bundle)


@pytest.mark.parametrize("name", ["badge.svg", "index.html", "junit.xml"])
def test_a_report_that_shows_something_else(bundle: Path, name: str) -> None:
    text = (bundle / name).read_text(encoding="utf-8")
    (bundle / name).write_text(text.replace("reference", "wonderful"), encoding="utf-8")
    report = read(bundle / "report.json")
    write(bundle / "report.json", {**report, "files": bundles.digests(bundle)})
    assert f"{name} does not show what report.json says" in found(bundle)


def test_another_suite_digest(bundle: Path) -> None:
    edit_header(bundle, lambda header: header["suite"].update(digest="6" * 64))
    restamp(bundle)
    assert "the suite digest 6666666666666666 is not this suite's" in sealed(bundle)


def test_another_suite_version_says_what_to_install(bundle: Path) -> None:
    edit_header(bundle, lambda header: header["suite"].update(version="9.9"))
    assert "install edgecore-conformance==9.9 to verify it" in sealed(bundle)


def test_a_header_that_was_edited(bundle: Path) -> None:
    edit_header(bundle, lambda header: header["device"].update(description="NPU 5000"))
    assert f"{LLAMA}: raw outputs are of a run with another header.json" in sealed(bundle)


def test_a_header_that_was_edited_in_the_report_alone(bundle: Path) -> None:
    report = read(bundle / "report.json")
    report["header"]["runtime"]["version"] = "99"
    write(bundle / "report.json", report)
    assert "header.json and report.json tell different headers: runtime/version" in sealed(bundle, "header")


def test_another_manifest(bundle: Path) -> None:
    manifest = read(bundle / "manifest.json")
    manifest["claims"] = manifest["claims"][:1]
    write(bundle / "manifest.json", manifest)
    assert "manifest.json is not the manifest that header.json names" in sealed(bundle)


def test_a_file_that_was_added(bundle: Path) -> None:
    (bundle / "raw/more.json").write_text("{}")
    assert "raw/more.json is not in the list of files" in found(bundle)


def test_a_link_in_the_place_of_a_file(bundle: Path) -> None:
    file = bundle / f"{LLAMA_RAW}.npz"
    file.rename(bundle.parent / "elsewhere.npz")
    file.symlink_to(bundle.parent / "elsewhere.npz")
    assert f"{LLAMA_RAW}.npz is another file" in found(bundle)


def test_a_raw_output_that_would_run_code_is_not_opened(bundle: Path) -> None:
    np.savez(bundle / f"{LLAMA_RAW}.npz", logits=np.array([print], object))
    digest_rows(bundle, LLAMA)
    assert f"{LLAMA}: raw outputs cannot be read" in sealed(bundle)


def test_what_cannot_be_found_is_said(bundle: Path, made: dict[str, Path]) -> None:
    """Right outputs, computed on another machine, stamped and sealed as this one's: nobody can tell from a bundle."""
    for file in made["elsewhere"].glob("raw/*"):
        shutil.copy(file, bundle / "raw" / file.name)
    restamp(bundle)
    assert sealed(bundle) == ""
    assert "whether the raw outputs came from this device" in CANNOT_KNOW[0]
