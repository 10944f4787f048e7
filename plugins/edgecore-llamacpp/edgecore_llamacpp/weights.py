"""What a finished GGUF file weighs, read from its header: the claim of a file name is not a measurement."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint import open_checkpoint
from edgecore.checkpoint.gguf_file import GgufTensor, read_gguf
from edgecore.contract import Fallback, Weights


def is_matrix(tensor: GgufTensor) -> bool:
    return len(tensor.shape) > 1 and tensor.name.endswith(".weight")


def in_block(tensor: GgufTensor) -> bool:
    """A matrix of a layer. Embeddings and output head are apart: llama.cpp's mixes give them more bits on purpose."""
    return is_matrix(tensor) and tensor.name.startswith("blk.")


def measure(file: Path, fallbacks: Iterable[Fallback] = ()) -> Weights:
    tensors = read_header(file)
    return Weights(
        bits_per_weight=_bits(tensors.values()),
        eligible_bits_per_weight=_bits(t for t in tensors.values() if in_block(t)),
        parameters=sum(math.prod(t.shape) for t in tensors.values()),
        fallbacks=tuple(fallbacks),
    )


def read_header(file: Path) -> dict[str, GgufTensor]:
    header, _ = read_gguf(file)
    return header.tensors


def _bits(tensors: Iterable[GgufTensor]) -> float:
    sizes = [(t.data.nbytes, math.prod(t.shape)) for t in tensors]
    elements = sum(n for _, n in sizes)
    return 8 * sum(b for b, _ in sizes) / elements if elements else 0.0


class Dequantized(Mapping[str, NDArray[np.float32]]):
    """The weights of a GGUF file by canonical name, each read when it is asked for."""

    def __init__(self, file: Path) -> None:
        self._model = open_checkpoint(file)

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self._model.tensors[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._model.tensors)

    def __len__(self) -> int:
        return len(self._model.tensors)
