"""A weight matrix in memory, in the two forms that MLX multiplies by: numbers, and packed groups with their scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx


class Matrix(Protocol):
    """(rows, columns), a row an output; an embedding table has a row a token."""

    @property
    def rows(self) -> int: ...

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        """What it consists of, to be evaluated."""

    def product(self, x: mx.array) -> mx.array:
        """(..., columns) -> (..., rows)"""

    def lookup(self, tokens: mx.array) -> mx.array:
        """(n,) -> (n, columns)"""


@dataclass(frozen=True, eq=False)
class Dense:
    """Numbers. A CPU's reference BLAS is twice as fast where they are kept turned, (columns, rows)."""

    weight: mx.array
    turned: bool = False

    @property
    def rows(self) -> int:
        return int(self.weight.shape[1 if self.turned else 0])

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        return (self.weight,)

    def product(self, x: mx.array) -> mx.array:
        return x @ (self.weight if self.turned else self.weight.T)

    def lookup(self, tokens: mx.array) -> mx.array:
        return self.weight[:, tokens].T if self.turned else self.weight[tokens]


@dataclass(frozen=True, eq=False)
class Packed:
    """Groups of `group_size` elements of a row, `bits` each, as `mx.quantize` packs them in `mode`."""

    weight: mx.array
    """uint32 (rows, columns * bits / 32)"""
    scales: mx.array
    """(rows, columns / group_size)"""
    biases: mx.array | None
    """Of `affine` alone."""
    group_size: int
    bits: int
    mode: str = "affine"

    @property
    def rows(self) -> int:
        return int(self.weight.shape[0])

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        return (self.weight, self.scales) if self.biases is None else (self.weight, self.scales, self.biases)

    @property
    def how(self) -> dict[str, Any]:
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}

    def product(self, x: mx.array) -> mx.array:
        return mx.quantized_matmul(x, self.weight, self.scales, self.biases, transpose=True, **self.how)

    def lookup(self, tokens: mx.array) -> mx.array:
        biases = None if self.biases is None else self.biases[tokens]
        return mx.dequantize(self.weight[tokens], self.scales[tokens], biases, **self.how)


def joined(parts: Sequence[Matrix]) -> Matrix | None:
    """One matrix that has the rows of all, which must have as many columns; None where they are kept differently."""
    first = parts[0]
    if isinstance(first, Dense) and all(isinstance(p, Dense) and p.turned == first.turned for p in parts):
        axis = 1 if first.turned else 0
        return Dense(mx.concatenate([p.arrays[0] for p in parts], axis=axis), first.turned)
    if isinstance(first, Packed) and all(isinstance(p, Packed) and p.how == first.how for p in parts):
        arrays = [mx.concatenate(list(several), axis=0) for several in zip(*(p.arrays for p in parts), strict=True)]
        return Packed(arrays[0], arrays[1], arrays[2] if len(arrays) == 3 else None, **first.how)
    return None
