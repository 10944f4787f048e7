"""How numbers lie in files: the size of each storage type, and the way back to float32.

The sizes are a table of our own because opening a file must not cost the import of the `gguf` package (0.07 s); a test
holds it to that package's. Dequantization of block types is `gguf`'s, imported when the first such tensor is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Storage:
    """One storage type. Elements of a row come in blocks: `block` elements in `size` bytes."""

    name: str
    block: int
    size: int
    readable: bool = True
    """Whether `dequantize` takes it."""
    scales: tuple[int, ...] = ()
    """Where in a block its F16 scales and minima stand, in bytes: a block's values are finite when these are."""

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of `columns` elements, which must divide into blocks."""
        return columns // self.block * self.size


_SCALES = {
    "Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "TQ1_0": (52,), "TQ2_0": (64,),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS", "IQ1_S"), (0,)),
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"), (0,)),
}  # fmt: skip
"""As ggml-common.h lays blocks out. IQ1_M (its scale is in four parts) and MXFP4 (its scale is an exponent) are
`is_finite`'s own; no value of NVFP4 is infinite."""


def _table(*rows: tuple[int, str, int, int]) -> dict[int, Storage]:
    unreadable = ("Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64", "Q1_0")
    return {
        number: Storage(name, block, size, name not in unreadable, _SCALES.get(name, ()))
        for number, name, block, size in rows
    }


GGML = _table(
    (0, "F32", 1, 4), (1, "F16", 1, 2), (2, "Q4_0", 32, 18), (3, "Q4_1", 32, 20), (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24), (8, "Q8_0", 32, 34), (9, "Q8_1", 32, 40), (10, "Q2_K", 256, 84), (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144), (13, "Q5_K", 256, 176), (14, "Q6_K", 256, 210), (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66), (17, "IQ2_XS", 256, 74), (18, "IQ3_XXS", 256, 98), (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18), (21, "IQ3_S", 256, 110), (22, "IQ2_S", 256, 82), (23, "IQ4_XS", 256, 136), (24, "I8", 1, 1),
    (25, "I16", 1, 2), (26, "I32", 1, 4), (27, "I64", 1, 8), (28, "F64", 1, 8), (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2), (34, "TQ1_0", 256, 54), (35, "TQ2_0", 256, 66), (39, "MXFP4", 32, 17), (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
)  # fmt: skip
"""GGUF's tensor types by number."""

SAFETENSORS = {
    storage.name: storage
    for storage in (
        Storage("F32", 1, 4),
        Storage("F16", 1, 2),
        Storage("BF16", 1, 2),
        *(Storage(name, 1, 8, False) for name in ("F64", "I64", "U64", "C64")),
        *(Storage(name, 1, 4, False) for name in ("I32", "U32")),
        *(Storage(name, 1, 2, False) for name in ("I16", "U16")),
        *(Storage(name, 1, 1, False) for name in ("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0")),
    )
}
"""safetensors' types by name."""


def dequantize(storage: Storage, rows: Bytes) -> Floats:
    """float32 (n, columns) from the stored bytes of n rows, uint8 (n, row_bytes). A view where nothing changes."""
    match storage.name:
        case "F32":
            return rows.view("<f4")
        case "F16":
            return rows.view("<f2").astype(np.float32)
        case "BF16":
            return (rows.view("<u2").astype(np.uint32) << 16).view(np.float32)
    from gguf import quants

    # Straight to the type's own function: `quants.dequantize` goes 16 rows at a time, at half the speed.
    kind = getattr(quants, storage.name)
    kind.init_grid()
    blocks: NDArray[Any] = kind.dequantize_blocks(rows.reshape(-1, storage.size))
    return blocks.reshape(len(rows), -1).astype(np.float32, copy=False)


_FLOATS = {"F32": ("<i4", "<u4", 0x7F80_0000), "F16": ("<i2", "<u2", 0x7C00), "BF16": ("<i2", "<u2", 0x7F80)}
"""Signed and unsigned view of the bits, and infinity: what is not smaller in one of the two is not finite."""
_IN_CACHE = 1 << 19
"""Bytes looked at in one piece."""


def is_finite(storage: Storage, stored: Bytes) -> bool:
    """Whether no weight is NaN or infinite, told from the stored bytes of whole blocks without dequantizing them."""
    flat = stored.reshape(-1)
    if storage.name in _FLOATS:
        pieces = (flat[at : at + _IN_CACHE] for at in range(0, flat.size, _IN_CACHE))
        return all(_finite_bits(piece, *_FLOATS[storage.name]) for piece in pieces)
    if storage.name == "IQ1_M":
        # Its scale is the top four bits of each of the last four 16-bit words: the exponent is in the last two.
        words = flat.view("<u2").reshape(-1, storage.size // 2)
        return not bool(((words[:, -1] & 0x7000 == 0x7000) & (words[:, -2] & 0xC000 == 0xC000)).any())
    if storage.name == "MXFP4":
        # Times 12, the largest of its values, an exponent above 252 leaves float32's range.
        large = flat.reshape(-1, storage.size)[flat[:: storage.size] > 252]
        with np.errstate(over="ignore"):
            return not large.size or bool(np.isfinite(dequantize(storage, large)).all())
    return all(_finite_bits(_every(flat, at, storage.size), *_FLOATS["F16"]) for at in storage.scales)


def _every(flat: Bytes, at: int, size: int) -> NDArray[np.uint16]:
    """The 16-bit number at byte `at` of each block of `size` bytes; every type that has one has an even size."""
    return flat.view(np.uint16)[at // 2 :: size // 2]


def _finite_bits(stored: NDArray[Any], signed: str, unsigned: str, infinity: int) -> bool:
    """Two maxima: the fastest test there is in numpy; `isfinite` takes three times as long, thirty times for F16."""
    negative = 1 << (8 * np.dtype(unsigned).itemsize - 1)
    return not stored.size or bool(
        stored.view(signed).max() < infinity and stored.view(unsigned).max() < negative + infinity
    )
