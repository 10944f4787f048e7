"""Plain round-to-nearest: the yardstick that says what a number of bits costs on this very model.

A fixed bound on KL divergence would either forbid what a small, sensitive model cannot avoid or excuse what has ruined
a large, robust one. So a file is judged by how many times more it loses than the simplest method of equal bits does.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint.tensors import Readable

Floats = NDArray[np.float32]
GROUP = 32
HEAD_BITS = 6.0
"""Embedding and output head are rounded to no fewer bits than this, as the runtimes do: llama.cpp keeps them at 6 or 8
bits and OpenVINO at 8, whatever the precision's name says. A lower baseline would excuse files that did worse than all;
a higher one refuses Q6_K of a model whose embedding is its head, for having the 6 bits that its name says.
"""
_ROWS = 64
"""Rows that share one random generator, so that some rows can be rounded as they would be with all the others."""


def round_to_nearest(array: Floats, bits: float, group: int = GROUP, seed: int = 0, first_row: int = 0) -> Floats:
    """`array` as symmetric round-to-nearest of `bits` bits would leave it; float32 of the same shape.

    Each `group` neighbours of a row share a step of 2 max|x| / (2^bits - 1): 2^bits levels from -max to +max. The grid
    is shifted by a random fraction of a step for every weight (subtractive dither: Schuchman 1964), so that the error
    has the variance of rounding, step^2 / 12, whatever the weights are. Without the shift a source that was quantized
    before may lie on the grid already, and would lose nothing and so forbid everything. At 16 bits the array is
    rounded to bfloat16, the coarser of the two formats; at 32 it is left alone.

    first_row: where `array` begins in the tensor that it is a part of, a multiple of 64.
    """
    if bits >= 32:
        return array
    if bits >= 16:
        return array.astype(ml_dtypes.bfloat16).astype(np.float32)
    rows = np.ascontiguousarray(array).reshape(-1, array.shape[-1])
    made = np.empty_like(rows)
    for start in range(0, len(rows), _ROWS):
        random = np.random.default_rng((seed, first_row + start))
        made[start : start + _ROWS] = _round(rows[start : start + _ROWS], bits, group, random)
    return made.reshape(array.shape)


def _round(rows: Floats, bits: float, group: int, random: np.random.Generator) -> Floats:
    """The last group of a row is shorter where `group` does not divide it."""
    columns = rows.shape[1]
    starts = np.arange(0, columns, group)
    largest = np.maximum.reduceat(np.abs(rows), starts, axis=1)
    step = np.repeat(largest, np.diff(np.append(starts, columns)), axis=1)
    step *= np.float32(2.0 / (2.0**bits - 1.0))
    dither = random.random(rows.shape, np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        rounded = (np.rint(rows / step + dither) - dither) * step
    return np.asarray(np.where(step > 0, rounded, rows), np.float32)


def eligible(name: str, shape: tuple[int, ...]) -> bool:
    """Whether quantization is about this tensor: the matrices, not norms and biases."""
    return len(shape) >= 2 and name.endswith(".weight")


def bits_for(name: str, bits: float) -> float:
    """Bits that the baseline gives to the matrix `name` when asked for `bits`."""
    inner = ".layers." in name
    return bits if inner else max(bits, HEAD_BITS)


@dataclass(frozen=True, slots=True)
class Rounded:
    """A weight that is rounded whenever it is read, the same way every time."""

    source: Readable
    bits: float

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    def read(self) -> Floats:
        return round_to_nearest(self.source.read(), self.bits, seed=self._seed)

    def rows(self, start: int, stop: int) -> Floats:
        first = start // _ROWS * _ROWS
        last = min(self.shape[0], -(-stop // _ROWS) * _ROWS)
        around = round_to_nearest(self.source.rows(first, last), self.bits, seed=self._seed, first_row=first)
        return around[start - first : stop - first]

    @property
    def _seed(self) -> int:
        return zlib.crc32(self.name.encode())


class RoundedTensors(Mapping[str, Readable]):
    """A model's tensors with every matrix rounded to nearest: what the oracle runs on to find the baseline."""

    def __init__(self, tensors: Mapping[str, Readable], bits: float) -> None:
        self._tensors, self._bits = tensors, bits

    def __getitem__(self, name: str) -> Readable:
        tensor = self._tensors[name]
        return Rounded(tensor, bits_for(name, self._bits)) if eligible(name, tensor.shape) else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
