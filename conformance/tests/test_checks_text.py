"""The text checks themselves: what they ask follows from the seed, and what they judge follows from what was kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecore import registry
from edgecore.checkpoint import Oracle, open_checkpoint
from edgecore.contract.errors import UnsupportedModel
from edgecore.contract.manifest import Manifest
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import CHECKS, Cell, all_checks
from edgecore_conformance.checks.text_common import (
    TextCheck,
    divergences,
    expected_rows,
    finish_of,
    notes_of_variant,
    subject,
    text_families,
)
from edgecore_conformance.checks.text_ops import chunked, simulated
from edgecore_conformance.checks.text_state import MIB, growth
from edgecore_conformance.checks.text_tokens import packed, unpacked
from edgecore_conformance.known import SCRIPTED, TRAINED, Known
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.outcomes import Outcome
from edgecore_conformance.running import judged, run_row

ENTRY = registry.find("reference")
MANIFEST = ENTRY.ready_manifest


def known(seed: int = 0) -> Known:
    return Known(MANIFEST, "cpu", "quick", seed)


def text_checks() -> list[TextCheck]:
    return [c for name, c in all_checks().items() if name.startswith("text.") and isinstance(c, TextCheck)]


def quick_cells() -> list[tuple[str, Cell]]:
    """One cell of each check: its subject's."""
    return [(c.name(), next(iter(c.cells(MANIFEST, "cpu", "quick")))) for c in text_checks()]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(ENTRY, known(), tmp_path_factory.mktemp("work"))
    yield made
    made.close()


def observed(name: str, cell: Cell, bench: Bench, stem: Path) -> Observation:
    """What a check sees of the truthful reference, as it is kept."""
    bench.begin(120)
    CHECKS[name].observe(bench, cell).save(stem)
    return Observation.load(stem)


def problems(name: str, cell: Cell, seen: Observation, seed: int = 0) -> list[str]:
    return judged(CHECKS[name], seen, cell, known(seed)).problems


@pytest.mark.parametrize(("name", "cell"), quick_cells(), ids=[name for name, _ in quick_cells()])
def test_inputs_are_json_and_follow_from_the_seed_alone(name: str, cell: Cell) -> None:
    check = CHECKS[name]
    assert isinstance(check, TextCheck)
    first = check.inputs(known(1), cell)
    assert json.loads(json.dumps(first)) == first
    assert check.inputs(known(1), cell) == first
    if first and name not in ("text.chat",):
        assert check.inputs(known(2), cell) != first


@pytest.mark.parametrize("name", ["text.fresh", "text.stop", "text.tokenizer", "text.sampling", "text.requests"])
def test_what_was_kept_is_judged_again_with_the_same_verdict_and_another_seeds_answers_are_not(
    name: str, bench: Bench, tmp_path: Path
) -> None:
    cell = dict(quick_cells())[name]
    seen = observed(name, cell, bench, tmp_path / "raw")
    assert problems(name, cell, seen) == []
    assert "it was asked other inputs than the seed draws" in problems(name, cell, seen, seed=5)


def test_a_row_of_logits_that_is_a_little_off_is_found(bench: Bench, tmp_path: Path) -> None:
    cell = {"family": "llama"}
    seen = observed("text.logits", cell, bench, tmp_path / "raw")
    assert problems("text.logits", cell, seen) == []
    rows = seen.arrays["path0"].copy()
    rows[-1] = np.roll(rows[-1], 1)
    assert any("worst position" in p for p in problems("text.logits", cell, replace_arrays(seen, path0=rows)))
    assert any(
        "score" in p for p in problems("text.logits", cell, replace_arrays(seen, score0=seen.arrays["score0"] * 0.9))
    )
    nothing = np.full_like(rows, np.nan)
    assert any("not finite" in p for p in problems("text.logits", cell, replace_arrays(seen, path0=nothing)))
    short = seen.arrays["path0"][:-1]
    assert any("shape" in p for p in problems("text.logits", cell, replace_arrays(seen, path0=short)))


