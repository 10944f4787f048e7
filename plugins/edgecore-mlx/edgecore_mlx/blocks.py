"""How ggml's blocks lie in a GGUF file, those whose numbers are `scale * level + bias` by groups that MLX has.

    Q4_1, Q5_1          d * level + m                       scale d, bias m
    Q4_0, Q5_0, Q8_0    d * (level - zero)                  scale d, bias -zero * d
    Q4_K, Q5_K          d * s * level - dmin * m            scale d * s, bias -dmin * m, which 17 bits hold, float16 not
    TQ2_0               d * (level - 1)                     scale d, bias -d

Nothing is rounded: zero is a power of two, and the products of a float16 and six bits are float32s.
ggml-common.h has the blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgecore_mlx.recipe import Packing

Levels = NDArray[np.uint8]
Floats = NDArray[np.float32]


class Block(Protocol):
    """One storage type. Blocks are uint8 (n, bytes of one); their groups and levels are in the order of the row."""

    @property
    def packing(self) -> Packing: ...

    @property
    def wide(self) -> bool:
        """Whether scales and biases need float32."""

    def levels(self, blocks: Levels) -> Levels:
        """(n, elements of a block)"""

    def scales(self, blocks: Levels) -> Floats:
        """(n, groups of a block)"""

    def biases(self, blocks: Levels) -> Floats:
        """(n, groups of a block)"""


@dataclass(frozen=True, slots=True)
class Small:
    """32 elements, and the F16 at 0 is their scale. A nibble holds levels i and i + 16; fifth bits stand together."""

    bits: int
    at: int
    """Of the levels, in bytes: nibbles, or bytes for 8 bits."""
    zero: int = 0
    """The level that stands for zero, where no minimum is stored."""
    minimum: int = 0
    """Of the F16 that stands for level 0; 0: there is none."""
    fifth: int = 0
    """Of the fifth bits; 0: there are none."""
    wide = False

    @property
    def packing(self) -> Packing:
        return Packing(self.bits, 32)

    def levels(self, blocks: Levels) -> Levels:
        stored = blocks[:, self.at :]
        if self.bits == 8:
            return stored ^ np.uint8(0x80)  # signed, and zero is 128
        levels = np.concatenate([stored & np.uint8(15), stored >> np.uint8(4)], axis=1)
        if self.fifth:
            levels |= np.unpackbits(blocks[:, self.fifth : self.fifth + 4], axis=1, bitorder="little") << np.uint8(4)
        return levels

    def scales(self, blocks: Levels) -> Floats:
        return _half(blocks, 0)

    def biases(self, blocks: Levels) -> Floats:
        return _half(blocks, self.minimum) if self.minimum else self.scales(blocks) * np.float32(-self.zero)


@dataclass(frozen=True, slots=True)
class Super:
    """256 elements in groups of 32: F16 `d` and `dmin`, then six bits a group to multiply each with, packed crosswise.
    A byte holds a level of a group and of the next; of fifth bits, one of every group."""

    bits: int
    wide = True

    @property
    def packing(self) -> Packing:
        return Packing(self.bits, 32)

    def levels(self, blocks: Levels) -> Levels:
        nibbles = blocks[:, -128:].reshape(-1, 4, 1, 32) >> np.array([0, 4], np.uint8).reshape(2, 1)
        levels = (nibbles & np.uint8(15)).reshape(-1, 8, 32)
        if self.bits == 5:
            fifths = blocks[:, 16:48].reshape(-1, 1, 32) >> np.arange(8, dtype=np.uint8).reshape(8, 1)
            levels |= (fifths & np.uint8(1)) << np.uint8(4)
        return levels.reshape(-1, 256)

    def scales(self, blocks: Levels) -> Floats:
        return _half(blocks, 0) * self._six(blocks, 0)

    def biases(self, blocks: Levels) -> Floats:
        return -_half(blocks, 2) * self._six(blocks, 4)

    def _six(self, blocks: Levels, at: int) -> Floats:
        """(n, 8): those for `d` from byte 0 of twelve on, for `dmin` from byte 4; the last four have the others' top
        bits, and nibbles."""
        first, last = blocks[:, 4 + at : 8 + at], blocks[:, 12:16] >> np.uint8(at)
        rest = last & np.uint8(15) | first >> np.uint8(2) & np.uint8(0x30)
        return np.concatenate([first & np.uint8(63), rest], axis=1).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Ternary:
    """256 elements with the F16 at 64 as their scale: bytes of four levels, 32 apart, zero is 1."""

    wide = False

    @property
    def packing(self) -> Packing:
        return Packing(2, 128)

    def levels(self, blocks: Levels) -> Levels:
        fours = blocks[:, :64].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(4, 1)
        return (fours & np.uint8(3)).reshape(-1, 256)

    def scales(self, blocks: Levels) -> Floats:
        return np.repeat(_half(blocks, 64), 2, axis=1)

    def biases(self, blocks: Levels) -> Floats:
        return -self.scales(blocks)


BLOCKS: Mapping[str, Block] = {
    "Q4_0": Small(4, at=2, zero=8),
    "Q4_1": Small(4, at=4, minimum=2),
    "Q5_0": Small(5, at=6, zero=16, fifth=2),
    "Q5_1": Small(5, at=8, minimum=2, fifth=4),
    "Q8_0": Small(8, at=2, zero=128),
    "Q4_K": Super(4),
    "Q5_K": Super(5),
    "TQ2_0": Ternary(),
}


def _half(blocks: Levels, at: int) -> Floats:
    """(n, 1) the F16 at a byte."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)
