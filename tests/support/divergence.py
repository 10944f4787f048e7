"""How far one row of logits is from another, and tokens to ask for: what tests of any runtime's graphs need."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint import Decoder

Floats = NDArray[np.float32]


def divergence(wanted: Floats, found: Floats) -> Floats:
    """KL of each position."""
    p, q = (x - x.max(-1, keepdims=True) for x in (wanted.astype(np.float64), found.astype(np.float64)))
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
    return np.asarray((np.exp(p) * (p - q)).sum(-1))


def some_tokens(decoder: Decoder, count: int) -> list[int]:
    return np.random.default_rng(1).integers(0, decoder.vocab_size, count).tolist()
