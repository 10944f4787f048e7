"""A plugin's own conformance.toml: what it may say, what it changes, and what it can never buy."""

from __future__ import annotations

import tomllib
from datetime import date
from pathlib import Path

import pytest

from edgecore.contract.errors import BadRequest
from edgecore_conformance.expectations import Circumstances, Expectations, parse
from edgecore_conformance.outcomes import Outcome
from edgecore_conformance.rows import Row
from edgecore_conformance.verify import verify

from support.small_suite import GOOD, Shaky, Wrong, exception, run_small, small_suite, write_plugin

HERE = Circumstances("cpu", "quick", "linux-x86_64")
ROWS = [
    ("text.logits", {"family": "llama"}),
    ("text.logits", {"family": "phi3"}),
    ("quantize.bits", {"precision": "q4"}),
]
TODAY = date(2026, 11, 21)


def entries(text: str) -> Expectations:
    return Expectations(parse(tomllib.loads(text), "conformance.toml"))


@pytest.mark.parametrize(
    ("check", "when", "matched"),
    [
        ("text.logits", "", 2),
        ("text.*", "", 2),
        ("text.logits", 'family = "phi3"', 1),
        ("*", 'precision = "q*"', 1),
        ("*", 'device = "cpu", level = "quick", platform = "linux-*"', 3),
        ("*", 'device = "gpu"', 0),
        ("*", 'level = "full"', 0),
        ("*", 'platform = "darwin-*"', 0),
    ],
)
def test_an_entry_matches_by_name_cell_and_circumstances(check: str, when: str, matched: int) -> None:
    read = entries(exception(check, when=when))
    assert sum(read.find(name, cell, HERE) is not None for name, cell in ROWS) == matched


def test_an_entry_that_no_row_matches_is_an_error() -> None:
    with pytest.raises(BadRequest, match=r"exception 1 \(text.logit\) matches no row"):
        entries(exception("text.logit")).hold(ROWS, HERE, TODAY)


def test_a_field_that_no_cell_has_matches_no_row() -> None:
    with pytest.raises(BadRequest, match="matches no row"):
        entries(exception("text.logits", when='famly = "llama"')).hold(ROWS, HERE, TODAY)


def test_an_entry_about_another_device_is_not_this_runs_business() -> None:
    entries(exception("text.whatever", when='device = "gpu"')).hold(ROWS, HERE, TODAY)


def test_an_entry_that_has_expired_is_an_error_that_says_when_and_why() -> None:
    read = entries(exception("text.logits", expires="2026-11-20"))
    with pytest.raises(BadRequest, match="expired on 2026-11-20: known") as error:
        read.hold(ROWS, HERE, TODAY)
    assert error.value.hint == "the same with --no-expectations"


def test_an_entry_is_good_on_its_last_day() -> None:
    entries(exception("text.logits", expires="2026-11-21")).hold(ROWS, HERE, TODAY)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (exception("a.b").replace('reason = "known"\n', ""), "exception 1: without reason"),
        (exception("a.b").replace("2099-01-01", '"soon"'), "expires = 'soon'"),
        (exception("a.b", kind="ignored"), "kind = 'ignored'"),
        (exception("a.b") + "extra = 1\n", "exception 1: extra"),
        (exception("a.b", when="level = 3"), "when = {'level': 3}"),
        (exception("a.b", when='level = "quik"'), "exception 1: level = 'quik'"),
        (exception("a.b").replace('"known"', '["known"]'), "exception 1: reason = ['known']"),
        ("[[exception]]\n", "conformance.toml: exception"),
        ("exceptions = 3\n", "no array of tables"),
    ],
)
def test_what_an_entry_lacks_or_should_not_have_is_named(text: str, names: str) -> None:
    with pytest.raises(BadRequest) as error:
        entries(text)
    assert names in error.value.what


def run(tmp_path: Path, text: str, *, only: str = "text", **how: object) -> list[Row]:
    """Rows of the small suite with two bad checks, and a bundle that verifies."""
    Shaky.times = 0
    folder = write_plugin(tmp_path / "mine", text)
    with small_suite(*GOOD, Wrong, Shaky):
        made = run_small(tmp_path / "bundle", only, str(folder), **how)
        checked = verify(tmp_path / "bundle").contradictions
    assert [c for c in checked if "rows are selected, and the command selects all" not in c] == []
    assert made.report is not None
    return [Row.from_dict(r) for r in made.report["rows"]]


def outcome(rows: list[Row], check: str) -> Outcome:
    return next(r.outcome for r in rows if r.check == check)


def test_a_failure_that_was_expected_is_xfail_and_keeps_its_message(tmp_path: Path) -> None:
    rows = run(tmp_path, exception("text.wrong"), only="wrong")
    assert outcome(rows, "text.wrong") is Outcome.XFAIL
    assert "value 3 misses <= 2" in rows[0].message
    assert rows[0].exception["issue"] == "https://example.org/1"


def test_a_pass_that_was_not_expected_fails(tmp_path: Path) -> None:
    rows = run(tmp_path, exception("text.answers", when='family = "llama"'), only="answers")
    assert [r.outcome for r in rows] == [Outcome.XPASS, Outcome.PASSED]
    assert not Outcome.XPASS.good


def test_a_disabled_check_is_not_run(tmp_path: Path) -> None:
    rows = run(tmp_path, exception("text.shaky", kind="disabled"), only="shaky")
    assert outcome(rows, "text.shaky") is Outcome.DISABLED
    assert rows[0].message == "known"
    assert Shaky.times == 0


def test_a_flaky_check_is_run_up_to_three_times_and_every_time_is_told(tmp_path: Path) -> None:
    rows = run(tmp_path, exception("text.shaky", kind="flaky"), only="shaky")
    assert outcome(rows, "text.shaky") is Outcome.PASSED
    assert rows[0].exception["tries"] == "failed, failed, passed"


def test_a_flaky_check_that_never_passes_fails(tmp_path: Path) -> None:
    rows = run(tmp_path, exception("text.wrong", kind="flaky"), only="wrong")
    assert outcome(rows, "text.wrong") is Outcome.FAILED
    assert rows[0].exception["tries"] == "failed, failed, failed"


def test_without_expectations_the_file_is_ignored(tmp_path: Path) -> None:
    rows = run(tmp_path, exception("text.nonesuch"), only="wrong", expectations=False)
    assert outcome(rows, "text.wrong") is Outcome.FAILED


def test_a_claim_never_leans_on_an_exception(tmp_path: Path) -> None:
    folder = write_plugin(tmp_path / "mine", exception("text.wrong") + exception("text.shaky", kind="disabled"))
    with small_suite(*GOOD, Wrong, Shaky):
        report = run_small(tmp_path / "bundle", backend=str(folder)).report
    assert report is not None
    assert (report["claims"]["proven"], report["claims"]["claimed"]) == (0, 2)
    assert report["claims"]["of"][0]["because"] == ["text.wrong: xfail", "text.shaky: disabled"]
    assert len(report["exceptions"]) == 2


def test_an_unmatched_entry_ends_the_run_before_it_begins(tmp_path: Path) -> None:
    folder = write_plugin(tmp_path / "mine", exception("text.nonesuch"))
    with small_suite(), pytest.raises(BadRequest, match="matches no row"):
        run_small(tmp_path / "bundle", backend=str(folder))
