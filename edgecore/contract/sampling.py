"""Choosing the next token from logits, in numpy, the same way for every backend.

Order as in llama.cpp's default chain: top-k, top-p, temperature, then one draw. Temperature 0 is greedy: the argmax,
the lowest id on a tie.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgecore.contract.errors import BadRequest


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw. The defaults are llama.cpp's, so that its users get what they know."""

    temperature: float = 0.8
    """0 is greedy."""
    top_k: int = 40
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 0.95
    """Keep the fewest tokens whose probabilities reach p; 1 keeps all."""
    seed: int | None = None
    """Same seed, same answer on the same artifact and device; None draws one."""

    def __post_init__(self) -> None:
        for name, good, accepted in (
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("seed", self.seed is None or 0 <= self.seed < 2**63, "0 to 2**63 - 1"),
        ):
            if not good:
                raise BadRequest(f"{name} = {getattr(self, name)}: not accepted", supported=f"{name}: {accepted}")


GREEDY = Sampling(temperature=0.0)


class Sampler:
    """Draws tokens with a generator of its own, so two generations never share state."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def __call__(self, logits: NDArray[np.float32]) -> int:
        """One token id from float32 logits of shape (vocab,)."""
        how = self.sampling
        if how.temperature == 0:
            return int(np.argmax(logits))
        keep = min(how.top_k or logits.size, logits.size)
        ids = np.argpartition(logits, -keep)[-keep:]
        ids = ids[np.argsort(-logits[ids], kind="stable")]
        scores = logits[ids].astype(np.float64)
        if how.top_p < 1:
            cumulative = np.cumsum(_softmax(scores))
            keep = int(np.searchsorted(cumulative, how.top_p)) + 1
            ids, scores = ids[:keep], scores[:keep]
        return int(self._random.choice(ids, p=_softmax(scores / how.temperature)))


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    exponentials = np.exp(scores - scores.max())
    return np.asarray(exponentials / exponentials.sum())
