"""The KV cache of one sequence, in the two forms that ONNX graphs take it.

Shared: keys and values of a layer lie in one buffer of ours, bound as past and as present, longer than the sequence;
GroupQueryAttention writes the new ones behind the past ones, and nothing is copied. The mask's length says how many
there are, so forgetting some is not mentioning them.
Handed: graphs that concatenate. What a call answers as present is the next call's past.

A call that fails half way harms neither: the past is not written to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

FIRST = 256
"""Positions allocated at first; they double as the sequence grows, up to the context."""


class Cache(Protocol):
    """What a network asks of either."""

    def give(self, end: int, filled: int) -> None:
        """Bind what it takes to append to the first `filled` positions, so that there are `end`."""

    def took(self) -> None:
        """The call has ended well."""

    def cut(self, count: int) -> None:
        """Forget all but the first `count` positions."""


class Inputs:
    """A session's small inputs, each in one buffer for good: bound again only when its shape is another."""

    def __init__(self, binding: Any, types: dict[str, type[np.generic]]) -> None:
        self._binding = binding
        self._types = types
        self._buffers: dict[str, NDArray[Any]] = {}
        self._given: dict[str, tuple[int, tuple[int, ...]]] = {}

    def give(self, name: str, values: NDArray[Any]) -> None:
        """Nothing happens where the graph has no such input."""
        if (dtype := self._types.get(name)) is None:
            return
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < values.size:
            buffer = self._buffers[name] = np.empty(max(1, 2 * values.size), dtype)
        buffer[: values.size] = values.reshape(-1)
        self.bind(name, buffer, values.shape)

    def bind(self, name: str, buffer: NDArray[Any], shape: tuple[int, ...]) -> None:
        """The beginning of `buffer`, which the caller keeps."""
        given = (buffer.ctypes.data, shape)
        if self._given.get(name) != given:
            self._binding.bind_input(name, "cpu", 0, buffer.dtype.type, shape, given[0])
            self._given[name] = given


class Shared:
    """A buffer (1, heads, positions, head_size) a layer for keys, one for values, in ONNX Runtime's own alignment."""

    def __init__(
        self, binding: Any, past: Sequence[str], present: Sequence[str], dtype: type[np.generic], heads: int,
        size: int, length: int,
    ) -> None:  # fmt: skip
        self._binding = binding
        self._names = list(zip(past, present, strict=True))
        self._dtype, self._heads, self._size, self._length = dtype, heads, size, length
        self._values: list[ort.OrtValue] = []
        self._positions = 0
        self._bound = False

    def give(self, end: int, filled: int) -> None:
        if end > self._positions:
            self._reserve(max(end, min(self._length, max(FIRST, 2 * self._positions))), filled)
        if not self._bound:
            for (past, present), value in zip(self._names, self._values, strict=True):
                self._binding.bind_ortvalue_input(past, value)
                self._binding.bind_ortvalue_output(present, value)
            self._bound = True

    def took(self) -> None:
        """They are where they are to be."""

    def cut(self, count: int) -> None:
        """Nothing to do: the mask says what is there."""

    def _reserve(self, positions: int, filled: int) -> None:
        shape = [1, self._heads, positions, self._size]
        larger = [ort.OrtValue.ortvalue_from_shape_and_type(shape, self._dtype) for _ in self._names]
        for old, new in zip(self._values, larger, strict=False):
            new.numpy()[:, :, :filled] = old.numpy()[:, :, :filled]
        self._bound = False
        self._values, self._positions = larger, positions


class Handed:
    """What the last call answered, a value a layer for keys, one for values."""

    def __init__(
        self, binding: Any, past: Sequence[str], present: Sequence[str], dtype: type[np.generic], heads: int,
        size: int,
    ) -> None:  # fmt: skip
        self._binding = binding
        self._past, self._present = list(past), list(present)
        self._empty = ort.OrtValue.ortvalue_from_numpy(np.empty((1, heads, 0, size), dtype))
        self._values = [self._empty] * len(self._past)

    def give(self, end: int, filled: int) -> None:
        for past, present, value in zip(self._past, self._present, self._values, strict=True):
            self._binding.bind_ortvalue_input(past, value)
            self._binding.bind_output(present)

    def took(self) -> None:
        """Outputs stand in the order in which they were first bound: the network binds the logits first."""
        self._values = self._binding.get_outputs()[1:]

    def cut(self, count: int) -> None:
        if count == 0:
            self._values = [self._empty] * len(self._past)
            return
        kept = [np.ascontiguousarray(value.numpy()[:, :, :count]) for value in self._values]
        self._values = [ort.OrtValue.ortvalue_from_numpy(value) for value in kept]
