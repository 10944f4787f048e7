"""A matrix in mxfp4, mxfp8 or nvfp4: every number a small float, times a scale of one byte for 16 or 32 neighbours.

`mx.quantize` takes the scale from a group's largest number; here several are tried. Levels are the floats' bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint.gptq import Floats, compensated, importance
from edgecore_mlx.recipe import Packing

Bytes = NDArray[np.uint8]
_AT_ONCE = 1 << 17
"""Numbers searched at once, small enough for the processor's cache."""


@dataclass(frozen=True)
class _Kind:
    element: Any
    scale: Any
    shares: tuple[float, ...]
    """Of the scale by which the largest number of a group becomes the largest float: what is tried."""

    @cached_property
    def values(self) -> Floats:
        """What each level stands for; 0 for what is no number."""
        bits = 4 if self.element is ml_dtypes.float4_e2m1fn else 8
        every = np.arange(1 << bits, dtype=np.uint8).view(self.element).astype(np.float32)
        return np.asarray(np.where(np.isnan(every), 0, every))

    @cached_property
    def sign(self) -> np.uint8:
        """The bit of a level that is negative; below it levels ascend with what they stand for."""
        return np.uint8(len(self.values) // 2)

    @cached_property
    def borders(self) -> Floats:
        """Half way between neighbouring values."""
        values = self.values[: self.values.argmax() + 1]
        return np.asarray((values[1:] + values[:-1]) / 2)


_KINDS: Mapping[str, _Kind] = {
    "mxfp4": _Kind(ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e8m0fnu, (0.5, 1.0, 2.0)),
    "mxfp8": _Kind(ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e8m0fnu, (0.5, 1.0, 2.0)),
    "nvfp4": _Kind(ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e4m3fn, (0.65, 0.75, 0.85, 0.92, 1.0, 1.1, 1.2, 1.33)),
}


def rounded(weights: Floats, packing: Packing) -> tuple[Bytes, Bytes]:
    """Levels (rows, columns) and scales (rows, groups), whose square error is the least of those tried."""
    equal = np.ones(weights.shape[1], np.float32)
    kind, scale = _KINDS[packing.mode], _search(weights, equal, packing)
    spread = np.repeat(scale.astype(np.float32), packing.group_size, axis=1)
    return _levels(kind, weights / spread), scale.view(np.uint8)


def by_use(weights: Floats, used: Floats, packing: Packing) -> tuple[Bytes, Bytes]:
    """The same by GPTQ."""
    kind, scale = _KINDS[packing.mode], _search(weights, importance(used), packing)
    scales = np.ascontiguousarray(scale.T.astype(np.float32))

    def snap(column: int, numbers: Floats) -> tuple[Floats, Floats]:
        s = scales[column // packing.group_size]
        levels = _levels(kind, numbers / s)
        return levels.astype(np.float32), kind.values[levels] * s

    return compensated(weights, used, snap), scale.view(np.uint8)


def _search(weights: Floats, weight: Floats, packing: Packing) -> NDArray[Any]:
    kind, group = _KINDS[packing.mode], packing.group_size
    found = np.empty((len(weights), weights.shape[1] // group), kind.scale)
    step = max(1, _AT_ONCE // weights.shape[1])
    for start in range(0, len(weights), step):
        x = weights[start : start + step].reshape(-1, weights.shape[1] // group, group)
        need = np.abs(x).max(-1) / kind.values.max()
        least = np.full(need.shape, np.inf, np.float32)
        for share in kind.shares:
            scale = _stored(need * np.float32(share), kind.scale)
            s = scale.astype(np.float32)[..., None]
            error = np.einsum("rgc,gc->rg", (kind.values[_levels(kind, x / s)] * s - x) ** 2, weight.reshape(-1, group))
            better = error < least
            least[better] = error[better]
            found[start : start + step][better] = scale[better]
    return found


def _stored(scale: Floats, kind: Any) -> NDArray[Any]:
    """The nearest that a byte holds, no zero: a group of zeros has any. Of powers of two the next below."""
    every = np.arange(1 << 8, dtype=np.uint8).view(kind).astype(np.float32)
    within = np.clip(scale, every[every > 0].min(), every[every > 0].max())
    if kind is ml_dtypes.float8_e8m0fnu:
        within = np.exp2(np.floor(np.log2(within)))
    return np.asarray(within.astype(kind))


def _levels(kind: _Kind, x: Floats) -> Bytes:
    """Of the nearest values."""
    levels = np.searchsorted(kind.borders, np.abs(x)).astype(np.uint8)
    return np.asarray(np.where(x < 0, levels | kind.sign, levels))
