"""A matrix in MLX's packings: what MLX reads is what was meant, and less is lost than `mx.quantize` loses."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from edgecore.checkpoint.gptq import gptq
from edgecore_mlx import affine, microscaling
from edgecore_mlx.recipe import MSE, RTN, Packing

AFFINE = [Packing(bits, group) for bits, group in ((2, 32), (3, 64), (4, 64), (5, 64), (6, 128), (8, 64))]
FLOATS = [Packing(4, 32, "mxfp4"), Packing(8, 32, "mxfp8"), Packing(4, 16, "nvfp4")]
EVERY = pytest.mark.parametrize("how", [*AFFINE, *FLOATS], ids=lambda how: f"{how.mode}-{how.bits}")


@pytest.fixture
def w() -> np.ndarray:
    """Numbers that a float16 holds."""
    values = np.random.default_rng(0).standard_t(4, (48, 256)) * 0.05
    return values.astype(np.float16).astype(np.float32)


@pytest.fixture
def used() -> np.ndarray:
    random = np.random.default_rng(1)
    x = random.standard_normal((512, 32), np.float32) @ random.standard_normal((32, 256), np.float32)
    x += 0.1 * random.standard_normal((512, 256), np.float32)
    return np.asarray(x.T @ x / len(x), np.float32)


def lost(made: affine.Small, w: np.ndarray, used: np.ndarray | None = None) -> float:
    """Of the numbers, or of what they give where they are used."""
    error = made.read() - w
    return float(np.linalg.norm(error) if used is None else np.einsum("ri,ij,rj->", error, used, error))


@EVERY
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_the_search_loses_less_than_mx_quantize_and_has_its_shapes(how: Packing, dtype: str, w: np.ndarray) -> None:
    searched, nearest = (affine.rounded(w, how, dtype, algorithm) for algorithm in (MSE, RTN))
    for (name, ours), (_, theirs) in zip(searched.parts(), nearest.parts(), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), name
    assert lost(searched, w) < (1.001 if how.mode == "mxfp8" else 0.98) * lost(nearest, w)


@EVERY
def test_gptq_loses_far_less_where_the_numbers_are_used(how: Packing, w: np.ndarray, used: np.ndarray) -> None:
    assert lost(affine.by_use(w, used, how, "F16"), w, used) < 0.2 * lost(affine.rounded(w, how, "F16", MSE), w, used)


def test_a_real_bias_loses_less_than_a_zero_point(w: np.ndarray, used: np.ndarray) -> None:
    for bits in (2, 3, 4):
        zero_point = gptq(w, used, 64, symmetric=False, bits=bits).read() - w
        theirs = np.einsum("ri,ij,rj->", zero_point, used, zero_point)
        ours = lost(affine.by_use(w, used, Packing(bits, 64), "F16"), w, used)
        assert ours < theirs


@pytest.mark.parametrize("how", FLOATS, ids=lambda how: how.mode)
def test_what_mx_quantize_made_is_read_by_the_same_levels(how: Packing, w: np.ndarray) -> None:
    """A matrix that is on a grid already is rounded to itself."""
    there = affine.rounded(w, how, "F32", RTN).read()
    assert np.array_equal(affine.rounded(there, how, "F32", MSE).read(), there)


@EVERY
@pytest.mark.parametrize("value", [0.0, 0.25, -3.0])
def test_groups_of_equal_numbers_stay_what_they_are(how: Packing, value: float) -> None:
    w = np.full((4, 128), value, np.float32)
    w[1] = 0
    for made in (affine.rounded(w, how, "F16", MSE), affine.by_use(w, np.eye(128, dtype=np.float32), how, "F16")):
        assert np.isfinite(made.read()).all()
        assert np.allclose(made.read(), w, atol=1e-3 if how.mode == "affine" else 0.07 * abs(value))


@EVERY
@pytest.mark.parametrize("size", [1e-6, 30000.0])
def test_numbers_at_the_ends_of_float16_are_held(how: Packing, size: float) -> None:
    w = (np.random.default_rng(0).uniform(-1, 1, (8, 128)) * size).astype(np.float16).astype(np.float32)
    made = affine.rounded(w, how, "F16", MSE).read()
    assert np.isfinite(made).all()
    assert np.abs(made - w).max() <= np.abs(w).max()


@EVERY
def test_rows_know_nothing_of_each_other(how: Packing, w: np.ndarray, used: np.ndarray) -> None:
    whole = affine.rounded(w, how, "F16", MSE)
    parts = affine.joined([affine.rounded(w[a:b], how, "F16", MSE) for a, b in ((0, 5), (5, 48))])
    for (_, one), (_, other) in zip(whole.parts(), parts.parts(), strict=True):
        assert np.array_equal(one, other)
    assert np.array_equal(whole.rows(5, 9).read(), whole.read()[5:9])


@pytest.mark.parametrize("how", FLOATS, ids=lambda how: how.mode)
def test_levels_of_small_floats_are_the_nearest(how: Packing) -> None:
    kind = microscaling._KINDS[how.mode]
    values = np.random.default_rng(0).uniform(-1.2, 1.2, 2000).astype(np.float32) * kind.values.max()
    levels = microscaling._levels(kind, values)
    nearest = np.abs(values[:, None] - kind.values).min(axis=1)
    assert np.array_equal(np.abs(kind.values[levels] - values), nearest)
    assert mx.array(kind.values).max().item() == {"mxfp4": 6, "nvfp4": 6, "mxfp8": 448}[how.mode]