def replace_arrays(seen: Observation, **arrays: Any) -> Observation:
    return Observation(seen.facts, {**seen.arrays, **arrays})


def test_a_greedy_token_that_is_not_the_best_is_found(bench: Bench, tmp_path: Path) -> None:
    cell = dict(quick_cells())["text.greedy"]
    seen = observed("text.greedy", cell, bench, tmp_path / "raw")
    assert problems("text.greedy", cell, seen) == []
    seen.facts["answers"][1]["pieces"][5][0] += 1
    found = problems("text.greedy", cell, seen)
    assert any("answer 1" in p and "token 5" in p for p in found)
    seen.facts["answers"][1]["pieces"][5][0] = 10**9
    assert any("outside the vocabulary" in p for p in problems("text.greedy", cell, seen))


def test_a_family_without_a_fixture_is_unavailable_and_proves_nothing(bench: Bench, tmp_path: Path) -> None:
    row = run_row(CHECKS["text.logits"], {"family": "falcon"}, bench, tmp_path)
    assert row.outcome is Outcome.UNAVAILABLE
    assert not row.outcome.proves


def test_logits_that_are_declared_absent_are_asked_for_and_refused(bench: Bench) -> None:
    without = replace(MANIFEST, capabilities={**MANIFEST.capabilities, "logits": False})
    asked = Known(without, "cpu")
    refused = Observation({"inputs": CHECKS["text.score"].inputs(asked, {}), "refusal": {"error": "CannotDo"}})  # type: ignore[attr-defined]
    assert judged(CHECKS["text.score"], refused, {}, asked).outcome is Outcome.UNSUPPORTED
    answered = Observation({**refused.facts, "refusal": {}})
    assert judged(CHECKS["text.score"], answered, {}, asked).outcome is Outcome.FAILED
    cannot = Observation({"cannot_do": {"error": "CannotDo", "what": "no logits"}})
    assert judged(CHECKS["text.logits"], cannot, {}, asked).outcome is Outcome.UNAVAILABLE
    assert judged(CHECKS["text.logits"], cannot, {}, known()).outcome is Outcome.FAILED


WINDOW = {"family": "mistral", "variant": "mistral-window"}


def test_a_variant_that_is_answered_right_passes(bench: Bench, tmp_path: Path) -> None:
    row = run_row(CHECKS["text.logits"], WINDOW, bench, tmp_path)
    assert (row.row, row.outcome) == ("text.logits[family=mistral,variant=mistral-window]", Outcome.PASSED)
    assert row.proves == {"task": "text", "family": "mistral"}


def test_a_variant_that_is_refused_by_its_own_error_is_unsupported_and_a_family_that_is_claimed_is_not() -> None:
    refused = Observation({"refused": {"error": "UnsupportedModel", "what": "no windows"}})
    assert judged(CHECKS["text.logits"], refused, WINDOW, known()).outcome is Outcome.UNSUPPORTED
    assert judged(CHECKS["text.logits"], refused, {"family": "mistral"}, known()).outcome is Outcome.FAILED
    otherwise = Observation({"refused": {"error": "CorruptModel", "what": "no windows"}})
    assert judged(CHECKS["text.logits"], otherwise, WINDOW, known()).outcome is Outcome.FAILED


