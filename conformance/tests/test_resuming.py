"""Going on with a run that was killed, with what a full disk left of it, and with what is no run at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecore.contract.errors import BadRequest
from edgecore_conformance.verify import verify

from support.small_suite import GOOD, Wrong, run_small, small_suite


def test_a_killed_run_is_gone_on_with(tmp_path: Path) -> None:
    with small_suite(*GOOD, Wrong):
        run_small(tmp_path / "b", seed=3)
    lines = (tmp_path / "b/rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "b/rows.jsonl").write_text("".join(lines[:3]) + '{"row": "cut in the mid')
    for name in ("report.json", "index.html", "junit.xml", "badge.svg"):
        (tmp_path / "b" / name).unlink()
    with small_suite(*GOOD, Wrong):
        made = run_small(tmp_path / "b", seed=3, resume=True)
        assert made.report is not None
        assert made.report["outcomes"] == {"passed": 5, "not_applicable": 1, "failed": 1}
        assert verify(tmp_path / "b").contradictions == []


def test_rows_that_a_full_disk_left_half_are_run_again(tmp_path: Path) -> None:
    with small_suite(*GOOD, Wrong):
        run_small(tmp_path / "b")
        (tmp_path / "b/raw/text.wrong.json").write_bytes(b"")
        with (tmp_path / "b/rows.jsonl").open("ab") as file:
            file.write(b'{"row": "tensor.nothing", "state": "finished"}\n[]\n\xff\xfe\x00')
        run_small(tmp_path / "b", resume=True)
        assert verify(tmp_path / "b").contradictions == []
    assert (tmp_path / "b/rows.jsonl").read_text().count('"state": "finished"') == 7


def test_a_run_that_was_killed_before_it_noted_its_session_is_gone_on_with(tmp_path: Path) -> None:
    with small_suite(*GOOD):
        run_small(tmp_path / "b")
        (tmp_path / "b/sessions.json").unlink()
        run_small(tmp_path / "b", resume=True)
        assert verify(tmp_path / "b").contradictions == []


@pytest.mark.parametrize("name", ["header.json", "selected.json", "sessions.json"])
@pytest.mark.parametrize("text", ["", "7", '{"a'])
def test_resume_of_a_bundle_that_cannot_be_read_names_the_file_and_what_to_type(
    name: str, text: str, tmp_path: Path
) -> None:
    with small_suite(Wrong):
        run_small(tmp_path / "b")
        (tmp_path / "b" / name).write_text(text)
        with pytest.raises(BadRequest, match=name) as refused:
            run_small(tmp_path / "b", resume=True)
    assert refused.value.hint == "the same with another --out and without --resume"


def test_resume_never_writes_into_a_folder_that_holds_no_run(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for resume in (False, True):
        with small_suite(Wrong), pytest.raises(BadRequest, match=r"holds no run that was begun: mine\.txt") as refused:
            run_small(tmp_path, resume=resume)
        assert refused.value.hint == "the same with another --out"
    assert [f.name for f in tmp_path.iterdir()] == ["mine.txt"]
