"""What a finished folder weighs and what its weights are: read from its files, whoever packed them and however.

Names are canonical where the architecture is one of the neutral model: fused matrices are parted, Gemma's norms have
their one again, BitNet's ternary weights are numbers. Packed matrices are unpacked by MLX itself, on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint.families import family_of
from edgecore.contract import Artifact, CannotDo, Fallback, Weights
from edgecore_mlx import folder, loading, packing
from edgecore_mlx.folder import Stored
from edgecore_mlx.recipe import AFFINE, Packing

Floats = NDArray[np.float32]
Rows = Callable[[int, int], Floats]
"""float32, from a row to another; of a tensor with one axis, its elements."""


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight of a folder, under the name that it has there."""

    name: str
    shape: tuple[int, ...]
    """Of the numbers, packed or not."""
    nbytes: int
    """With scales and biases."""
    rows: Rows

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def find(where: Path) -> dict[str, Weight]:
    """The weights of a folder by the names that they have there, as they stand there. Raises as `folder.tensors` and
    `packing.quantization` do."""
    stored, said = folder.tensors(where), packing.quantization(folder.text_config(where))
    found: dict[str, Weight] = {}
    for name, array in stored.items():
        path, _, kind = name.rpartition(".")
        if kind in packing.OF_PACKED and f"{path}.weight" in stored:
            continue
        parts = [array]
        if kind == "weight":
            parts += [stored[f"{path}.{part}"] for part in packing.OF_PACKED if f"{path}.{part}" in stored]
        rows: Rows = array.tensor.rows
        shape, packed = array.shape, said.of(path, stored) if kind == "weight" else None
        if packed is not None:
            shape, rows = (*shape[:-1], shape[-1] * 32 // packed.bits), _unpacking(parts, packed)
        elif len(parts) > 1 and array.dtype == "U8":
            shape = (4 * shape[0], *shape[1:])
        found[name] = Weight(name, shape, sum(part.nbytes for part in parts), rows)
    return found


def measure(where: Path, fallbacks: Iterable[Fallback] = ()) -> Weights:
    """Bits per weight of the finished folder: over all weights, and over the layers' matrices."""
    weights = find(where).values()
    return Weights(
        bits_per_weight=_bits(weights),
        eligible_bits_per_weight=_bits(weight for weight in weights if in_layer(weight)),
        parameters=sum(weight.elements for weight in weights),
        fallbacks=tuple(fallbacks),
    )


def in_layer(weight: Weight) -> bool:
    """A matrix of a layer: what a precision means to change. Embeddings and output head are apart."""
    return len(weight.shape) > 1 and any(part.isdigit() for part in weight.name.split("."))


@dataclass(frozen=True, slots=True)
class Canonical:
    """Where a weight of the description lies: a part of a fused matrix in rows of its own."""

    name: str
    shape: tuple[int, ...]
    path: str
    """Of the module that holds it."""
    start: int
    """The first of its rows there."""
    holder: Rows

    def rows(self, start: int, stop: int) -> Floats:
        """float32, from a row to another; of a tensor with one axis, its elements."""
        return self.holder(self.start + start, self.start + stop)

    def read(self) -> Floats:
        """float32, the whole of it."""
        return self.rows(0, self.shape[0])


def canonical(where: Path) -> dict[str, Canonical]:
    """Every weight of a folder by canonical name, none of them read.

    Raises `CannotDo` for architectures outside the neutral model, and as `loading.find`.
    """
    found = loading.find(where)
    if found is None:
        raise CannotDo(f"{where}: its architecture has no canonical names", supported="families of the neutral model")
    rows: dict[str, Rows] = {name: tensor.rows for name, tensor in found.plain.items()}
    rows |= {f"{path}.weight": _unpacking(list(arrays.values()), how) for path, (how, arrays) in found.packed.items()}
    shapes = found.decoder.shapes()
    return {
        name: Canonical(name, shape, holder.removesuffix(".weight"), start, rows[holder])
        for name, shape in shapes.items()
        for holder, start in [_held(name, shapes, {} if name in rows else family_of(found.decoder).fused)]
    }


def dequantized(artifact: Artifact) -> Mapping[str, Floats]:
    """Every weight by canonical name, computed when it is asked for. Raises as `canonical`."""
    return Dequantized(canonical(artifact.path))


class Dequantized(Mapping[str, Floats]):
    """Weights by canonical name, each read when it is asked for."""

    def __init__(self, weights: Mapping[str, Canonical]) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> Floats:
        return self._weights[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def unpack(weight: NDArray[Any], scales: NDArray[Any], biases: NDArray[Any] | None, how: Packing) -> Floats:
    """The numbers of a packed matrix in float32, whatever type its scales have."""
    with mx.stream(mx.cpu):
        if how.mode == AFFINE:
            scales, biases = scales.astype(np.float32), None if biases is None else biases.astype(np.float32)
        made = mx.dequantize(
            mx.array(weight), mx.array(scales), None if biases is None else mx.array(biases),
            group_size=how.group_size, bits=how.bits, mode=how.mode, dtype=mx.float32,
        )  # fmt: skip
        return np.array(made)


def _unpacking(parts: Sequence[Stored], how: Packing) -> Rows:
    def rows(start: int, stop: int) -> Floats:
        weight, scales, *biases = (part.read()[start:stop] for part in parts)
        return unpack(weight, scales, biases[0] if biases else None, how)

    return rows


def _held(name: str, shapes: Mapping[str, tuple[int, ...]], fused: Mapping[str, tuple[str, ...]]) -> tuple[str, int]:
    """The name of what holds a weight, and the first of its rows there."""
    for whole, parts in fused.items():
        for number, part in enumerate(parts):
            if f".{part}." in name:
                before = sum(shapes[name.replace(part, other)][0] for other in parts[:number])
                return name.replace(part, whole), before
    return name, 0


def _bits(weights: Iterable[Weight]) -> float:
    sizes = [(weight.nbytes, weight.elements) for weight in weights]
    elements = sum(count for _, count in sizes)
    return 8 * sum(size for size, _ in sizes) / elements if elements else 0.0
