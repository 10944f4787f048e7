"""How a decoder's matrices are used on a text: computed layer by layer in numpy, one layer in memory at a time.

For methods that round a matrix by what it is multiplied with, on runtimes that tell nothing of it. What a layer gets
comes from the layers before as they have become, rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from edgecore.checkpoint.decoder import Decoder
from edgecore.checkpoint.oracle import Floats, KVCache, Oracle
from edgecore.checkpoint.tensors import Readable
from edgecore.contract.progress import Progress, no_progress

Pieces = Sequence[Sequence[int]]
TOGETHER = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""Matrices of a layer, those together that are multiplied with the same."""
_STAGE = "measuring activations"
Round = Callable[[tuple[str, ...], Floats], Mapping[str, Floats]]
"""Matrices of one input by canonical name, and the mean of its x x^T -> those that it changed, float32."""


def walk(
    decoder: Decoder,
    tensors: Mapping[str, Readable],
    pieces: Pieces,
    rounded: Round,
    progress: Progress = no_progress,
) -> None:
    """Calls `rounded` for all matrices that multiply something, in the order of the computation, the output head last.

    tensors: by canonical name.
    pieces:  of a text, each computed for itself.
    """
    measuring, every = _Measuring(decoder, tensors), sum(map(len, pieces))
    states = [measuring.embedded(piece) for piece in pieces]
    total = 2 * decoder.layers * len(pieces)

    def through(layer: int, block: Mapping[str, Floats], turn: int) -> Iterator[Floats]:
        """What each piece is behind the layer."""
        for number, state in enumerate(states):
            progress((2 * layer + turn) * len(pieces) + number, total, _STAGE)
            after = state.copy()
            cache = KVCache(decoder, len(state))
            measuring.through(layer, block, after, cache, cache.extend(len(state)))
            yield after

    for layer in range(decoder.layers):
        block = measuring.block(layer)
        measuring.used = {}
        for _ in through(layer, block, 0):
            pass
        used, measuring.used = measuring.used, None
        for names in _together(layer):
            block |= rounded(names, used.pop(names[0]) / np.float32(every))
        states = list(through(layer, block, 1))
    measuring.used = {}
    for state in states:
        measuring.head(state)
    ((name, used_by_head),) = measuring.used.items()
    rounded((name,), used_by_head / np.float32(every))
    progress(total, total, _STAGE)


def _together(layer: int) -> list[tuple[str, ...]]:
    return [tuple(f"model.layers.{layer}.{name}.weight" for name in names) for names in TOGETHER]


class _Measuring(Oracle):
    """Adds up x x^T of what the first matrix of each input is multiplied with."""

    used: dict[str, Floats] | None = None
    _first = tuple(names[0] for names in TOGETHER)

    def linear(self, block: Mapping[str, Floats], name: str, x: Floats) -> Floats:
        if self.used is not None and name.endswith(self._first):
            self._add(name + ".weight", x)
        return super().linear(block, name, x)

    def head(self, hidden: Floats) -> None:
        name = "model.embed_tokens.weight" if self.decoder.tied else "lm_head.weight"
        self._add(name, self._norm(hidden, "model.norm"))

    def _add(self, name: str, x: Floats) -> None:
        assert self.used is not None
        products = x.T @ x
        if name in self.used:
            self.used[name] += products
        else:
            self.used[name] = products