@pytest.mark.parametrize(
    ("stage", "variant", "outcome"),
    [("convert", True, Outcome.UNSUPPORTED), ("open", True, Outcome.UNSUPPORTED), ("run", True, Outcome.FAILED),
     ("open", False, Outcome.FAILED)],
)  # fmt: skip
def test_a_refusal_comes_when_it_is_converted_or_opened(
    stage: str, variant: bool, outcome: Outcome, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(self: TextCheck, bench: Bench, cell: Cell, asked: Any) -> Observation:
        bench.stage = stage
        raise UnsupportedModel("windows")

    monkeypatch.setattr(type(CHECKS["text.logits"]), "look", refuses)
    cell = WINDOW if variant else {"family": "mistral"}
    assert run_row(CHECKS["text.logits"], cell, bench, tmp_path).outcome is outcome


def test_other_numbers_of_a_variant_are_unsupported_where_convert_says_so_and_a_failure_without_a_word(
    bench: Bench, tmp_path: Path
) -> None:
    seen = observed("text.logits", WINDOW, bench, tmp_path / "raw")
    assert seen.facts["said"] == []
    other = replace_arrays(seen, path0=np.roll(seen.arrays["path0"], 1, axis=1))
    assert judged(CHECKS["text.logits"], other, WINDOW, known()).outcome is Outcome.FAILED
    said = Observation({**seen.facts, "said": ["it sees all positions"]}, other.arrays)
    verdict = judged(CHECKS["text.logits"], said, WINDOW, known())
    assert verdict.outcome is Outcome.UNSUPPORTED
    assert {(f.bound, f.origin) for f in verdict.figures} == {(None, "convert says: it sees all positions")}
    asked_otherwise = Observation({**said.facts, "inputs": {}}, said.arrays)
    assert judged(CHECKS["text.logits"], asked_otherwise, WINDOW, known()).outcome is Outcome.FAILED


def test_only_what_convert_notes_of_a_variant_alone_counts(bench: Bench) -> None:
    plain, variant = bench.artifact("mistral"), bench.artifact("mistral-window")
    kept = dict(bench._artifacts)
    noted = {"mistral": replace(plain, notes=("a",)), "mistral-window": replace(variant, notes=("a", "b"))}
    bench._artifacts |= {(name, made.precision, made.format): made for name, made in noted.items()}
    try:
        assert notes_of_variant(bench, WINDOW) == ["b"]
    finally:
        bench._artifacts |= kept


def test_variants_have_rows_where_their_family_is_claimed() -> None:
    def variants(name: str, manifest: Manifest) -> set[str]:
        return {c["variant"] for c in CHECKS[name].cells(manifest, "cpu", "quick") if "variant" in c}

    without = replace(MANIFEST, claims=tuple(c for c in MANIFEST.claims if c.family != "bitnet"))
    assert variants("text.logits", MANIFEST) == {"mistral-window", "bitnet-packed"}
    assert variants("text.logits", without) == {"mistral-window"}
    for name in ("text.tokenizer", "text.detokenize", "text.chat"):
        assert variants(name, without) == {"mistral-first"}


def test_what_has_two_answers_is_not_compared_and_what_is_beyond_the_border_is(bench: Bench, tmp_path: Path) -> None:
    """A backend that chooses longrope's factors by its context takes the long ones for short texts too."""
    cell = {"family": "phi3"}
    seen = observed("text.rewind", cell, bench, tmp_path / "raw")
    assert problems("text.rewind", cell, seen) == []
    held = {number: count for number, count, _ in seen.facts["held"]}
    below = [at for at, number in enumerate(seen.facts["answered"]) if held[number] <= 256]
    rows = seen.arrays["logits0"].copy()
    assert 0 < len(below) < len(rows) / 4
    rows[below] = np.roll(rows[below], 1, axis=1)
    assert problems("text.rewind", cell, replace_arrays(seen, logits0=rows)) == []
    rows[-1] = np.roll(rows[-1], 1)
    assert problems("text.rewind", cell, replace_arrays(seen, logits0=rows)) != []


def test_texts_of_a_model_with_two_sets_of_rotary_factors_lie_on_both_sides_in_contexts_that_do_too() -> None:
    check = CHECKS["text.logits"]
    assert isinstance(check, TextCheck)
    asked = check.inputs(known(), {"family": "phi3"})
    lengths = [len(text) for text in asked["texts"]]
    assert asked["contexts"] == lengths
    assert lengths[0] <= 256 < lengths[1] - 48


def test_the_scripted_model_says_its_script() -> None:
    here = known(3)
    script = here.script
    assert known(4).script != script
    with open_checkpoint(here.fixture(SCRIPTED)) as model:
        oracle = Oracle(model.decoder, model.tensors, resident=True)
        for chain in (script.loop, script.words, script.characters, script.half, *script.ends):
            rows = np.concatenate(list(oracle.score([script.prompts[0], *chain])))
            due = [script.answer(t, 1)[0] for t in (script.prompts[0], *chain)]
            assert rows.argmax(axis=1).tolist() == due
            ordered = np.sort(rows, axis=1)
            assert (ordered[:, -1] - ordered[:, -2]).min() > 12
    tokens = [*script.loop, *script.words, *script.characters, *script.half[:-1]]
    assert len(set(tokens)) == len(tokens)


def test_every_family_that_is_claimed_has_its_rows() -> None:
    families = text_families(MANIFEST, "cpu")
    for name in ("text.logits", "text.tokenizer", "text.detokenize", "text.chat"):
        assert {c["family"] for c in CHECKS[name].cells(MANIFEST, "cpu", "quick") if "family" in c} == set(families)
    assert {c.get("fixture") for c in CHECKS["text.logits"].cells(MANIFEST, "cpu", "full")} >= {TRAINED, "real"}
    assert subject(MANIFEST) == TRAINED
    without_llama = replace(MANIFEST, claims=tuple(c for c in MANIFEST.claims if c.family in ("qwen3", "phi3")))
    assert subject(without_llama) == "qwen3"
    phi3 = replace(MANIFEST, claims=tuple(c for c in MANIFEST.claims if c.family == "phi3"))
    assert subject(phi3) == "phi3-short"
    assert not CHECKS["text.stop"].applies(without_llama)


def test_operations_mean_what_the_contract_says() -> None:
    operations = [[0, "prefill", [1, 2, 3]], [1, "step", [9]], [0, "rewind", 2], [0, "step", [4]], [0, "reset", 0]]
    assert simulated(operations) == [(1, 2, 3), (9,), (1,), (1, 4), ()]
    portions = chunked(0, list(range(10)), [1, 4])
    assert [argument for _, _, argument in portions] == [[0], [1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_expected_rows_of_prefixes_come_from_one_pass() -> None:
    here = known()
    text = here.tokens(TRAINED, "prefixes", 20)
    rows = expected_rows(here, TRAINED, [text[:5], text, text[:5]])
    assert len(here._logits) == 1
    assert np.abs(rows[0] - here.logits(TRAINED, text[:5])[-1]).max() < 1e-3
    assert (rows[0] == rows[2]).all()


def test_sequences_survive_packing() -> None:
    sequences = [[1, 2], [], [2**20], [-1, 0]]
    assert unpacked(packed(sequences)) == sequences


def test_a_divergence_is_that_of_the_core_and_infinite_without_numbers() -> None:
    rows = np.array([[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]], np.float32)
    assert divergences(rows, rows).tolist() == [0.0, 0.0]
    assert np.isinf(divergences(rows, np.full_like(rows, np.nan))).all()
    p = np.exp(rows[0]) / np.exp(rows[0]).sum()
    assert divergences(rows[:1], rows[1:])[0] == pytest.approx(float((p * np.log(p * 3)).sum()))


def test_a_finish_that_comes_early_or_never_is_said_so() -> None:
    assert finish_of({"pieces": [[1, "a", ""], [2, "b", "eos"]]}) == "eos"
    assert finish_of({"pieces": [[1, "a", "stop"], [2, "b", "eos"]]}) == "early"
    assert finish_of({"pieces": [[1, "a", ""]]}) == "none"
    assert finish_of({"pieces": []}) == "none"


def test_memory_that_a_round_leaves_behind_is_told_from_an_allocators_step() -> None:
    leak = [MIB * (30 + n) for n in range(12)]
    step = [MIB * (30 if n < 8 else 45) for n in range(12)]
    large_prompts_alone = [MIB * (30 + 3 * ((n + 1) // 3)) for n in range(12)]
    assert growth(leak) == 1.0
    assert growth(step) == 0.0
    assert growth(large_prompts_alone) == 1.0


def test_every_text_check_has_a_page() -> None:
    for check in text_checks():
        paragraphs = (type(check).__doc__ or "").strip().split("\n\n")
        assert len(paragraphs) >= 3, check.name()
        assert Judgement().outcome is Outcome.PASSED
