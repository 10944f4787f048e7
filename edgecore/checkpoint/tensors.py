"""One weight of a model, left in its file until someone reads it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint.storage import Bytes, Floats, Storage, dequantize, is_finite
from edgecore.contract.errors import CorruptModel

_AT_ONCE = 1 << 18
"""Elements dequantized in one piece: the way back to float32 needs several times its own size for a moment."""


class Derivation(Protocol):
    """How weights come from what is stored, where dequantizing is not all of it (derived.py has them)."""

    def __call__(self, tensor: Tensor, start: int, stop: int) -> Floats:
        """float32 (stop - start, ...) of canonical rows; of a tensor with one axis, its elements."""


class Readable(Protocol):
    """What the oracle reads of a weight."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    def read(self) -> Floats:
        """The whole, float32."""

    def rows(self, start: int, stop: int) -> Floats:
        """Some rows."""


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A named array, its stored bytes mapped from a file. Rows run along the first axis and are in canonical order.

    Whatever gives weights out (`read`, `rows`, `raw`) raises `CorruptModel` when one of them is NaN or infinite.
    """

    name: str
    """Canonical: Hugging Face's Llama name."""
    shape: tuple[int, ...]
    """As in numpy: the last axis is contiguous. At least one axis."""
    type: Storage
    data: Bytes
    """The stored bytes, flat and read-only."""
    order: NDArray[np.intp] | None = None
    """Where each canonical row lies in the file; None when the orders agree."""
    derive: Derivation | None = None
    """None where the stored bytes are the weights."""
    file: Path | None = None
    """Where it lies; errors name it."""

    @property
    def storage(self) -> str:
        """The name of the storage type: `F16`, `BF16`, `Q4_1`."""
        return self.type.name

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return self.data.nbytes

    def raw(self) -> Bytes:
        """Stored bytes as uint8 (rows, bytes a row), in canonical order: a view, or a copy where orders differ.

        A tensor of one axis counts as one row. Raises `ValueError` where the weights are derived from the bytes.
        """
        if self.derive is not None:
            raise ValueError(f"{self.name}: its stored bytes are not the weights")
        self.check_finite(self.data)
        return self._raw()

    def _raw(self) -> Bytes:
        if len(self.shape) == 1 and self.order is not None:
            return self._elements()[self.order].reshape(1, -1).view(np.uint8)
        stored = self.data.reshape(1 if len(self.shape) == 1 else self.shape[0], -1)
        return stored if self.order is None else stored[self.order]

    def rows(self, start: int, stop: int) -> Floats:
        """float32 (stop - start, ...) of canonical rows `start` to `stop`. May be a read-only view of the file."""
        if self.derive is None:
            return self.stored(start, stop)
        derived = self.derive(self, start, stop)
        if not np.isfinite(derived).all():
            raise self._not_finite()
        return derived

    def stored(self, start: int, stop: int) -> Floats:
        """As `rows`, before anything is derived."""
        if len(self.shape) == 1:
            self.check_finite(self.data)
            return _aligned(dequantize(self.type, self._raw())).reshape(self.shape)[start:stop]
        stored = self.data.reshape(self.shape[0], -1)
        some = stored[start:stop] if self.order is None else stored[self.order[start:stop]]
        self.check_finite(some)
        last = self.type.row_bytes(self.shape[-1])
        return _aligned(dequantize(self.type, some.reshape(-1, last))).reshape(len(some), *self.shape[1:])

    def read(self) -> Floats:
        """The whole tensor as float32, of `shape`. May be a read-only view of the file."""
        if len(self.shape) == 1 or (self.storage == "F32" and self.order is None and self.derive is None):
            return self.rows(0, self.shape[0])
        whole = np.empty(self.shape, np.float32)
        for start, stop in self._pieces():
            whole[start:stop] = self.rows(start, stop)
        return whole

    def _pieces(self) -> Iterator[tuple[int, int]]:
        step = max(1, _AT_ONCE * self.shape[0] // max(1, self.elements))
        for start in range(0, self.shape[0], step):
            yield start, min(start + step, self.shape[0])

    def check_finite(self, stored: Bytes) -> None:
        """Raises `CorruptModel` when `stored`, whole blocks of `data`, hold NaN or infinity, without dequantizing them.

        For those that copy pieces of `data`; `raw`, `rows` and `read` have done it.
        """
        if not is_finite(self.type, stored):
            raise self._not_finite()

    def _not_finite(self) -> CorruptModel:
        where = "" if self.file is None else f"{self.file}: "
        return CorruptModel(f"{where}tensor {self.name!r}: holds weights that are NaN or infinite")

    def _elements(self) -> NDArray[np.generic]:
        return self.data.view(f"V{self.type.size}")


def _aligned(array: Floats) -> Floats:
    """The array where the processor can use it: files may put numbers at odd addresses."""
    return array if array.flags.aligned else array.copy()
