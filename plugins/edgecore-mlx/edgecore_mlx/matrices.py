"""A weight matrix in memory, in the two forms that MLX multiplies by: numbers, and packed groups with their scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx

SMALL = 1 << 17
"""Bytes of a matrix that several threads do not compute faster than one."""


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

    def numbers(self) -> mx.array:
        """(rows, columns)"""
        return mx.dequantize(self.weight, self.scales, self.biases, **self.how)

    def lookup(self, tokens: mx.array) -> mx.array:
        biases = None if self.biases is None else self.biases[tokens]
        return mx.dequantize(self.weight[tokens], self.scales[tokens], biases, **self.how)


@dataclass(frozen=True, eq=False)
class Split:
    """Rows computed by several streams at once: on `cpu` MLX has one thread a stream, so these are its threads."""

    parts: tuple[Matrix, ...]
    streams: tuple[mx.ThreadLocalStream, ...]
    """One for each part but the first, which the caller's own computes."""

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        return tuple(array for part in self.parts for array in part.arrays)

    def product(self, x: mx.array) -> mx.array:
        found = [self.parts[0].product(x)]
        for part, stream in zip(self.parts[1:], self.streams, strict=True):
            with mx.stream(stream):
                found.append(part.product(x))
        return mx.concatenate(found, axis=-1)

    def lookup(self, tokens: mx.array) -> mx.array:
        found, start = self.parts[0].lookup(mx.minimum(tokens, self.parts[0].rows - 1)), self.parts[0].rows
        for part in self.parts[1:]:
            here = part.lookup(mx.clip(tokens - start, 0, part.rows - 1))
            found = mx.where((tokens >= start)[:, None], here, found)
            start += part.rows
        return found


def split(matrix: Matrix, streams: tuple[mx.ThreadLocalStream, ...]) -> Matrix:
    """In as many parts as there are streams and one more, where it is large enough for that to be worth it."""
    count = len(streams) + 1
    if count == 1 or matrix.rows < count or sum(array.nbytes for array in matrix.arrays) < SMALL:
        return matrix
    borders = [matrix.rows * i // count for i in range(1, count)]
    axis = 1 if isinstance(matrix, Dense) and matrix.turned else 0
    parts = zip(*(mx.split(array, borders, axis=axis) for array in matrix.arrays), strict=True)
    copied = [[mx.contiguous(array) for array in arrays] for arrays in parts]
    if isinstance(matrix, Dense):
        return Split(tuple(Dense(arrays[0], matrix.turned) for arrays in copied), streams)
    if isinstance(matrix, Packed):
        return Split(tuple(_packed(arrays, matrix.how) for arrays in copied), streams)
    return matrix


def _packed(arrays: Sequence[mx.array], how: Mapping[str, Any]) -> Packed:
    return Packed(arrays[0], arrays[1], arrays[2] if len(arrays) == 3 else None, **how)


def joined(parts: Sequence[Matrix]) -> Matrix | None:
    """One matrix that has the rows of all, which must have as many columns; None where they are kept differently."""
    first = parts[0]
    if isinstance(first, Dense) and all(isinstance(p, Dense) and p.turned == first.turned for p in parts):
        axis = 1 if first.turned else 0
        return Dense(mx.concatenate([p.arrays[0] for p in parts], axis=axis), first.turned)
    if isinstance(first, Packed) and all(isinstance(p, Packed) and p.how == first.how for p in parts):
        arrays = [mx.concatenate(list(several), axis=0) for several in zip(*(p.arrays for p in parts), strict=True)]
        return _packed(arrays, first.how)
    return None
