"""Blocks of a GGUF file that MLX holds as they are, made affine groups: levels, scales and minima stay, to the bit, and
only their places change. blocks.py knows the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgecore.checkpoint import Checkpoint, Tensor
from edgecore.checkpoint.families import Family, family_of
from edgecore.checkpoint.safetensors_out import Entry, cast, row_steps
from edgecore.contract import UnsupportedPrecision
from edgecore_mlx.blocks import BLOCKS, Block, Levels
from edgecore_mlx.recipe import Packing

DTYPES: Mapping[str, tuple[str, bool]] = {"f32": ("F32", True), "f16": ("F16", False)}
"""Precisions whose type, in safetensors' words, holds scales and biases of blocks; and whether those of wide ones too.
bfloat16 would round them all."""


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
        if others or len(entry.shape) != 2 or not _holds(precision, kind):
            kept.append(entry)
            continue
        path = entry.name.removesuffix(".weight")
        kinds[path] = kind
        names |= {tensor.name for tensor in tensors}
        kept += _packed(path, entry.shape, tensors, BLOCKS[kind], DTYPES[precision][0])
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


def _holds(precision: str, kind: str) -> bool:
    _, wide = DTYPES.get(precision, ("", False))
    return precision in DTYPES and kind in BLOCKS and (wide or not BLOCKS[kind].wide)


def _sources(name: str, tensors: Mapping[str, Tensor], family: Family) -> list[Tensor]:
    """What an array of a folder is made of: one tensor, or the parts of a fused one."""
    if name in tensors:
        return [tensors[name]]
    found = [[name.replace(whole, part) for part in parts] for whole, parts in family.fused.items() if whole in name]
    return [tensors[part] for part in (found[0] if found else []) if part in tensors]


def _packed(path: str, shape: tuple[int, ...], tensors: Sequence[Tensor], block: Block, dtype: str) -> Iterator[Entry]:
    rows, columns = shape
    words, groups = columns * block.packing.bits // 32, columns // block.packing.group_size

    def levels(name: str, blocks: Levels) -> Levels:
        return pack(block.levels(blocks), block.packing.bits)

    def scales(name: str, blocks: Levels) -> Levels:
        return cast(name, block.scales(blocks), dtype)

    def biases(name: str, blocks: Levels) -> Levels:
        try:
            return cast(name, block.biases(blocks), dtype)
        except UnsupportedPrecision as error:
            raise UnsupportedPrecision(error.what, supported="f32, or -O packed=false") from None

    yield Entry(f"{path}.weight", "U32", (rows, words), lambda: _pieces(tensors, levels))
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
