"""Blocks of a GGUF file that MLX holds as they are: 32 neighbours of a row with a scale, and a minimum or a level that
stands for zero, are affine groups of 32. Levels, scales and minima stay, to the bit; only their places change.

    Q4_1, Q5_1          d * level + m                 scale d, bias m
    Q4_0, Q5_0, Q8_0    d * (level - zero)            scale d, bias -zero * d: a power of two, so nothing is rounded

ggml-common.h has the blocks; a nibble holds levels i and i + 16, and the fifth bits stand together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint import Checkpoint, Tensor
from edgecore.checkpoint.families import Family, family_of
from edgecore.checkpoint.safetensors_out import Entry, cast, row_steps
from edgecore.contract import UnsupportedPrecision
from edgecore_mlx.recipe import Packing

GROUP = 32
Levels = NDArray[np.uint8]
DTYPES: Mapping[str, str] = {"f32": "F32", "f16": "F16"}
"""Precisions whose type holds every scale and bias of a block, by safetensors' names; bfloat16 would round them."""


@dataclass(frozen=True, slots=True)
class Block:
    """Where a block of 32 has what, in bytes. Its scale is the F16 at 0."""

    bits: int
    at: int
    """Of the levels: nibbles, or bytes for 8 bits."""
    zero: int = 0
    """The level that stands for zero, where no minimum is stored."""
    minimum: int = 0
    """Of the F16 that stands for level 0; 0: there is none."""
    fifth: int = 0
    """Of the fifth bits; 0: there are none."""

    @property
    def packing(self) -> Packing:
        return Packing(self.bits, GROUP)

    def levels(self, blocks: Levels) -> Levels:
        """(n, 32) of n blocks."""
        stored = blocks[:, self.at :]
        if self.bits == 8:
            return stored ^ np.uint8(0x80)  # signed, and zero is 128
        levels = np.concatenate([stored & np.uint8(15), stored >> np.uint8(4)], axis=1)
        if self.fifth:
            levels |= np.unpackbits(blocks[:, self.fifth : self.fifth + 4], axis=1, bitorder="little") << np.uint8(4)
        return levels

    def scales(self, blocks: Levels) -> NDArray[np.float32]:
        """(n,)"""
        return _halves(blocks, 0)

    def biases(self, blocks: Levels) -> NDArray[np.float32]:
        """(n,)"""
        return _halves(blocks, self.minimum) if self.minimum else self.scales(blocks) * np.float32(-self.zero)


BLOCKS: Mapping[str, Block] = {
    "Q4_0": Block(4, at=2, zero=8),
    "Q4_1": Block(4, at=4, minimum=2),
    "Q5_0": Block(5, at=6, zero=16, fifth=2),
    "Q5_1": Block(5, at=8, minimum=2, fifth=4),
    "Q8_0": Block(8, at=2, zero=128),
}


@dataclass(frozen=True, slots=True)
class Kept:
    """A folder's arrays, those of blocks packed."""

    entries: list[Entry]
    kinds: Mapping[str, str]
    """The storage type of each matrix that stayed as it was, by module path: `Q4_1`."""
    tensors: frozenset[str] = frozenset()
    """The same by canonical name."""

    @property
    def packings(self) -> dict[str, Packing]:
        """By module path."""
        return {path: BLOCKS[kind].packing for path, kind in self.kinds.items()}


def keep(model: Checkpoint, entries: Sequence[Entry], precision: str) -> Kept:
    """`entries` with those packed that MLX can hold as the file does.

    entries: the folder's, as `folder_weights` makes them of `model`: one fused of parts of different types stays.
    """
    kept: list[Entry] = []
    kinds: dict[str, str] = {}
    names: set[str] = set()
    family = family_of(model.decoder)
    for entry in entries:
        tensors = _sources(entry.name, model.tensors, family)
        (kind, *others) = {tensor.storage for tensor in tensors} or {""}
        if others or len(entry.shape) != 2 or kind not in BLOCKS or precision not in DTYPES:
            kept.append(entry)
            continue
        path = entry.name.removesuffix(".weight")
        kinds[path] = kind
        names |= {tensor.name for tensor in tensors}
        kept += _packed(path, entry.shape, tensors, BLOCKS[kind], DTYPES[precision])
    return Kept(kept, kinds, frozenset(names))


def pack(levels: Levels, bits: int) -> Levels:
    """Levels (n, a multiple of 8) as one stream of bits, lowest first, uint8 (n, columns * bits / 8): as MLX has them
    in its uint32."""
    if bits == 8:
        return np.ascontiguousarray(levels)
    if bits == 4:
        return np.asarray(levels[:, ::2] | levels[:, 1::2] << np.uint8(4), np.uint8)
    eight = levels.reshape(len(levels), -1, 8).astype(np.uint64) << np.arange(0, 8 * bits, bits, dtype=np.uint64)
    words: Levels = np.bitwise_or.reduce(eight, axis=-1)[..., None].astype("<u8").view(np.uint8)
    return words[..., :bits].reshape(len(levels), -1)


def _sources(name: str, tensors: Mapping[str, Tensor], family: Family) -> list[Tensor]:
    """What an array of a folder is made of: one tensor, or the parts of a fused one."""
    if name in tensors:
        return [tensors[name]]
    found = [[name.replace(whole, part) for part in parts] for whole, parts in family.fused.items() if whole in name]
    return [tensors[part] for part in (found[0] if found else []) if part in tensors]


def _packed(path: str, shape: tuple[int, ...], tensors: Sequence[Tensor], block: Block, dtype: str) -> Iterator[Entry]:
    rows, groups = shape[0], shape[1] // GROUP

    def levels(name: str, blocks: Levels) -> Levels:
        return pack(block.levels(blocks), block.bits)

    def scales(name: str, blocks: Levels) -> Levels:
        return cast(name, block.scales(blocks), dtype)

    def biases(name: str, blocks: Levels) -> Levels:
        try:
            return cast(name, block.biases(blocks), dtype)
        except UnsupportedPrecision as error:
            raise UnsupportedPrecision(error.what, supported="f32, or -O packed=false") from None

    yield Entry(f"{path}.weight", "U32", (rows, groups * block.bits), lambda: _pieces(tensors, levels))
    yield Entry(f"{path}.scales", dtype, (rows, groups), lambda: _pieces(tensors, scales))
    yield Entry(f"{path}.biases", dtype, (rows, groups), lambda: _pieces(tensors, biases))


def _pieces(tensors: Sequence[Tensor], made: Callable[[str, Levels], Levels]) -> Iterator[Levels]:
    """Of the blocks of some rows at a time, in canonical order."""
    for tensor in tensors:
        stored = tensor.data.reshape(tensor.shape[0], -1)
        for start, stop in row_steps(tensor):
            some = stored[start:stop] if tensor.order is None else stored[tensor.order[start:stop]]
            tensor.check_finite(some)
            yield np.ascontiguousarray(made(tensor.name, some.reshape(-1, tensor.type.size)))


def _halves(blocks: Levels, at: int) -> NDArray[Any]:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").reshape(-1).astype(np.float32)
