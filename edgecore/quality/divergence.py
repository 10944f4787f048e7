"""How far one model's predictions are from another's, without ever holding more than a few rows of logits.

Logits of every position of a text with a large vocabulary do not fit anywhere. So all parties (the reference, the
oracle on the quantized file, the backend) are read in lockstep, a few rows at a time, in float64, and what remains of
a position is a handful of numbers.

The definition is llama-perplexity's (`--kl-divergence`): KL(P_reference || P_candidate) in nats, from the full softmax,
averaged over the positions that predict a token of the text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgecore.contract.errors import BadRequest
from edgecore.contract.sessions import Logits

BLOCK = 16
"""Rows worked on at a time: with a vocabulary of 152,000 one float64 block is 19 MB."""
Rows = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Divergence:
    """Of a candidate from its reference, over the positions of one text that predict its next token."""

    tokens: int
    """Positions compared."""
    kl_mean: float
    """Mean KL(P_reference || P_candidate), nats. Infinite where the candidate gave something that is no number."""
    kl_error: float
    """Standard error of `kl_mean`, positions taken as independent, which they are not quite."""
    kl_p99: float
    top1: float
    """Share of positions at which both put the same token first."""
    perplexity: float
    """Of the candidate, on the text."""
    reference_perplexity: float
    perplexity_ratio: float
    greedy_match: float | None = None
    """Share of a greedy continuation before the first token that differs. Shown, never a gate: one near-tie flips
    it. None where no continuation was made."""
    text_sha256: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; JSON knows no infinity, so a figure that is not finite is None."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        def value(name: str) -> Any:
            missing = None if name == "greedy_match" else math.inf
            return missing if data.get(name) is None else data[name]

        return cls(**{name: value(name) for name in cls.__dataclass_fields__})


def compare(
    reference: Iterable[Logits], candidate: Iterable[Logits], tokens: Sequence[int], *, first: int = 0, sha256: str = ""
) -> Divergence:
    """Compare two streams of logits for the same tokens.

    reference, candidate: float chunks (n, vocab), position after position; chunk sizes need not agree.
    tokens:               the ids that both were scored on; position i predicts tokens[i + 1], the last predicts nothing
                          and is not counted.
    first:                positions before it are not counted (llama-perplexity skips half of its context).
    Raises `BadRequest` where the streams disagree in vocabulary or length.
    """
    figures = Accumulator()
    for start, (a, b) in lockstep((reference, candidate), len(tokens)):
        figures.add(LogProbs(a), LogProbs(b), tokens, start, first)
    return figures.result(sha256)


class LogProbs:
    """Log-softmax of a block of logits, float64 (n, vocab), computed once for all comparisons that it takes part in."""

    def __init__(self, logits: ArrayLike) -> None:
        rows: Rows = np.array(logits, np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            rows -= rows.max(axis=1, keepdims=True)
            exponentials = np.exp(rows)
            total = exponentials.sum(axis=1, keepdims=True)
            rows -= np.log(total)
            exponentials /= total
        self.logs = rows
        self.probabilities: Rows = exponentials
        self.best = np.argmax(rows, axis=1)


class Accumulator:
    """Collects a candidate's divergence, block by block."""

    def __init__(self) -> None:
        self._kl: list[float] = []
        self._same = 0
        self._nll = self._reference_nll = 0.0

    def add(self, reference: LogProbs, candidate: LogProbs, tokens: Sequence[int], start: int, first: int = 0) -> None:
        """One block whose first row is position `start`."""
        rows = [i for i in range(len(reference.logs)) if first <= start + i < len(tokens) - 1]
        if not rows:
            return
        target = [tokens[start + i + 1] for i in rows]
        if not 0 <= min(target) <= max(target) < reference.logs.shape[1]:
            raise BadRequest(
                f"the text has token {max(target)}, the logits {reference.logs.shape[1]} columns",
                supported="logits over the vocabulary of the tokenizer",
            )
        part = slice(rows[0], rows[-1] + 1)
        p, log_p, log_q = reference.probabilities[part], reference.logs[part], candidate.logs[part]
        # 0 * log 0 is 0: a token that the reference excludes costs nothing, whatever the candidate thinks of it.
        with np.errstate(invalid="ignore"):
            terms = np.multiply(p, log_p - log_q, out=np.zeros_like(p), where=p > 0)
        kl = terms.sum(axis=1)
        self._kl += np.where(np.isfinite(kl), np.maximum(kl, 0.0), np.inf).tolist()
        self._same += int((reference.best[part] == candidate.best[part]).sum())
        each = np.arange(len(rows))
        self._nll -= float(log_q[each, target].sum())
        self._reference_nll -= float(log_p[each, target].sum())

    @property
    def tokens(self) -> int:
        return len(self._kl)

    def result(self, sha256: str = "") -> Divergence:
        """The figures so far. Raises `BadRequest` before the first position."""
        n = len(self._kl)
        if n == 0:
            raise BadRequest("nothing was compared", supported="a text of at least two tokens")
        kl = np.array(self._kl)
        mean = float(kl.mean())
        error = float(kl.std(ddof=1) / math.sqrt(n)) if n > 1 and math.isfinite(mean) else math.inf
        nll = self._nll / n if math.isfinite(self._nll) else math.inf
        return Divergence(
            tokens=n,
            kl_mean=mean,
            kl_error=error,
            kl_p99=float(np.quantile(kl, 0.99, method="higher")),
            top1=self._same / n,
            perplexity=_exp(nll),
            reference_perplexity=_exp(self._reference_nll / n),
            perplexity_ratio=_exp(nll - self._reference_nll / n),
            text_sha256=sha256,
        )


