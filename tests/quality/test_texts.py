"""The evaluation texts are part of every figure, so they must not change unnoticed."""

from __future__ import annotations

import pytest

from edgecore.contract.errors import BadRequest
from edgecore.contract.precisions import Precision
from edgecore.quality import evaluation_text
from edgecore.quality.bounds import bounds, compute_class
from edgecore.quality.texts import TOKENS, token_limit

DIGESTS = {
    "quick": "4968db2b5244c57aa86e3114b5866a03acbcbaba8ac3b000643bdd6f89c48951",
    "full": "7e53e8d1be4fabd69d68b600042db29274a75ffa32debb9a281b5ba0306a6c03",
}


@pytest.mark.parametrize("level", ["quick", "full"])
def test_a_text_has_its_digest(level: str) -> None:
    """If you meant to change a text: derive the bounds again, and say so where figures are compared with older ones."""
    assert evaluation_text(level)[1] == DIGESTS[level]


def test_the_full_text_begins_with_the_short_one_and_is_long_enough() -> None:
    short, full = evaluation_text("quick")[0], evaluation_text("full")[0]
    assert full.startswith(short)
    assert len(short.split()) > TOKENS["quick"] * 0.7
    assert len(full.split()) > TOKENS["full"] * 0.7


def test_another_level_is_refused_and_another_text_is_scored_as_long_as_the_full_one() -> None:
    with pytest.raises(BadRequest, match="'medium'"):
        evaluation_text("medium")
    assert token_limit(evaluation_text("quick")[1]) == 256
    assert token_limit("somebody's own") == 2048


F32, F16, BF16, Q4 = (
    Precision(name, bits, "convert") for name, bits in (("f32", 32), ("f16", 16), ("bf16", 16), ("q4", 4))
)


@pytest.mark.parametrize(
    ("stated", "precision", "expected"),
    [
        ("f32", F32, "f32"),
        ("float32", F16, "f16"),
        ("float32", BF16, "bf16"),
        ("float32", Q4, "int8"),
        ("bfloat16", F32, "bf16"),
        ("f16 weights, bf16 compute", F16, "bf16"),
        ("f32 accumulation, q8_0 activations", F32, "int8"),
        ("", Q4, "int8"),
        ("", F16, "bf16"),
        ("", F32, "f32"),
        ("f32", None, "int8"),
    ],
)
def test_the_coarser_of_stated_compute_and_weights_decides(
    stated: str, precision: Precision | None, expected: str
) -> None:
    found, origin = compute_class(stated, precision)
    assert found == expected
    assert "states compute" in origin or "does not state" in origin


def test_a_model_that_rounds_its_own_activations_is_judged_as_int8_kernels_are_unless_all_is_computed_in_float32() -> (
    None
):
    """Float16 before a rounding decides its direction: the published BitNet loses 0.019 by it alone."""
    assert compute_class("float16", F16, rounds=True) == ("int8", "the model itself rounds activations to 8 bits")
    assert compute_class("float32", F32, rounds=True)[0] == "f32"


def test_bounds_grow_with_the_coarseness_of_the_arithmetic() -> None:
    kernels = bounds().kernels
    assert kernels["f32"] <= kernels["f16"] <= kernels["bf16"] < kernels["int8"] < 0.1
    assert 1 < bounds().file_multiple <= 4
    assert 0 < bounds().garbage_share < 1
