"""float32 weights as GGUF stores them: the bytes of the `gguf` package and of llama.cpp's converter, sooner.

A test holds each function to that package, bit by bit.
"""

from __future__ import annotations

from enum import Enum

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
_JUST_BELOW_HALF = np.float32(0.49999997)
"""Added and cut off, it rounds half away from zero: 0.5 itself would carry the number below 0.5 up."""
_AT_ONCE = 1 << 16
"""Elements that stay in the processor's cache while several steps go over them."""


class Stored(Enum):
    """A type that this converter writes: ggml's number, elements of a block, its bytes."""

    F32 = (0, 1, 4)
    F16 = (1, 1, 2)
    Q8_0 = (8, 32, 34)
    BF16 = (30, 1, 2)

    @property
    def number(self) -> int:
        return self.value[0]

    @property
    def block(self) -> int:
        return self.value[1]

    def nbytes(self, elements: int) -> int:
        return elements // self.block * self.value[2]

    def pack(self, values: Floats) -> Bytes:
        """The bytes, flat. Whole blocks only. A number that float16 cannot hold becomes infinite."""
        flat = np.ascontiguousarray(values).reshape(-1)
        if self is Stored.F32:
            return flat.view(np.uint8)
        pack = {Stored.F16: _half, Stored.BF16: _bfloat, Stored.Q8_0: _q8_0}[self]
        out = np.empty(self.nbytes(flat.size), np.uint8)
        step = self.nbytes(_AT_ONCE)
        for number, start in enumerate(range(0, flat.size, _AT_ONCE)):
            pack(flat[start : start + _AT_ONCE], out[number * step : (number + 1) * step])
        return out


def _half(values: Floats, out: Bytes) -> None:
    with np.errstate(over="ignore"):
        out.view(np.float16)[:] = values


def _bfloat(values: Floats, out: Bytes) -> None:
    """To the nearest, ties to even (ggml_compute_fp32_to_bf16)."""
    bits = values.view(np.uint32)
    rounding = bits >> 16
    rounding &= 1
    rounding += 0x7FFF
    rounding += bits
    rounding >>= 16
    out.view(np.uint16)[:] = rounding


def _q8_0(values: Floats, out: Bytes) -> None:
    """Blocks of 32 with one float16 scale (quantize_row_q8_0_ref): the largest magnitude becomes 127."""
    blocks = values.reshape(-1, 32)
    scale = np.abs(np.maximum(blocks.max(axis=1), -blocks.min(axis=1))) / np.float32(127)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(scale == 0, np.float32(0), 1 / scale)
        halves = scale.astype(np.float16)
    scaled = blocks * inverse[:, None]
    scaled += np.copysign(_JUST_BELOW_HALF, scaled)
    rows = out.reshape(-1, 34)
    rows[:, :2] = halves.view(np.uint8).reshape(-1, 2)
    rows[:, 2:] = scaled.astype(np.int8).view(np.uint8)
