"""A bundle that somebody edited is found, by a message that names the row or the file, however well the rest was made
to fit: `reseal` is what a forger would do who has this very code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgecore_conformance import bundle as bundles
from edgecore_conformance.verify import CANNOT_KNOW

from support.forging import (
    LLAMA,
    LLAMA_RAW,
    digest_rows,
    drop,
    edit_header,
    edit_row,
    found,
    read,
    restamp,
    sealed,
    write,
)


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
