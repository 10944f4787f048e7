"""A folder's weights into MLX's memory, tensor by tensor: checked against the description first, then read.

Packed matrices stay packed. BitNet's ternary weights, four to a byte, become MLX's affine packing of 2 bits, which
holds them exactly. Matrices that get the same input become one, which is one operation instead of three.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint import Decoder, Tensor, folder_decoder
from edgecore.checkpoint.beside import text_config
from edgecore.checkpoint.derived import TERNARY, Unpacked
from edgecore.checkpoint.families import Family, family_of
from edgecore.checkpoint.fields import Fields
from edgecore.contract import CorruptModel, UnsupportedModel
from edgecore_mlx import folder as folders
from edgecore_mlx.decoder import GATE_UP, GATE_UP_NAME, QKV, QKV_NAME
from edgecore_mlx.folder import Stored
from edgecore_mlx.matrices import Dense, Matrix, Packed, joined, split
from edgecore_mlx.packing import quantization
from edgecore_mlx.recipe import AFFINE, GROUPS, Packing

FLOATS = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}
AT_ONCE = 256
"""Rows that are turned at once."""
_NO_NUMBER = {"mxfp4": (0xFF,), "mxfp8": (0xFF,), "nvfp4": (0x7F, 0xFF)}
"""Scales of one byte that are NaN, by mode: E8M0 has one, E4M3 two."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """What decoder.py computes with."""

    decoder: Decoder
    matrices: Mapping[str, Matrix]
    """By the names of the folder, without `.weight`."""
    vectors: Mapping[str, mx.array]


@dataclass(frozen=True, eq=False)
class Found:
    """A folder of a known family, its tensors checked and none of them read."""

    decoder: Decoder
    plain: Mapping[str, Tensor]
    """As the family means them (norms with their offset, ternary weights with their scale), by whole names."""
    packed: Mapping[str, tuple[Packing, dict[str, Stored]]]
    """By module path: `weight`, `scales`, and of mode affine `biases`."""

    @property
    def dtype(self) -> mx.Dtype:
        """What its numbers are: those of the embedding table, or of its scales, else of the norms."""
        packing, table = self.packed.get("model.embed_tokens", (None, {}))
        names = [table["scales"].dtype] if packing else [self.plain["model.embed_tokens.weight"].storage]
        names.append(self.plain["model.norm.weight"].storage)
        return next(FLOATS[name] for name in names if name in FLOATS)

    def nbytes(self, dtype: mx.Dtype, unpacked: bool = False) -> int:
        """In memory, with numbers as `dtype`, and with packed ones as such too."""
        size = int(dtype.size)
        if unpacked:
            wide = [arrays["weight"].nbytes * 8 // packing.bits for packing, arrays in self.packed.values()]
            return (sum(wide) + sum(tensor.elements for tensor in self.plain.values())) * size
        ternary = {n for n, t in self.plain.items() if t.type is TERNARY and _group(t.shape[1])}
        plain = sum(t.elements // 4 if n in ternary else t.elements * size for n, t in self.plain.items())
        beside = [
            array.nbytes if name == "weight" or array.dtype == "U8" else math.prod(array.shape) * size
            for _, arrays in self.packed.values()
            for name, array in arrays.items()
        ]
        return plain + sum(beside)


def find(folder: Path) -> Found | None:
    """None where no family of the neutral model has the folder's architecture.

    Raises `ModelNotFound`, `CorruptModel`, `UnsupportedModel`, before anything is read but headers.
    """
    folders.check_folder(folder)
    decoder = folder_decoder(folder)
    if decoder is None:
        return None
    family, config, stored = family_of(decoder), text_config(folder), folders.tensors(folder)
    how, shapes = quantization(config), _shapes(decoder, family)
    packed: dict[str, tuple[Packing, dict[str, Stored]]] = {}
    for name, shape in shapes.items():
        path = name.removesuffix(".weight")
        if len(shape) == 2 and (packing := how.of(path, stored, shape[1])) is not None:
            packed[path] = packing, _packed(folder, path, packing, shape, stored)
    inside = {f"{path}.{kind}" for path, (_, arrays) in packed.items() for kind in arrays}
    plain = {name: s.tensor for name, s in stored.items() if name not in inside}
    if family.adopt is not None:
        plain = family.adopt(_of_family(config, family), plain)
    return Found(decoder, _checked(folder, decoder, family, shapes, plain, packed), packed)


@dataclass(frozen=True, slots=True)
class Kept:
    """How matrices are kept in memory."""

    dtype: mx.Dtype
    """Of all numbers."""
    turned: bool = False
    """See `Dense`."""
    unpacked: bool = False
    """Packed matrices as numbers."""
    dense_streams: tuple[mx.ThreadLocalStream, ...] = ()
    """Beside the caller's own, those that compute products with `Dense`, and with `Packed`: see `Split`."""
    packed_streams: tuple[mx.ThreadLocalStream, ...] = ()


