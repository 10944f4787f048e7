"""The KV cache of one sequence: a buffer a layer for keys, one for values, longer than the sequence.

They grow in steps, as mlx_lm's do; forgetting the last positions is not mentioning them, so what follows a rewind is
what it would have been. Packed, each position is packed on its own when it comes, and that stays true.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

STEP = 256
"""Positions that buffers grow by."""
Rows = tuple[mx.array, ...]
"""(1, kv_heads, positions, head_dim), or what `mx.quantize` makes of such an array: levels, scales, biases."""


class Cache:
    """`filled` positions are in it. `long`: whether its keys are turned by longrope's second set of frequencies.

    how: `bits` and `group_size` by which keys and values are packed; empty: they are kept as they come.
    """

    def __init__(self, layers: int, how: Mapping[str, Any] | None = None) -> None:
        self.filled = 0
        self.long = False
        self.how = how or {}
        self._keys: list[Rows] = [()] * layers
        self._values: list[Rows] = [()] * layers

    def put(self, layer: int, keys: mx.array, values: mx.array, window: int = 0) -> tuple[Rows, Rows]:
        """Stores (1, kv_heads, n, head_dim) behind the `filled` ones; answers all that the n may look at.

        window: positions that each sees, its own included; 0: all. `filled` stays as it was until every layer has put
        its own: see `took`.
        """
        count = keys.shape[2]
        end = self.filled + count
        start = max(0, end - window - count + 1) if window else 0
        return self._put(self._keys, layer, keys, start, end), self._put(self._values, layer, values, start, end)

    def took(self, count: int) -> None:
        """So many positions were put in every layer."""
        self.filled += count

    def _put(self, buffers: list[Rows], layer: int, new: mx.array, start: int, end: int) -> Rows:
        parts = mx.quantize(new, **self.how) if self.how else (new,)
        held = buffers[layer]
        if not held or held[0].shape[2] < end:
            held = tuple(_grown(held[i] if held else None, part, self.filled, end) for i, part in enumerate(parts))
        for buffer, part in zip(held, parts, strict=True):
            buffer[:, :, self.filled : end] = part
        buffers[layer] = held
        return tuple(buffer[:, :, start:end] for buffer in held)

    def whole(self, count: int) -> int:
        """All of the first `count` positions can stay."""
        return count

    def cut(self, count: int) -> None:
        """Forgets all but the first `count` positions."""
        self.filled = min(self.filled, count)

    @property
    def arrays(self) -> list[mx.array]:
        """What is to be evaluated for the cache to be in memory."""
        return [array for rows in (*self._keys, *self._values) for array in rows]


def _grown(held: mx.array | None, new: mx.array, filled: int, end: int) -> mx.array:
    batch, heads, _, size = new.shape
    room = mx.zeros((batch, heads, -(-end // STEP) * STEP - filled, size), new.dtype)
    return room if held is None or not filled else mx.concatenate([held[:, :, :filled], room], axis=2)


def packed_bytes(elements: int, how: Mapping[str, Any]) -> int:
    """Of so many keys and values, with a float32 scale and bias a group."""
    return int(elements * how["bits"] // 8 + elements // how["group_size"] * 8)
