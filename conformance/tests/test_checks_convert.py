"""Group *convert*: what its judgements see in observations, and a truthful plugin on a real worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecore import registry
from edgecore.checkpoint import open_checkpoint
from edgecore.contract.errors import CorruptModel, EdgecoreError
from edgecore.contract.precisions import Precision
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import all_checks
from edgecore_conformance.checks import jobs, sizes, sources, upsets
from edgecore_conformance.known import TRAINED, Known
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.outcomes import Outcome
from edgecore_conformance.running import run_row


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    entry = registry.find("reference")
    made = Bench(entry, Known(entry.ready_manifest, "cpu"), tmp_path_factory.mktemp("bench"))
    made.begin(120)
    yield made
    made.close()


def test_changes_tell_added_removed_changed_and_touched_files_apart(tmp_path: Path) -> None:
    for name in ("kept", "changed", "removed", "touched"):
        (tmp_path / name).write_text(name)
    before = jobs.tree(tmp_path)
    (tmp_path / "changed").write_text("other")
    (tmp_path / "removed").unlink()
    (tmp_path / "added").touch()
    (tmp_path / "touched").chmod(0o600)
    assert sorted(jobs.changes(before, jobs.tree(tmp_path))) == [
        "added was added",
        "changed was changed",
        "removed was removed",
        "touched was touched (time or permissions)",
    ]


def test_the_gguf_source_holds_the_same_weights_and_tokens_as_the_fixture(bench: Bench) -> None:
    with open_checkpoint(bench.known.fixture(TRAINED)) as ours, open_checkpoint(sources.source(bench, "gguf")) as gguf:
        assert list(gguf.tensors) == list(ours.tensors)
        name = "model.layers.0.self_attn.q_proj.weight"
        assert np.array_equal(gguf.tensors[name].read(), ours.tensors[name].read())
        assert gguf.tokenizer.encode("In the beginning") == ours.tokenizer.encode("In the beginning")


@pytest.mark.parametrize("kind", ["huggingface", "gguf"])
def test_every_fault_is_corrupt_to_the_neutral_model(bench: Bench, kind: str) -> None:
    for fault in sources.FAULTS[kind]:
        path = sources.damage(sources.source(bench, kind), kind, fault)
        with pytest.raises(CorruptModel):
            read_whole(path)


def read_whole(path: Path) -> None:
    with open_checkpoint(path) as model:
        for tensor in model.tensors.values():
            tensor.read()


@pytest.mark.parametrize(
    ("reports", "says"),
    [
        ([[0, 0, 9, "a"], [1, 5, 9, "a"], [2, 3, 9, "a"], [3, 9, 9, "a"]], "progress falls"),
        ([[0, 0, 9, "a"], [1, 12, 9, "a"]], "more is done"),
        ([[0, 0, 9, "a"], [1, 5, 9, "a"]], "ends at 5 of 9"),
        ([[0, 0, 9, "a"], [8, 9, 9, "a"]], "longest silence"),
        ([], "reports 0"),
    ],
)
def test_progress_that_misleads_is_found(reports: list[Any], says: str) -> None:
    verdict = Judgement()
    upsets.judge_reports(Observation({"reports": reports, "ended": 8.5 if "silence" in says else 3.0}), verdict)
    assert any(says in problem for problem in verdict.problems)


def test_a_full_disk_that_is_no_error_is_found() -> None:
    whole = {"model": 100}
    fine = {"limit": 50, "error": "DoesNotFit", "what": "", "alive": True}
    for bad in ({"limit": 50, "alive": True}, {**fine, "error": "PluginFault"}, {**fine, "alive": False}):
        verdict = Judgement()
        upsets.judge_disk_full(Observation({"whole": whole, "tried": [bad], "again": {}, "after": whole}), verdict)
        assert verdict.outcome is Outcome.FAILED
    verdict = Judgement()
    upsets.judge_disk_full(Observation({"whole": whole, "tried": [fine], "again": {}, "after": whole}), verdict)
    assert verdict.outcome is Outcome.PASSED


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ({"model": 1000, "words": 99}, ""),
        ({"model": 500, "words": 100}, "other sizes: model"),
        ({"model": 1000}, "there are ['model']"),
    ],
)
def test_what_a_full_disk_cut_off_is_found_and_a_number_that_grew_is_not(after: dict[str, int], said: str) -> None:
    facts = {"whole": {"model": 1000, "words": 100}, "tried": [], "again": {}, "after": after}
    verdict = Judgement()
    upsets.judge_disk_full(Observation(facts), verdict)
    assert said in " ".join(verdict.problems)
    assert bool(verdict.problems) == bool(said)


def test_files_that_are_not_listed_and_weights_that_are_not_there_are_found() -> None:
    verdict = Judgement()
    sizes.judge_files({"model": [10, "model"]}, {"model": 10, "log": 3}, verdict)
    assert "written were ['log', 'model']" in verdict.problems[0]
    f16 = Precision("f16", 16, "convert")
    tensors = [["model.layers.0.mlp.up_proj.weight", 1000, 4000, "F32"]]
    said = {"bits_per_weight": 16.0, "eligible_bits_per_weight": 16.0, "parameters": 1000, "fallbacks": []}
    verdict = Judgement()
    sizes.judge_size({"files": {"model": [4100, "model"]}, "tensors": tensors, "weights": said}, f16, verdict)
    assert any("matrices of the layers 32 misses <= 20" in p for p in verdict.problems)


def test_errors_as_facts_name_no_folder_of_this_machine(bench: Bench) -> None:
    said = jobs.told(EdgecoreError(f"{bench.work}/x and {Path.home()}/y"), bench)
    assert said["what"] == "{work}/x and ~/y"


@pytest.mark.parametrize("name", ["convert.cancel", "convert.disk_full", "convert.outside", "convert.deterministic"])
def test_the_reference_passes(bench: Bench, tmp_path: Path, name: str) -> None:
    row = run_row(all_checks()[name], {}, bench, tmp_path)
    assert row.outcome in (Outcome.PASSED, Outcome.NOT_APPLICABLE), row.message
