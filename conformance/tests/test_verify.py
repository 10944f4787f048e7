"""What verify says of honest bundles, of bundles that are none, and of what it cannot judge."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest

from edgecore.contract.errors import BadRequest
from edgecore.contract.manifest import Manifest
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell
from edgecore_conformance.known import Known
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.outcomes import Outcome
from edgecore_conformance.rejudging import _close, _numberless
from edgecore_conformance.verify import CANNOT_KNOW, verify

from support.small_suite import GOOD, NO_DEVICE, Wrong, run_small, small_suite, write_plugin


class Absent(Wrong):
    """text.absent: the device is not there."""

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        from edgecore.contract.errors import DeviceUnavailable

        raise DeviceUnavailable("there is no such device")


class Spared(Wrong):
    """text.spared: finds that there is nothing to judge here, from what it saw."""

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        verdict.claimed = Outcome.NOT_APPLICABLE


class Edge(Wrong):
    """text.edge: a figure that lies on its bound, within what machines differ by."""

    shift = 0.0

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        verdict.figure("value", 1.0 + type(self).shift, 1.0005)


class Twice(Wrong):
    """text.twice: has two cells whose ids differ in a sign only."""

    def cells(self, manifest: Manifest, device: str, level: str) -> tuple[Cell, ...]:
        return ({"size": "a+b"}, {"size": "a b"})

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        verdict.expect(seen.facts["value"] == 3, "not three")


def test_a_row_that_does_not_apply_because_of_what_was_seen_is_judged_again_like_every_other(tmp_path: Path) -> None:
    with small_suite(Spared):
        run = run_small(tmp_path / "b")
        found = verify(tmp_path / "b")
    assert [row.outcome for row in run.finished()] == [Outcome.NOT_APPLICABLE]
    assert found.consistent, found.contradictions
    assert found.recomputed == 1


def test_what_can_be_recomputed_is_counted_and_what_cannot_is_told(tmp_path: Path) -> None:
    plugin = write_plugin(tmp_path / "absent", hooks=NO_DEVICE)
    with small_suite(*GOOD, Absent):
        run_small(tmp_path / "b", backend=str(plugin))
        found = verify(tmp_path / "b")
    assert found.consistent, found.contradictions
    assert (found.recomputed, found.rows) == (3, 5)
    assert found.unknown == ["how these rows ended, which left no outputs: text.absent (unavailable)"]
    assert found.to_dict()["cannot_know"] == [*found.unknown, *CANNOT_KNOW]


def test_a_figure_on_its_bound_may_fall_on_either_side(tmp_path: Path) -> None:
    with small_suite(Edge):
        Edge.shift = 0.0
        run_small(tmp_path / "b")
        Edge.shift = 0.001
        found = verify(tmp_path / "b")
    assert found.consistent, found.contradictions
    assert "they lie on it: text.edge" in found.unknown[0]


class Counts(Wrong):
    """text.counts: ninety-nine of a hundred where all were asked for, beside a figure that lies on its bound."""

    right = 99.0

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        verdict.figure("right", type(self).right, 100, "==")
        verdict.figure("value", 1.0, 1.0005)


def test_a_count_that_must_be_whole_has_no_room_and_is_not_excused_by_another_figure_on_its_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_suite(Counts):
        with monkeypatch.context() as patch:
            patch.setattr(Counts, "right", 100.0)
            run_small(tmp_path / "b")
        contradictions = verify(tmp_path / "b").contradictions
    assert "text.counts: right is 100.0, computed 99.0" in contradictions
    assert any(c.startswith("text.counts: is passed, computed failed") for c in contradictions)


def test_rows_whose_ids_are_alike_do_not_share_a_file(tmp_path: Path) -> None:
    with small_suite(Twice):
        run_small(tmp_path / "b")
        found = verify(tmp_path / "b")
    assert found.consistent, found.contradictions
    assert len(list((tmp_path / "b/raw").iterdir())) == 2


@pytest.mark.parametrize("missing", ["report.json", "header.json", "manifest.json", "selected.json", "rows.jsonl"])
def test_a_folder_that_is_no_bundle_is_refused_and_the_file_is_named(tmp_path: Path, missing: str) -> None:
    with small_suite():
        run_small(tmp_path / "b", "nothing")
        (tmp_path / "b" / missing).unlink()
        with pytest.raises(BadRequest) as error:
            verify(tmp_path / "b")
    assert missing in error.value.what


@pytest.mark.parametrize("name", ["report.json", "header.json", "manifest.json", "selected.json"])
@pytest.mark.parametrize("text", ["", "[1, 2", "null", '"text"', "[[], {}]", '{"rows": 3}', "\x00"])
def test_whatever_lies_in_a_file_is_an_answer_and_no_traceback(tmp_path: Path, name: str, text: str) -> None:
    with small_suite(Wrong):
        run_small(tmp_path / "b")
        (tmp_path / "b" / name).write_text(text)
        with suppress(BadRequest):
            assert not verify(tmp_path / "b").consistent


def test_a_run_of_some_rows_is_consistent_when_its_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["edgecore", "conformance", "run", "-k", "llama"])
    with small_suite():
        run_small(tmp_path / "b", "llama")
        assert verify(tmp_path / "b").contradictions == []
    assert json.loads((tmp_path / "b/report.json").read_text())["claims"]["whole"] is False


@pytest.mark.parametrize(("a", "b", "room", "close"), [
    (1.0, 1.009, 0.01, True), (1.0, 1.02, 0.01, False), (None, None, 0.0, True), (None, 1.0, 9.0, False),
])  # fmt: skip
def test_figures_are_compared_with_room(a: float | None, b: float | None, room: float, close: bool) -> None:
    assert _close(a, b, room) is close


def test_messages_are_compared_without_their_numbers() -> None:
    assert _numberless("KL 1.23e-05 misses <= 0.001") == _numberless("KL 4e-06 misses <= 0.0010")
    assert _numberless("a failed") != _numberless("b failed")
