"""Group *quantize*: what its judgements see in observations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgecore import registry
from edgecore.checkpoint import Oracle, open_checkpoint
from edgecore.contract.manifest import Manifest, parse
from edgecore.contract.precisions import Precision
from edgecore.quality.rounding import RoundedTensors, round_to_nearest
from edgecore_conformance.check import all_checks
from edgecore_conformance.checks import closeness, sizes, weights
from edgecore_conformance.known import TRAINED, Known
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.outcomes import Outcome

Q4 = Precision("q4_0", 4, "quantize", overhead=0.5)
Q8 = Precision("q8_0", 8, "quantize", overhead=0.5)
MANIFEST = {
    "name": "toy", "title": "toy", "summary": "for tests", "contract": "1.0", "hooks": "toy.hooks",
    "distribution": "toy", "sources": ["huggingface"], "runtime": {"distribution": "numpy"},
    "devices": [{"name": "cpu"}], "formats": [{"name": "toy", "task": "text"}],
    "precisions": [
        {"name": "f16", "bits": 16, "by": "convert"},
        {"name": "q8_0", "bits": 8, "overhead": 0.5},
        {"name": "q4_0", "bits": 4, "overhead": 0.5},
        {"name": "tq2_0", "bits": 2},
    ],
    "claims": [{"task": "text", "families": ["llama"], "formats": ["toy"], "precisions": ["f16", "q8_0", "q4_0"],
                "devices": ["cpu"]}],
    "capabilities": {"logits": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def known() -> Known:
    return Known(parse(MANIFEST, "backend.toml"), "cpu")


def scored(known: Known, bits: float) -> tuple[list[int], Any]:
    tokens = known.tokens(TRAINED, "quantize", closeness.TOKENS)
    with open_checkpoint(known.fixture(TRAINED)) as model:
        rounded: Any = RoundedTensors(model.tensors, bits)
        return tokens, np.concatenate(list(Oracle(model.decoder, rounded).score(tokens)))


def quality(known: Known, facts: dict[str, Any], precision: str, **arrays: Any) -> Judgement:
    verdict = Judgement()
    check = all_checks()["quantize.quality"]
    check.judge(Observation(facts, arrays), {"precision": precision}, known, verdict)
    return verdict


def test_a_model_rounded_to_the_bits_of_its_name_passes_and_one_of_half_the_bits_does_not(known: Known) -> None:
    tokens, eight = scored(known, 8)
    facts = {"tokens": tokens, "compute": "int8"}
    assert quality(known, facts, "q8_0", logits=eight, file_logits=eight).outcome is Outcome.PASSED
    _, four = scored(known, 4)
    assert quality(known, facts, "q4_0", logits=four, file_logits=four).outcome is Outcome.PASSED
    found = quality(known, facts, "q8_0", logits=four, file_logits=four)
    assert any(problem.startswith("file ") for problem in found.problems)


def test_kernels_that_compute_something_else_than_the_file_are_found(known: Known) -> None:
    tokens, eight = scored(known, 8)
    _, one = scored(known, 1)
    found = quality(known, {"tokens": tokens, "compute": "f32"}, "q8_0", logits=one, file_logits=eight)
    assert any(problem.startswith("kernels ") for problem in found.problems)


def test_other_tokens_than_the_seed_draws_are_found(known: Known) -> None:
    tokens, eight = scored(known, 8)
    found = quality(known, {"tokens": tokens[::-1], "compute": ""}, "q8_0", logits=eight)
    assert found.problems == ["other tokens were scored than this run's seed draws"]


def test_a_backend_without_logits_is_not_judged_where_it_says_that_it_has_none(known: Known) -> None:
    facts = {"tokens": known.tokens(TRAINED, "quantize", closeness.TOKENS), "no_logits": "not of q8_0"}
    without = Known(parse({**MANIFEST, "capabilities": {"logits": False}}, "backend.toml"), "cpu")
    assert quality(without, facts, "q8_0").outcome is Outcome.UNAVAILABLE
    assert quality(known, facts, "q8_0").problems == ["logits are declared, and refused: not of q8_0"]


def facts_of(bits: float, said: float, format_known: bool = True) -> dict[str, Any]:
    size = int(4_500_000 * bits / 8)
    tensors = [["model.layers.0.mlp.up_proj.weight", 4_500_000, size, "?"]] if format_known else None
    told = {"bits_per_weight": said, "eligible_bits_per_weight": said, "parameters": 4_500_000, "fallbacks": []}
    return {"files": {"model": [size + 1000, "model"]}, "tensors": tensors, "weights": told}


@pytest.mark.parametrize("format_known", [True, False])
def test_bits_that_are_not_there_are_found_whether_or_not_the_suite_reads_the_format(format_known: bool) -> None:
    for bits, said, good in ((4.5, 4.5, True), (8.5, 4.5, False), (4.5, 3.0, False)):
        verdict = Judgement()
        sizes.judge_size(facts_of(bits, said, format_known), Q4, verdict)
        assert (verdict.outcome is Outcome.PASSED) == good, (bits, said, verdict.problems)


@pytest.mark.parametrize("word", ["nan", "inf"])
def test_bits_that_are_no_number_are_found(word: str) -> None:
    verdict = Judgement()
    sizes.judge_size(facts_of(4.5, word), Q4, verdict)  # type: ignore[arg-type]
    assert any(p.startswith("said: bits a weight, eligible not finite misses") for p in verdict.problems)
    assert any(p.startswith("bits a weight: said over measured not finite") for p in verdict.problems)


def test_a_smaller_precision_with_a_larger_file_is_found(known: Known) -> None:
    for eight, good in ((9e6, True), (4e6, False)):
        verdict = Judgement()
        facts = {"sizes": {"q8_0": int(eight), "q4_0": int(5e6)}}
        all_checks()["quantize.order"].judge(Observation(facts), {}, known, verdict)
        assert (verdict.outcome is Outcome.PASSED) == good


def test_a_lost_block_stands_out_of_what_rounding_loses() -> None:
    random = np.random.default_rng(0)
    matrix = random.standard_normal((8, 256)).astype(np.float32)
    for precision in (Q4, Q8):
        rounded = round_to_nearest(matrix, precision.bits)
        lost = rounded.copy()
        lost[-1, -32:] = 0

        def worst(made: Any, matrix: Any = matrix) -> float:
            source, found = weights._blocks(matrix), weights._blocks(made)
            error = np.sqrt(((found - source) ** 2).mean(2)) / np.sqrt((source**2).mean(2))
            return float(error.max())

        assert worst(rounded) < weights.allowed(precision.bits) < worst(lost)


def test_ternary_types_may_not_be_claimed_for_others() -> None:
    claims = [{**MANIFEST["claims"][0], "precisions": ["tq2_0"]}]  # type: ignore[index]
    manifest: Manifest = parse({**MANIFEST, "claims": claims}, "backend.toml")
    verdict = Judgement()
    all_checks()["quantize.garbage"].judge(Observation(), {}, Known(manifest, "cpu"), verdict)
    assert "tq2_0 is for models that were trained so, and is claimed for llama" in verdict.problems


def test_the_reference_has_nothing_to_quantize() -> None:
    manifest = registry.find("reference").ready_manifest
    checks = [c for name, c in all_checks().items() if name.startswith("quantize.")]
    assert len(checks) == 16
    assert not any(check.applies(manifest) for check in checks)
