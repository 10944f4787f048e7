"""Weights that a file does not hold as they are used: offsets from one, and BitNet's ternary weights, in two forms.

BitNet b1.58 (arXiv 2402.17764): every weight of a projection is -1, 0 or 1 times one scale a matrix. A checkpoint has
either the finished ones, four rows to a byte, or the master weights of the training, which are rounded when they are
used; transformers calls the first `offline` and the second `online` (`integrations/bitnet.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from edgecore.checkpoint.storage import Floats, Storage
from edgecore.checkpoint.tensors import Tensor

TERNARY = Storage("TERNARY", 4, 1)
"""Packed ternary weights, 2 bits each: byte row r has rows r, r + n, r + 2n and r + 3n of the 4n, lowest bits first."""


@dataclass(frozen=True, slots=True)
class Offset:
    """What is stored, and `by`: Gemma's norms are kept as their distance from one."""

    by: float

    def __call__(self, tensor: Tensor, start: int, stop: int) -> Floats:
        return tensor.stored(start, stop) + np.float32(self.by)


@dataclass(frozen=True, slots=True)
class Scaled:
    """What is stored times one number."""

    by: float

    def __call__(self, tensor: Tensor, start: int, stop: int) -> Floats:
        return tensor.stored(start, stop) * np.float32(self.by)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """The finished ternary weights of a `TERNARY` tensor, times their scale."""

    scale: float

    def __call__(self, tensor: Tensor, start: int, stop: int) -> Floats:
        packed = tensor.data.reshape(tensor.shape[0] // 4, tensor.shape[1])
        rows = np.arange(start, stop)
        bits = packed[rows % len(packed)] >> (2 * (rows // len(packed)))[:, None].astype(np.uint8) & 3
        return (bits.astype(np.float32) - 1) * np.float32(self.scale)


@dataclass(slots=True)
class Rounded:
    """Master weights, rounded to ternary with the mean magnitude of the whole matrix as their scale."""

    _scale: np.float32 | None = field(default=None, init=False)

    def __call__(self, tensor: Tensor, start: int, stop: int) -> Floats:
        if self._scale is None:
            self._scale = self._mean_magnitude(tensor)
        inverse = 1 / self._scale
        return np.asarray(np.clip(np.rint(tensor.stored(start, stop) * inverse), -1, 1) / inverse)

    @staticmethod
    def _mean_magnitude(tensor: Tensor) -> np.float32:
        step = max(1, (1 << 18) // tensor.shape[1])
        sums = (
            np.abs(tensor.stored(a, min(a + step, tensor.shape[0]))).sum(dtype=np.float64)
            for a in range(0, tensor.shape[0], step)
        )
        return np.float32(max(sum(sums) / tensor.elements, 1e-5))
