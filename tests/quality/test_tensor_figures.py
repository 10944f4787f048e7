"""Figures for arrays: SQNR by its definition, and weights judged beside round-to-nearest."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from edgecore.checkpoint import open_checkpoint
from edgecore.contract.errors import BadRequest
from edgecore.quality.rounding import RoundedTensors
from edgecore.quality.tensors import WeightNoise, compare_outputs, compare_tensors, weight_noise

from support.tiny import tiny_llama


def test_sqnr_and_errors_by_hand() -> None:
    found = compare_tensors(np.float32([3, 4]), np.float32([3, 4.5]))
    assert found.max_error == 0.5
    assert found.relative_error == 0.125
    assert found.sqnr_db == pytest.approx(10 * math.log10(25 / 0.25))


def test_equal_arrays_have_no_noise_and_missing_numbers_have_all() -> None:
    x = np.float32([1, np.nan, np.inf])
    assert compare_tensors(x, x).sqnr_db == math.inf
    assert compare_tensors(x, np.float32([np.nan, np.nan, np.inf])).max_error == math.inf
    assert compare_tensors(np.zeros(3), np.ones(3)).relative_error == math.inf


def test_outputs_are_compared_by_name_and_shape() -> None:
    good = {"y": np.ones((2, 2))}
    assert compare_outputs(good, {**good, "more": np.ones(1)})["y"].max_error == 0
    with pytest.raises(BadRequest, match="'y' is missing"):
        compare_outputs(good, {})
    with pytest.raises(BadRequest, match=r"shape \(4,\)"):
        compare_outputs(good, {"y": np.ones(4)})


def test_the_baseline_is_as_noisy_as_itself_and_one_bit_less_is_four_times_as_noisy(tmp_path: Path) -> None:
    model = open_checkpoint(tiny_llama(tmp_path / "tiny", dtype="F32"))

    def rounded(bits: float) -> dict[str, np.ndarray]:
        return {name: tensor.read() for name, tensor in RoundedTensors(model.tensors, bits).items()}

    same = weight_noise(model.tensors, rounded(5), 5)
    assert same.noise_ratio == pytest.approx(1, rel=0.02)
    assert same.sqnr_db == pytest.approx(same.baseline_sqnr_db, abs=0.1)
    assert weight_noise(model.tensors, rounded(4), 5).noise_ratio == pytest.approx(4.2, rel=0.15)
    assert WeightNoise.from_dict(same.to_dict()) == same


def test_a_ruined_tensor_is_named(tmp_path: Path) -> None:
    model = open_checkpoint(tiny_llama(tmp_path / "tiny"))
    weights = {name: tensor.read() for name, tensor in model.tensors.items()}
    broken = "model.layers.1.mlp.up_proj.weight"
    weights[broken] = weights[broken][::-1]
    noise = weight_noise(model.tensors, weights, 8)
    assert noise.worst[0][0] == broken
    assert noise.noise_ratio > 100
