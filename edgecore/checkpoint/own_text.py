"""A calibration text that the model writes itself, for who has none: in numpy, several texts at once, so that weights
are read once for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint.calibration import written
from edgecore.checkpoint.decoder import Decoder
from edgecore.checkpoint.oracle import Floats, KVCache, Oracle
from edgecore.checkpoint.tensors import Readable
from edgecore.checkpoint.tokenizer import Tokenizer
from edgecore.contract.progress import Progress


def own_text(
    decoder: Decoder, tensors: Mapping[str, Readable], tokenizer: Tokenizer, count: int, length: int,
    progress: Progress, *, resident: bool = True,
) -> list[list[int]]:  # fmt: skip
    """`count` texts of `length` tokens (`written`). resident: see `Oracle`."""
    several = _Several(decoder, tensors, resident=resident)
    caches = [KVCache(decoder, length) for _ in range(count)]

    def following(tokens: NDArray[np.int64]) -> Floats:
        for column in tokens.T:
            hidden = several.step([int(token) for token in column], caches)
        return several.following(hidden)

    return written(following, tokenizer, count, length, progress)


class _Several(Oracle):
    """A row of what is computed is the next position of a text of its own."""

    _caches: Sequence[KVCache] = ()

    def step(self, tokens: Sequence[int], caches: Sequence[KVCache]) -> Floats:
        """One more token of each: (texts, hidden)."""
        hidden, self._caches = self.embedded(tokens), caches
        (start,) = {cache.extend(1) for cache in caches}
        for layer in range(self.decoder.layers):
            at, block = f"model.layers.{layer}.", self.block(layer)
            here = self.turns(layer, start, 1)
            hidden = hidden + self._attention(block, at, layer, hidden, caches[0], start, here)
            hidden = hidden + self._mlp(block, at, hidden)
        return hidden

    def following(self, hidden: Floats) -> Floats:
        """(texts, vocab)"""
        return self._capped(np.asarray(self._norm(hidden, "model.norm") @ self._head().T))

    def _attend(self, layer: int, q: Floats, k: Floats, v: Floats, cache: KVCache, start: int) -> Floats:
        rows = [slice(i, i + 1) for i in range(len(q))]
        attend = super()._attend
        return np.concatenate(
            [attend(layer, q[i], k[i], v[i], own, start) for i, own in zip(rows, self._caches, strict=True)]
        )
