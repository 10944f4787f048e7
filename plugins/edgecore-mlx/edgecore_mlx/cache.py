"""The KV cache of one sequence: a buffer a layer for keys, one for values, longer than the sequence.

They grow in steps, as mlx_lm's do; forgetting the last positions is not mentioning them, so what follows a rewind is
what it would have been.
"""

from __future__ import annotations

import mlx.core as mx

STEP = 256
"""Positions that buffers grow by."""


class Cache:
    """`filled` positions are in it. `long`: whether its keys are turned by longrope's second set of frequencies."""

    def __init__(self, layers: int) -> None:
        self.filled = 0
        self.long = False
        self._keys: list[mx.array | None] = [None] * layers
        self._values: list[mx.array | None] = [None] * layers

    def put(self, layer: int, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Stores (1, kv_heads, n, head_dim) behind the `filled` ones; answers all, (1, kv_heads, filled + n, ...).

        `filled` stays as it was until every layer has put its own: see `took`.
        """
        end = self.filled + keys.shape[2]
        held = (self._put(self._keys, layer, keys, end), self._put(self._values, layer, values, end))
        return held[0][:, :, :end], held[1][:, :, :end]

    def took(self, count: int) -> None:
        """So many positions were put in every layer."""
        self.filled += count

    def _put(self, buffers: list[mx.array | None], layer: int, new: mx.array, end: int) -> mx.array:
        held = buffers[layer]
        if held is None or held.shape[2] < end:
            held = _grown(held, new, self.filled, end)
        held[:, :, self.filled : end] = new
        buffers[layer] = held
        return held

    def whole(self, count: int) -> int:
        """All of the first `count` positions can stay."""
        return count

    def cut(self, count: int) -> None:
        """Forgets all but the first `count` positions."""
        self.filled = min(self.filled, count)

    @property
    def arrays(self) -> list[mx.array]:
        """What is to be evaluated for the cache to be in memory."""
        return [array for array in (*self._keys, *self._values) if array is not None]

    @property
    def nbytes(self) -> int:
        return sum(int(array.nbytes) for array in self.arrays)


def _grown(held: mx.array | None, new: mx.array, filled: int, end: int) -> mx.array:
    batch, heads, _, size = new.shape
    room = mx.zeros((batch, heads, -(-end // STEP) * STEP - filled, size), new.dtype)
    return room if held is None or not filled else mx.concatenate([held[:, :, :filled], room], axis=2)