def load(found: Found, kept: Kept) -> Loaded:
    """Reads everything. Raises `CorruptModel` for NaN and infinity."""
    matrices: dict[str, Matrix] = {}
    vectors: dict[str, mx.array] = {}
    for name, tensor in found.plain.items():
        if len(tensor.shape) > 1:
            ternary = _ternary(tensor, kept.dtype)
            matrix = _dense(tensor, kept) if ternary is None else _unpacked(ternary, kept)
            matrices[name.removesuffix(".weight")] = _evaluated(matrix)
        else:
            vectors[name] = mx.array(tensor.read()).astype(kept.dtype)
    for path, (packing, arrays) in found.packed.items():
        matrices[path] = _evaluated(_unpacked(_in_memory(packing, arrays, kept.dtype), kept))
    for layer in range(found.decoder.layers):
        at = f"model.layers.{layer}."
        _join(at + "self_attn.", QKV, QKV_NAME, matrices, vectors)
        _join(at + "mlp.", GATE_UP, GATE_UP_NAME, matrices, vectors)
    for path, matrix in matrices.items():
        streams = kept.dense_streams if isinstance(matrix, Dense) else kept.packed_streams
        matrices[path] = _evaluated(split(matrix, streams))
    mx.eval(list(vectors.values()))
    mx.clear_cache()
    return Loaded(found.decoder, matrices, vectors)


def _shapes(decoder: Decoder, family: Family) -> dict[str, tuple[int, ...]]:
    """What a folder of the family holds: `Decoder.shapes`, fused where the family's folders are."""
    shapes: dict[str, tuple[int, ...]] = {}
    wholes = {part: whole for whole, parts in family.fused.items() for part in parts}
    for name, shape in decoder.shapes().items():
        at, _, part = name.rpartition(".")[0].rpartition(".")
        module = ".".join((at.rpartition(".")[2], part))
        if module in wholes:
            name = name.replace(module, wholes[module])
            shape = (shapes.get(name, (0,))[0] + shape[0], *shape[1:])
        shapes[name] = shape
    return shapes


def _of_family(config: Fields, family: Family) -> Fields:
    """Without a `quantization_config` that is MLX's: a family reads its own under the same key."""
    how = config.section("quantization_config")
    if how is None or how.text("quant_method", "") in family.quantizations:
        return config
    return replace(config, values={k: v for k, v in config.values.items() if k != "quantization_config"})


