"""A matrix in few bits by algorithms that look at nothing but its numbers; edgecore.checkpoint.gptq looks at its use.

ONNX Runtime's tools have `rtn` and `k_quant`, the latter behind onnx-ir, which is large for what it computes. They have
HQQ behind torch: its zero points are no whole numbers, for which the CPU has no kernel (15 times slower at one token).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint.gptq import SHRINK, Floats, Rounded, search_scales

_AT_ONCE = 1 << 20
"""Numbers rounded at once."""
_TRIES = 20
Found = tuple[NDArray[np.float16], NDArray[np.uint8]]
"""Scale and zero point of every block, (rows, blocks)."""


def rounded(weights: Floats, block: int, symmetric: bool, bits: int, algorithm: str) -> Rounded:
    """`weights` (rows, columns), columns whole blocks, by a name of `ALGORITHMS`."""
    step = max(1, _AT_ONCE // weights.shape[1])
    parts = [
        _part(weights[start : start + step], block, symmetric, (1 << bits) - 1, ALGORITHMS[algorithm])
        for start in range(0, len(weights), step)
    ]
    return Rounded(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("levels", "scale", "zero")))


def _part(weights: Floats, block: int, symmetric: bool, most: int, algorithm: Algorithm) -> Rounded:
    scale, zero = algorithm(weights, block, symmetric, most)
    x = weights.reshape(len(weights), -1, block)
    whole = np.rint(x / scale[..., None].astype(np.float32)) + zero[..., None]
    return Rounded(np.clip(whole, 0, most).astype(np.uint8).reshape(weights.shape), scale, zero)


def _rtn(weights: Floats, block: int, symmetric: bool, most: int) -> Found:
    """Round to nearest: the range of the block's numbers."""
    return search_scales(weights, _equal(weights), block, symmetric, most, SHRINK[:1])


def _mse(weights: Floats, block: int, symmetric: bool, most: int) -> Found:
    """Of several ranges the one with the least square error."""
    return search_scales(weights, _equal(weights), block, symmetric, most)


def _equal(weights: Floats) -> Floats:
    return np.ones(weights.shape[1], np.float32)


def _k_quant(weights: Floats, block: int, symmetric: bool, most: int) -> Found:
    """llama.cpp's search (`make_qkx2_quants`): levels for several ranges, and for each of them the scale and the least
    number that fit best, large weights counting for more. What has no zero points has no least number to fit."""
    if symmetric:
        return _mse(weights, block, symmetric, most)
    x = weights.reshape(-1, block)
    weight = np.sqrt((x**2).mean(1, keepdims=True)) + np.abs(x)
    low = np.minimum(x.min(1, keepdims=True), 0)
    width = np.maximum(np.maximum(x.max(1, keepdims=True), 0) - low, most * 1e-7)
    best_scale, best_zero = width / most, np.zeros_like(low)
    lost = np.full_like(low, np.inf)
    sum_w, sum_x = _sum(weight), _sum(weight * x)
    for factor in most + np.linspace(-1, 1, _TRIES + 1, dtype=np.float32):
        levels = np.clip(np.rint((x - low) * (factor / width)), 0, most)
        sum_l, sum_l2, sum_xl = _sum(weight * levels), _sum(weight * levels**2), _sum(weight * levels * x)
        spread = np.maximum(sum_w * sum_l2 - sum_l**2, 1e-30)
        scale = np.maximum((sum_w * sum_xl - sum_x * sum_l) / spread, 1e-7)
        # What is kept is a whole zero point, so that is what is judged.
        zero = np.clip(np.rint((scale * sum_l - sum_x) / (sum_w * scale)), 0, most)
        error = _sum(weight * ((np.clip(np.rint(x / scale) + zero, 0, most) - zero) * scale - x) ** 2)
        better = error < lost
        lost = np.where(better, error, lost)
        best_scale, best_zero = np.where(better, scale, best_scale), np.where(better, zero, best_zero)
    shape = (len(weights), -1)
    return best_scale.astype(np.float16).reshape(shape), best_zero.astype(np.uint8).reshape(shape)


def _sum(x: Floats) -> Floats:
    return np.asarray(x.sum(1, keepdims=True))


Algorithm = Callable[[Floats, int, bool, int], Found]
ALGORITHMS: Mapping[str, Algorithm] = {"rtn": _rtn, "mse": _mse, "k_quant": _k_quant}
