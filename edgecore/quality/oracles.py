"""Running the oracle on weights that come from elsewhere: a backend's file, or the source rounded to nearest.

The oracle reads tensors by name; everything here is a mapping that it can read, and that tells its progress, because
reading and dequantizing is where an oracle pass spends its time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint.decoder import Decoder
from edgecore.checkpoint.oracle import Oracle
from edgecore.checkpoint.tensors import Readable
from edgecore.contract.errors import CorruptModel
from edgecore.contract.sessions import Logits
from edgecore.quality.divergence import BLOCK, Accumulator, LogProbs
from edgecore.quality.rounding import Rounded

Floats = NDArray[np.float32]


def score(
    decoder: Decoder, tensors: Mapping[str, Readable], tokens: Sequence[int], advance: Callable[[int], None]
) -> Iterator[Logits]:
    """Logits of every position. `advance(elements)` is called after each tensor that was read, and may raise."""
    watched = {name: _Watched(tensor, advance) for name, tensor in tensors.items()}
    return Oracle(decoder, watched).score(tokens)


def given_weights(weights: Mapping[str, Any], like: Mapping[str, Readable]) -> dict[str, Readable] | str:
    """A backend's dequantized weights as tensors, or the sentence that says which ones it does not give."""
    missing = [name for name in like if name not in weights]
    if missing:
        return f"the backend gives no weights for {missing[0]!r} and {len(missing) - 1} more"
    return {name: _Given(name, tensor.shape, weights) for name, tensor in like.items()}


class _Given:
    """One array of a backend's lazy mapping. The last one read is kept: the oracle asks for embeddings row by row."""

    def __init__(self, name: str, shape: tuple[int, ...], weights: Mapping[str, Any]) -> None:
        self.name, self.shape = name, shape
        self._weights = weights
        self._kept: Floats | None = None

    def read(self) -> Floats:
        array = self._kept if self._kept is not None else np.asarray(self._weights[self.name], np.float32)
        self._kept = None
        if array.shape != self.shape:
            raise CorruptModel(f"weights: tensor {self.name!r} has shape {array.shape}, its source has {self.shape}")
        return array

    def rows(self, start: int, stop: int) -> Floats:
        if self._kept is None:
            self._kept = self.read()
        return self._kept[start:stop]


class _Watched:
    """A tensor that reports that it was read."""

    def __init__(self, tensor: Readable, advance: Callable[[int], None]) -> None:
        self.name, self.shape = tensor.name, tensor.shape
        self._tensor, self._advance = tensor, advance

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def read(self) -> Floats:
        array = self._tensor.read()
        self._advance(self.elements)
        return array

    def rows(self, start: int, stop: int) -> Floats:
        return self._tensor.rows(start, stop)


@dataclass(frozen=True, slots=True)
class Cost:
    """What passes of the oracle cost here, from readings of a few milliseconds on this model's own tensors."""

    read: float
    """Seconds a weight to read the source."""
    round: float
    """More for rounding it."""
    give: float
    """Seconds a weight to get it from the backend; 0 where it gives none."""
    multiply: float
    """Seconds a weight and token."""
    compare: float
    """Seconds a token and stream of logits, for softmax and comparison."""
    weights: int

    def seconds(self, tokens: int, *, file: bool, baseline: bool) -> float:
        """For comparing a text of `tokens` tokens: the source, the file and the baseline where wanted, the backend."""
        passes = 1 + file + baseline
        loading = self.read * (1 + baseline) + self.round * baseline + self.give * file
        streams = passes + 1
        return self.weights * (loading + passes * tokens * self.multiply) + tokens * streams * self.compare


def measure_cost(
    decoder: Decoder, tensors: Mapping[str, Readable], given: Mapping[str, Readable] | None, bits: float
) -> Cost:
    """Reads one matrix of the first layer from each side, multiplies it once, compares one block of made-up logits."""
    matrices = [t for t in tensors.values() if len(t.shape) == 2 and ".layers." in t.name]
    tensor = max(matrices[:8], key=lambda t: math.prod(t.shape))
    n = math.prod(tensor.shape)
    array, read = _timed(tensor.read)
    _, rounding = _timed(Rounded(tensor, bits).read)
    give = _timed(given[tensor.name].read)[1] if given is not None else 0.0
    x = np.ones((64, tensor.shape[1]), np.float32)
    _, multiply = _timed(lambda: x @ array.T)
    logits = np.random.default_rng(0).standard_normal((BLOCK, decoder.vocab_size), np.float32)

    def once() -> None:
        rows = LogProbs(logits)
        Accumulator().add(rows, rows, [0] * (BLOCK + 1), 0)

    _, compared = _timed(once)
    return Cost(
        read=read / n,
        round=max(0.0, rounding - read) / n,
        give=give / n,
        multiply=2 * multiply / (64 * n),  # attention, norms and the memory cost about as much again
        compare=compared / BLOCK,
        weights=sum(math.prod(t.shape) for t in tensors.values()),
    )


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """The best of five: a cost predicted too high, because a neighbour was busy, would shorten the text for nothing."""
    best, result = math.inf, None
    for _ in range(5):
        start = perf_counter()
        result = work()
        best = min(best, perf_counter() - start)
    return result, best