def _packed(
    folder: Path, path: str, packing: Packing, shape: tuple[int, ...], stored: Mapping[str, Stored]
) -> dict[str, Stored]:
    """A packed matrix's arrays. Raises `CorruptModel` where they are not those of `shape`."""
    rows, columns = shape
    groups = (rows, columns // packing.group_size)
    wanted = {"weight": (rows, columns * packing.bits // 32), "scales": groups}
    if packing.mode == AFFINE:
        wanted["biases"] = groups
    found = {}
    for kind, size in wanted.items():
        array = stored.get(f"{path}.{kind}")
        if array is None:
            raise CorruptModel(f"{folder}: tensor {f'{path}.{kind}'!r}: is missing")
        if array.shape != size:
            raise CorruptModel(
                f"{folder}: tensor {f'{path}.{kind}'!r}: has shape {array.shape}, the header asks for {size}"
            )
        if kind != "weight" and array.dtype not in (FLOATS if packing.mode == AFFINE else ("U8",)):
            raise UnsupportedModel(
                f"{folder}: tensor {f'{path}.{kind}'!r}: storage type {array.dtype}", supported=", ".join(FLOATS)
            )
        found[kind] = array
    return found


def _checked(
    folder: Path, decoder: Decoder, family: Family, shapes: Mapping[str, tuple[int, ...]],
    plain: Mapping[str, Tensor], packed: Mapping[str, object],
) -> dict[str, Tensor]:  # fmt: skip
    """The tensors that the description asks for, all of them and no other, as the core's reader has it."""
    left = {name: shape for name, shape in shapes.items() if name.removesuffix(".weight") not in packed}
    unused = (*family.ignored, *(("lm_head.weight", "lm_head.scales", "lm_head.biases") if decoder.tied else ()))
    if surplus := next((name for name in plain if name not in left and not name.endswith(unused)), None):
        raise UnsupportedModel(f"{folder}: tensor {surplus!r} has no place in family {decoder.family!r}")
    for name, shape in left.items():
        tensor = plain.get(name)
        if tensor is None:
            raise CorruptModel(f"{folder}: tensor {name!r}: is missing")
        if tensor.shape != shape:
            raise CorruptModel(f"{folder}: tensor {name!r}: has shape {tensor.shape}, the header asks for {shape}")
        if not (tensor.type.readable or tensor.derive):
            raise UnsupportedModel(
                f"{folder}: tensor {name!r}: storage type {tensor.storage}", supported=", ".join(FLOATS)
            )
    return {name: plain[name] for name in left}


def _dense(tensor: Tensor, kept: Kept) -> Dense:
    if kept.turned:
        return _turned(tensor.shape, tensor.rows, kept)
    if tensor.derive is None and tensor.order is None and tensor.storage in FLOATS:
        return Dense(_array(Stored(tensor)).astype(kept.dtype))
    return Dense(mx.array(tensor.read()).astype(kept.dtype))


def _unpacked(packed: Packed, kept: Kept) -> Matrix:
    if not kept.unpacked:
        return packed
    numbers = packed.numbers().astype(kept.dtype)
    if not kept.turned:
        return Dense(numbers)
    values = np.array(numbers.astype(mx.float32))
    return _turned(values.shape, lambda start, stop: values[start:stop], kept)


def _turned(shape: tuple[int, ...], rows: Callable[[int, int], NDArray[np.float32]], kept: Kept) -> Dense:
    """Piece by piece: MLX and numpy take five times as long for the whole."""
    turned = np.empty((shape[1], shape[0]), np.float32)
    for start in range(0, shape[0], AT_ONCE):
        stop = min(start + AT_ONCE, shape[0])
        turned[:, start:stop] = rows(start, stop).T
    return Dense(mx.array(turned).astype(kept.dtype), turned=True)


def _in_memory(packing: Packing, arrays: Mapping[str, Stored], dtype: mx.Dtype) -> Packed:
    found = {kind: _array(array) for kind, array in arrays.items()}
    if packing.mode == AFFINE:
        found |= {kind: found[kind].astype(dtype) for kind in ("scales", "biases")}
    elif np.isin(arrays["scales"].read(), _NO_NUMBER[packing.mode]).any():
        raise CorruptModel(
            f"{arrays['scales'].tensor.file}: tensor {arrays['scales'].name!r}: holds scales that are NaN"
        )
    return Packed(found["weight"], found["scales"], found.get("biases"), packing.group_size, packing.bits, packing.mode)


def _ternary(tensor: Tensor, dtype: mx.Dtype) -> Packed | None:
    """-1, 0 and 1 as levels 0, 1 and 2 of 2 bits, times the scale, less the scale. None for other tensors."""
    if tensor.type is not TERNARY or not isinstance(tensor.derive, Unpacked) or not (group := _group(tensor.shape[1])):
        return None
    rows, columns = tensor.shape
    weight = mx.concatenate([_words(quarter) for quarter in _quarters(tensor)], axis=0)
    scales = mx.full((rows, columns // group), tensor.derive.scale, dtype)
    return Packed(weight, scales, -scales, group, 2)


def _quarters(tensor: Tensor) -> Iterator[NDArray[np.uint8]]:
    """Levels of a quarter of the rows, uint8 (rows / 4, columns)."""
    packed = tensor.data.reshape(tensor.shape[0] // 4, tensor.shape[1])
    for quarter in range(4):
        yield packed >> np.uint8(2 * quarter) & np.uint8(3)


def _words(levels: NDArray[np.uint8]) -> mx.array:
    """(rows, columns) of 2 bits as uint32, sixteen a word, lowest bits first."""
    four = levels.reshape(len(levels), -1, 4) << np.array([0, 2, 4, 6], np.uint8)
    return mx.array(np.bitwise_or.reduce(four, axis=-1).view("<u4"))


def _group(columns: int) -> int:
    return next((size for size in reversed(GROUPS[AFFINE]) if columns % size == 0), 0)


def _join(
    at: str, parts: tuple[str, ...], whole: str, matrices: dict[str, Matrix], vectors: dict[str, mx.array]
) -> None:
    biases = [vectors[f"{at}{part}.bias"] for part in parts if f"{at}{part}.bias" in vectors]
    if at + whole in matrices or len(biases) not in (0, len(parts)):
        return
    if (matrix := joined([matrices[at + part] for part in parts])) is None:
        return
    matrices[at + whole] = _evaluated(matrix)
    if biases:
        vectors[f"{at}{whole}.bias"] = mx.concatenate(biases)
    for part in parts:
        del matrices[at + part]


def _array(stored: Stored) -> mx.array:
    values = stored.read()
    if stored.dtype == "BF16":  # which numpy does not know
        return mx.array(values.view(np.uint16)).view(mx.bfloat16)
    return mx.array(values)


def _evaluated(matrix: Matrix) -> Matrix:
    mx.eval(*matrix.arrays)
    return matrix
