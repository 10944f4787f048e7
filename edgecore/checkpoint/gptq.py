"""GPTQ (Frantar et al. 2022, arXiv:2210.17323): round a matrix column by column, and let the columns that follow make
up for what each has lost, weighted by how the columns are used together.

What runtimes' own tools have of it (NNCF, ONNX Runtime) keeps all activations of a layer, where sums of their products
are enough. Here the scales are searched for as well, and columns taken in the order of their use. See
benchmarks/openvino_int4.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
DAMPING = 0.01
"""Share of the mean of H's diagonal that is added to it: keeps it invertible, and columns from overcompensating."""
SHRINK = np.linspace(1.0, 0.8, 5, dtype=np.float32)
"""Ranges tried for a group."""
_BLOCK = 64
"""Columns whose effect on all later ones is added up at once."""
_ROWS = 128
"""Rows whose scales are searched for at once, small enough for the processor's cache."""


@dataclass(frozen=True, slots=True)
class Rounded:
    """A matrix of small whole numbers: (levels - zero) * scale."""

    levels: NDArray[np.uint8]
    """(rows, columns), less than 2 to the number of bits."""
    scale: NDArray[np.float16]
    """(rows, groups)."""
    zero: NDArray[np.uint8]
    """(rows, groups)."""

    def rows(self, start: int, stop: int) -> Rounded:
        return Rounded(self.levels[start:stop], self.scale[start:stop], self.zero[start:stop])

    def read(self) -> Floats:
        """(rows, columns), dequantized."""
        rows, groups = self.scale.shape
        whole = self.levels.reshape(rows, groups, -1).astype(np.float32) - self.zero[..., None]
        return np.asarray((whole * self.scale[..., None].astype(np.float32)).reshape(rows, -1))


def gptq(weights: Floats, used: Floats, group: int, symmetric: bool, bits: int = 4, positive: bool = False) -> Rounded:
    """`weights` (rows, columns) in so many bits, at most 8.

    used:      (columns, columns), the mean of x x^T over the inputs that the matrix is multiplied with.
    group:     neighbouring columns that share a scale; divides them.
    symmetric: the zero point is the middle level everywhere, else searched for with the scale.
    positive:  scales are, for runtimes that take no others: of a symmetric group the lowest level may stay unused.
    """
    most = (1 << bits) - 1
    scale, zero = search_scales(weights, importance(used), group, symmetric, most, positive=positive)
    scales, zeros = scale.T.astype(np.float32), zero.T.astype(np.float32)

    def snap(column: int, numbers: Floats) -> tuple[Floats, Floats]:
        s, z = scales[column // group], zeros[column // group]
        level = np.clip(np.rint(numbers / s) + z, 0, most)
        return level, (level - z) * s

    return Rounded(compensated(weights, used, snap), scale, zero)


Snap = Callable[[int, Floats], tuple[Floats, Floats]]
"""A column and its numbers (rows,) -> a level for each, and what these stand for."""


def compensated(weights: Floats, used: Floats, snap: Snap) -> NDArray[np.uint8]:
    """The levels of `weights` (rows, columns), whatever they stand for, each column rounded after what those before it
    have lost. For formats that `Rounded` cannot hold."""
    columns = weights.shape[1]
    order = np.argsort(-importance(used), kind="stable")
    back = _compensation(used[np.ix_(order, order)].astype(np.float64))
    left = np.ascontiguousarray(weights.T[order], np.float32)
    levels = np.empty(left.shape, np.uint8)
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        lost = np.empty((stop - start, left.shape[1]), np.float32)
        for i in range(start, stop):
            levels[order[i]], now = snap(int(order[i]), left[i])
            lost[i - start] = (left[i] - now) / back[i, i]
            left[i + 1 : stop] -= back[i, i + 1 : stop, None] * lost[i - start]
        left[stop:] -= back[start:stop, stop:].T @ lost
    return np.ascontiguousarray(levels.T)


def importance(used: Floats) -> Floats:
    """How much each column is used, (columns,)."""
    return np.asarray(np.maximum(np.diag(used), 1e-12))


def _compensation(used: NDArray[np.float64]) -> Floats:
    """The upper Cholesky factor of the inverse: row i says what column i does to those after it."""
    diagonal = np.einsum("ii->i", used)
    diagonal[diagonal == 0] = 1
    damping = DAMPING * diagonal.mean()
    while True:
        diagonal += damping
        try:
            return np.asarray(np.linalg.cholesky(np.linalg.inv(used)).T, np.float32)
        except np.linalg.LinAlgError:
            damping *= 10


def search_scales(
    weights: Floats,
    importance: Floats,
    group: int,
    symmetric: bool,
    most: int,
    shrink: Floats = SHRINK,
    positive: bool = False,
) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """Scale and zero point of every group, (rows, groups): of several ranges the one that loses least, each column's
    error weighted by how much it is used. A narrower range cuts the largest weights and rounds the others better.

    most: the largest level, 2^bits - 1.   shrink: the ranges, as a share of what a group's largest weights need.
    """
    rows, columns = weights.shape
    scale, zero = np.empty((rows, columns // group), np.float16), np.empty((rows, columns // group), np.uint8)
    weight = importance.reshape(-1, group).astype(np.float32)
    for at in range(0, rows, _ROWS):
        part = weights[at : at + _ROWS].reshape(-1, columns // group, group)
        low, high = np.minimum(part.min(-1), 0), np.maximum(part.max(-1), 0)
        least = np.full(low.shape, np.inf, np.float32)
        for share in shrink:
            s, z = _range(low * share, high * share, symmetric, most, positive)
            whole = np.clip(np.rint(part / s[..., None]) + z[..., None], 0, most) - z[..., None]
            error = np.einsum("rgc,gc->rg", (whole * s[..., None] - part) ** 2, weight)
            better = error < least
            least[better] = error[better]
            scale[at : at + _ROWS][better] = s[better]
            zero[at : at + _ROWS][better] = z[better]
    return scale, zero


def _range(low: Floats, high: Floats, symmetric: bool, most: int, positive: bool) -> tuple[Floats, Floats]:
    """Scale and zero point that cover low to high. Symmetric: the larger end becomes level 0, as runtimes have it."""
    middle = (most + 1) // 2
    width = np.where(-low >= high, low, high) / -middle if symmetric else (high - low) / most
    if symmetric and positive:
        width = np.maximum(-low / middle, high / (most - middle))
    # Not below what float16 holds: a group of zeros has no width.
    scale = np.where(np.abs(width) < 1e-7, 1e-7, width).astype(np.float16).astype(np.float32)
    zero = np.full_like(low, middle) if symmetric else np.clip(np.rint(-low / scale), 0, most)
    return scale, np.asarray(zero, np.float32)
