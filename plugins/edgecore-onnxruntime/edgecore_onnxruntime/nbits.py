"""Small whole numbers as MatMulNBits and GatherBlockQuantized keep them, and back: both read one copy.

    B           uint8 (rows, blocks, bytes of a block)    neighbours of a row side by side, lowest bits first
    scales      float16 (rows, blocks)                    behind a Cast, which ONNX Runtime computes once, when it loads
    zero_points uint8 (rows, bytes of all blocks' zeros)  none: the middle level

A float32 graph wants float32 scales, a bit a weight at block 32: as float16 they cost half of it. GatherBlockQuantized
wants the same bytes of B with two dimensions, so a Reshape stands before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint.gptq import Floats, Rounded

Bytes = NDArray[np.uint8]
SCALE, ZERO = "/scale", "/zero_point"
"""What stands behind a matrix's own name."""


@dataclass(frozen=True, slots=True)
class Packed:
    """The initializers of one matrix."""

    b: Bytes
    scales: NDArray[np.float16]
    zero_points: Bytes | None


def blocks_of(columns: int, block: int) -> int:
    return -(-columns // block)


def pack(made: Rounded, bits: int, symmetric: bool) -> Packed:
    """`made` with its columns filled up to whole blocks."""
    rows, blocks = made.scale.shape
    b = _packed(made.levels, bits).reshape(rows, blocks, -1)
    return Packed(b, made.scale, None if symmetric else _packed(made.zero, bits))


def read(b: Bytes, scales: NDArray[np.float16] | Floats, zero_points: Bytes | None, columns: int, bits: int) -> Floats:
    """The matrix (rows, columns) that the operators compute with."""
    rows, blocks = scales.reshape(len(b), -1).shape
    zero = np.float32(1 << (bits - 1)) if zero_points is None else _unpacked(zero_points, bits)[:, :blocks, None]
    levels = _unpacked(b.reshape(rows, -1), bits).reshape(rows, blocks, -1).astype(np.float32)
    whole = (levels - zero) * scales.reshape(rows, blocks, 1).astype(np.float32)
    return np.ascontiguousarray(whole.reshape(rows, -1)[:, :columns], np.float32)


def nbytes(rows: int, columns: int, block: int, bits: int, symmetric: bool) -> int:
    """Of a matrix with its scales and zero points."""
    blocks = blocks_of(columns, block)
    return rows * (blocks * block * bits // 8 + 2 * blocks + (0 if symmetric else math.ceil(blocks * bits / 8)))


def _packed(values: Bytes, bits: int) -> Bytes:
    """Rows of numbers as rows of bytes."""
    if bits == 8:
        return np.ascontiguousarray(values)
    if values.shape[1] % 2:
        values = np.pad(values, ((0, 0), (0, 1)))
    return np.asarray(values[:, ::2] | values[:, 1::2] << 4, np.uint8)


def _unpacked(values: Bytes, bits: int) -> Bytes:
    return values if bits == 8 else np.stack([values & 15, values >> 4], axis=-1).reshape(len(values), -1)
