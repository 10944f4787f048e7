"""Rotary positions by MLX's own operation, which takes what one turn of each pair lasts, in positions."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from edgecore.checkpoint import Rope


@dataclass(frozen=True, eq=False)
class Turns:
    """A rotary embedding with its periods, ready to turn heads of one size."""

    dim: int
    short: mx.array
    """(dim/2,) positions a radian."""
    long: mx.array
    """The same for sequences behind longrope's border; elsewhere the same array."""
    factors: mx.array | None
    """(head_dim,) longrope's attention factor where elements turn, one where not; None: one everywhere."""

    @classmethod
    def of(cls, rope: Rope, head_dim: int, dtype: mx.Dtype) -> Turns:
        short = _periods(rope, 0)
        long = _periods(rope, rope.original_context + 1) if rope.is_long(rope.original_context + 1) else short
        factors = None
        if rope.attention_factor != 1:
            factors = mx.array(np.where(np.arange(head_dim) < rope.dim, rope.attention_factor, 1.0)).astype(dtype)
            mx.eval(factors)  # what is not computed yet belongs to this thread
        return cls(rope.dim, short, long, factors)

    def rotate(self, heads: mx.array, start: int, long: bool) -> mx.array:
        """(1, heads, tokens, head_dim), whose tokens stand at `start` and after it: the first `dim` elements of each
        head turn, i with i + dim/2."""
        if self.factors is not None:
            heads = heads * self.factors
        periods = self.long if long else self.short
        return mx.fast.rope(heads, self.dim, traditional=False, base=None, scale=1.0, offset=start, freqs=periods)


def _periods(rope: Rope, positions: int) -> mx.array:
    return mx.array((1 / rope.frequencies(positions)).astype(np.float32))
