"""Round-to-nearest is a yardstick: its noise is known, the same every time, and independent of what was done before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgecore.checkpoint import open_checkpoint
from edgecore.quality.rounding import GROUP, Rounded, RoundedTensors, bits_for, eligible, round_to_nearest

from support.tiny import tiny_llama


def _noise(x: np.ndarray, y: np.ndarray) -> float:
    return float(((x - y).astype(np.float64) ** 2).mean())


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_noise_is_a_twelfth_of_the_step_squared(bits: int) -> None:
    x = np.random.default_rng(0).standard_normal((256, 512)).astype(np.float32)
    step = 2 * np.abs(x.reshape(256, -1, GROUP)).max(axis=2) / (2**bits - 1)
    assert _noise(x, round_to_nearest(x, bits)) == pytest.approx((step**2).mean() / 12, rel=0.03)


def test_one_bit_less_is_about_four_times_the_noise() -> None:
    x = np.random.default_rng(0).standard_normal((256, 512)).astype(np.float32)
    ratio = _noise(x, round_to_nearest(x, 5)) / _noise(x, round_to_nearest(x, 6))
    assert ratio == pytest.approx(4 * (31.5 / 31) ** 2, rel=0.05)


def test_weights_that_lie_on_the_grid_already_get_no_free_pass() -> None:
    """Plain rounding would return them unchanged, and a bound of a multiple of nothing would forbid everything."""
    levels = np.random.default_rng(0).integers(-7, 8, (256, 512)).astype(np.float32)
    levels[:, ::GROUP] = 7.5
    noise = _noise(levels, round_to_nearest(levels, 4))
    assert noise == pytest.approx(1 / 12, rel=0.03)


def test_zeros_stay_zero_and_rows_need_not_divide_into_groups() -> None:
    x = np.zeros((3, 40), np.float32)
    x[1, 35] = 1.0
    y = round_to_nearest(x, 4)
    assert y.shape == x.shape
    assert not y[0].any()
    assert not y[1, :32].any()
    assert np.isfinite(y).all()


def test_sixteen_bits_round_to_bfloat16_and_thirty_two_not_at_all() -> None:
    x = np.float32([[1 + 2**-9, 1.0]])
    assert round_to_nearest(x, 16).tolist() == [[1.0, 1.0]]
    assert round_to_nearest(x, 32) is x


def test_rounding_is_the_same_every_time_and_some_rows_are_as_among_all(tmp_path: Path) -> None:
    model = open_checkpoint(tiny_llama(tmp_path / "tiny", vocab=512))
    table = Rounded(model.tensors["model.embed_tokens.weight"], 4)
    whole = table.read()
    assert np.array_equal(whole, table.read())
    assert np.array_equal(whole[70:200], table.rows(70, 200))
    assert np.array_equal(whole[-3:], table.rows(len(whole) - 3, len(whole)))


def test_matrices_are_rounded_norms_are_not_and_the_head_keeps_six_bits(tmp_path: Path) -> None:
    model = open_checkpoint(tiny_llama(tmp_path / "tiny"))
    rounded = RoundedTensors(model.tensors, 4)
    assert rounded["model.norm.weight"] is model.tensors["model.norm.weight"]
    assert list(rounded) == list(model.tensors)
    assert bits_for("model.layers.0.mlp.up_proj.weight", 4) == 4
    assert bits_for("model.embed_tokens.weight", 4) == 6
    assert bits_for("model.embed_tokens.weight", 8) == 8
    assert bits_for("lm_head.weight", 16) == 16
    assert not eligible("model.layers.0.self_attn.q_proj.bias", (256,))
