"""A matrix in MLX's affine packing: weight = scale * level + bias, both of a group, searched for instead of read off
its ends as `mx.quantize` does. microscaling.py has the packings without a bias.

The bias is any number, so it need not be a whole number of scales from zero as other runtimes' zero points are, nor is
zero kept exact as `mx.quantize` keeps it: on SmolLM2-135M the least squares lose half the square error of either in 4
bits, and after GPTQ a quarter less of the output than with zero points (`edgecore.checkpoint.gptq.gptq`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint.gptq import Floats, compensated, importance
from edgecore.checkpoint.safetensors_out import NUMPY
from edgecore_mlx import microscaling
from edgecore_mlx.packed import pack
from edgecore_mlx.recipe import AFFINE, MSE, Packing
from edgecore_mlx.weights import unpack

_SHARES = np.linspace(1.0, 0.8, 5, dtype=np.float32)
"""Ranges tried for a group, about its middle: a narrower one cuts the largest weights and rounds the others better."""
_FITS = 2
"""Times that scale and bias are fitted to the levels they gave."""
_LEAST = np.float32(1e-7)
"""Of a scale: a group of equal numbers has no range."""
_AT_ONCE = 1 << 17
"""Numbers searched at once, small enough for the processor's cache."""


@dataclass(frozen=True, slots=True)
class Small:
    """A packed matrix as it lies in a folder."""

    weight: NDArray[np.uint32]
    scales: NDArray[Any]
    biases: NDArray[Any] | None
    packing: Packing

    def read(self) -> Floats:
        return unpack(self.weight, self.scales, self.biases, self.packing)

    def rows(self, start: int, stop: int) -> Small:
        biases = None if self.biases is None else self.biases[start:stop]
        return Small(self.weight[start:stop], self.scales[start:stop], biases, self.packing)

    def parts(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """By the name behind the module's path."""
        yield "weight", self.weight
        yield "scales", self.scales
        if self.biases is not None:
            yield "biases", self.biases


def joined(some: list[Small]) -> Small:
    """One below the other."""
    if len(some) == 1:
        return some[0]
    weight, scales = (np.concatenate([getattr(one, name) for one in some]) for name in ("weight", "scales"))
    biases = None if some[0].biases is None else np.concatenate([one.biases for one in some if one.biases is not None])
    return Small(weight, scales, biases, some[0].packing)


def rounded(weights: Floats, packing: Packing, dtype: str, algorithm: str) -> Small:
    """`weights` (rows, columns) by looking at nothing but the numbers: `rtn` is `mx.quantize`, `mse` a search.

    dtype: safetensors' name of the type that scales have, the model's.
    """
    if algorithm != MSE:
        return _nearest(weights, packing, dtype)
    if packing.mode != AFFINE:
        return _microscaled(*microscaling.rounded(weights, packing), packing)
    most, parts = (1 << packing.bits) - 1, []
    step = max(1, _AT_ONCE // weights.shape[1])
    equal = np.ones(weights.shape[1], np.float32)
    for start in range(0, len(weights), step):
        x = weights[start : start + step]
        scale, bias = _search(x, equal, packing.group_size, most, dtype)
        levels = _levels(_grouped(x, packing.group_size), scale, bias, most)
        parts.append(_small(levels.astype(np.uint8).reshape(x.shape), scale, bias, packing, dtype))
    return joined(parts)


def by_use(weights: Floats, used: Floats, packing: Packing, dtype: str) -> Small:
    """`weights` by GPTQ. used: (columns, columns), the mean of x x^T over the inputs they are multiplied with."""
    if packing.mode != AFFINE:
        return _microscaled(*microscaling.by_use(weights, used, packing), packing)
    most, group = (1 << packing.bits) - 1, packing.group_size
    step, weight = max(1, _AT_ONCE // weights.shape[1]), importance(used)
    found = [_search(weights[at : at + step], weight, group, most, dtype) for at in range(0, len(weights), step)]
    scale, bias = (np.concatenate([one[i] for one in found]) for i in (0, 1))
    scales, biases = np.ascontiguousarray(scale.T), np.ascontiguousarray(bias.T)

    def snap(column: int, numbers: Floats) -> tuple[Floats, Floats]:
        s, b = scales[column // group], biases[column // group]
        level = np.clip(np.rint((numbers - b) / s), 0, most)
        return level, level * s + b

    return _small(compensated(weights, used, snap), scale, bias, packing, dtype)


def _nearest(weights: Floats, packing: Packing, dtype: str) -> Small:
    with mx.stream(mx.cpu):
        given = mx.array(weights).astype({"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}[dtype])
        made = mx.quantize(given, group_size=packing.group_size, bits=packing.bits, mode=packing.mode)
        weight, scales, *biases = (_numpy(array) for array in made)
    return Small(weight, scales, biases[0] if biases else None, packing)


def _numpy(array: mx.array) -> NDArray[Any]:
    """numpy has no bfloat16 of its own."""
    if array.dtype == mx.bfloat16:
        return np.array(array.view(mx.uint16)).view(ml_dtypes.bfloat16)
    return np.array(array)


def _search(weights: Floats, weight: Floats, group: int, most: int, dtype: str) -> tuple[Floats, Floats]:
    """Scale and bias of every group, (rows, groups), as they will be stored: of several ranges, and of what fits the
    levels that each gives, the one with the least square error, weighted by column."""
    x, weight = _grouped(weights, group), weight.reshape(-1, group)
    low, high = x.min(-1), x.max(-1)
    middle, width = (low + high) / 2, high - low
    found = np.zeros((2, *low.shape), np.float32)
    least = np.full(low.shape, np.inf, np.float32)
    for share in _SHARES:
        scale, bias = width * (share / most), middle - width * (share / 2)
        for turn in range(_FITS + 1):
            scale, bias = _stored(np.maximum(scale, _LEAST), dtype), _stored(bias, dtype)
            levels = _levels(x, scale, bias, most)
            error = np.einsum("rgc,gc->rg", (levels * scale[..., None] + bias[..., None] - x) ** 2, weight)
            better = error < least
            least[better] = error[better]
            found[0][better], found[1][better] = scale[better], bias[better]
            if turn < _FITS:
                scale, bias = _fitted(x, levels, weight, scale, bias)
    return found[0], found[1]


def _fitted(x: Floats, levels: Floats, weight: Floats, scale: Floats, bias: Floats) -> tuple[Floats, Floats]:
    """The least squares of levels to numbers; `scale` and `bias` where all levels are one."""
    share = weight / weight.sum(-1, keepdims=True)
    mean_l, mean_x = (np.einsum("rgc,gc->rg", values, share) for values in (levels, x))
    apart = levels - mean_l[..., None]
    spread = np.einsum("rgc,rgc,gc->rg", apart, apart, share)
    slope = np.einsum("rgc,rgc,gc->rg", apart, x, share) / np.maximum(spread, np.float32(1e-12))
    good = spread > 1e-6
    return np.where(good, slope, scale), np.where(good, mean_x - slope * mean_l, bias)


def _grouped(weights: Floats, group: int) -> Floats:
    return weights.reshape(len(weights), -1, group)


def _levels(x: Floats, scale: Floats, bias: Floats, most: int) -> Floats:
    return np.asarray(np.clip(np.rint((x - bias[..., None]) / scale[..., None]), 0, most))


def _stored(values: Floats, dtype: str) -> Floats:
    return np.asarray(values.astype(NUMPY[dtype]).astype(np.float32))


def _small(levels: NDArray[np.uint8], scale: Floats, bias: Floats, packing: Packing, dtype: str) -> Small:
    weight = np.ascontiguousarray(pack(levels, packing.bits)).view(np.uint32)
    return Small(weight, scale.astype(NUMPY[dtype]), bias.astype(NUMPY[dtype]), packing)


def _microscaled(levels: NDArray[np.uint8], scales: NDArray[np.uint8], packing: Packing) -> Small:
    return Small(np.ascontiguousarray(pack(levels, packing.bits)).view(np.uint32), scales, None, packing)