class ContextGain:
    """What a model knows because it reads the text: the loss of an answer that ignores the context.

    The best such answer is the mean of the model's own predictions, and its mean KL divergence from them is the mutual
    information of position and prediction (the generalized Jensen-Shannon divergence, Lin 1991): H(mean P) - mean H(P).
    Being computed on the positions themselves it is rather too small than too large.
    """

    def __init__(self) -> None:
        self._sum: Rows | None = None
        self._entropy = 0.0
        self._n = 0

    def add(self, rows: LogProbs) -> None:
        p = rows.probabilities
        self._sum = p.sum(axis=0) if self._sum is None else self._sum + p.sum(axis=0)
        self._entropy += _entropy(p, rows.logs)
        self._n += len(p)

    def result(self) -> float:
        """Nats."""
        if self._sum is None:
            raise BadRequest("nothing was read", supported="a text of at least two tokens")
        mean = self._sum / self._n
        with np.errstate(divide="ignore"):
            logs = np.log(mean)
        return max(0.0, _entropy(mean, logs) - self._entropy / self._n)


def lockstep(
    streams: Sequence[Iterable[Logits]], total: int, block: int = BLOCK
) -> Iterator[tuple[int, list[NDArray[Any]]]]:
    """(first position, one block of rows a stream), until `total` positions were read from every stream.

    Raises `BadRequest` naming the stream (counted from 0) that ends early or has another vocabulary than the first.
    """
    readers = [_Reader(stream) for stream in streams]
    for start in range(0, total, block):
        rows = [reader.take(min(block, total - start)) for reader in readers]
        for number, got in enumerate(rows):
            if len(got) != min(block, total - start):
                raise BadRequest(
                    f"logits {number} end at position {start + len(got)} of {total}",
                    supported="one row of logits for every token",
                )
            if got.shape[1] != rows[0].shape[1]:
                raise BadRequest(
                    f"logits {number} have {got.shape[1]} columns, those of the reference {rows[0].shape[1]}",
                    supported="logits over the same vocabulary",
                )
        yield start, rows


def chunks(logits: NDArray[Any], size: int = BLOCK) -> Iterator[NDArray[Any]]:
    """A stored array (tokens, vocab), memory-mapped or not, as a stream."""
    for start in range(0, len(logits), size):
        yield logits[start : start + size]


class _Reader:
    """Takes rows out of a stream in portions of another size than it comes in."""

    def __init__(self, stream: Iterable[Logits]) -> None:
        self._stream = iter(stream)
        self._held: NDArray[Any] = np.zeros((0, 0), np.float32)

    def take(self, n: int) -> NDArray[Any]:
        """The next n rows, fewer at the end."""
        parts, have = [], 0
        while have < n:
            if not len(self._held):
                chunk = next(self._stream, None)
                if chunk is None:
                    break
                self._held = np.asarray(chunk)
                continue
            part, self._held = self._held[: n - have], self._held[n - have :]
            parts.append(part)
            have += len(part)
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else self._held


def _entropy(p: Rows, logs: Rows) -> float:
    """Summed over all rows, nats."""
    with np.errstate(invalid="ignore"):
        return -float(np.multiply(p, logs, out=np.zeros_like(p), where=p > 0).sum())


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
