"""A language model in MLX with its KV cache: one sequence, computed on one device, a piece at a time.

Not edgecore's contract yet: session.py makes a `TextSession` of it. What computes is decoder.py's model, or mlx_lm's
own (other.py); both are asked in the same words.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from edgecore.contract import BadRequest, DoesNotFit, EdgecoreError, Placement
from edgecore.contract.bounds import checked_ids
from edgecore_mlx import memory
from edgecore_mlx.placement import Watched

CHUNKS = {"cpu": 512, "gpu": 2048}
"""Tokens computed at once: bounds the memory of a prefill, and how long one goes on after it was cancelled. mlx_lm's
number suits a GPU."""
FORGET = 256
"""Steps after which MLX's buffers that nothing uses are given back, as mlx_lm does: a longer cache never fits the old
ones."""
Ids = NDArray[np.int64]


class Kept(Protocol):
    """The KV cache of one sequence (cache.py)."""

    filled: int
    long: bool

    def whole(self, count: int) -> int:
        """How many positions stay where only the first `count` are wanted: not always all of them."""

    def cut(self, count: int) -> None: ...

    @property
    def arrays(self) -> list[mx.array]: ...


class Computes(Protocol):
    """decoder.py's `Model`, or other.py's."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def sliced(self) -> bool:
        """Whether logits of the last positions cost no more than these; else a last token comes alone."""

    def new_cache(self) -> Any:
        """An empty `Kept` of its own kind."""

    def __call__(self, tokens: mx.array, cache: Any, last: int | None = None) -> mx.array: ...


class Network:
    """One sequence: `filled` positions of it are in the KV cache.

    long_after: longrope's original context, 0 without: the cached keys of a longer sequence are turned otherwise.
    chunk:      tokens computed at once in a prefill; 0 for `CHUNKS`.
    """

    def __init__(self, model: Computes, device: str, long_after: int = 0, chunk: int = 0) -> None:
        self._model: Computes | None = model
        self._device = device
        self._long_after = long_after
        self.chunk = chunk or CHUNKS[device]
        self.vocab_size = model.vocab_size
        self._cache: Kept = model.new_cache()
        self._sound = True
        """False while the cache is being changed: what stopped half way is not to be used."""
        self._turn = threading.Lock()
        self._steps = 0
        self._watched = Watched(device)
        self._wired = ExitStack()
        self._wired.enter_context(memory.wired())

    @property
    def filled(self) -> int:
        return self._cache.filled

    def checked(self, tokens: Sequence[int]) -> Ids:
        """Raises `BadRequest` for ids outside the vocabulary."""
        return checked_ids(tokens, self.vocab_size)

    def rows_at_once(self, most_bytes: int) -> int:
        """Positions whose logits are computed in one call, in at most so much memory."""
        return int(min(self.chunk, max(1, most_bytes // (4 * self.vocab_size))))

    def usable(self, count: int, total: int) -> int:
        """How many of the first `count` positions in the cache serve a sequence of `total` tokens; none where longrope
        turns that one otherwise (as edgecore's oracle, and transformers)."""
        _ = self.model
        if not self._sound or self._cache.long != self._is_long(total):
            return 0
        return self.filled if count >= self.filled else self._cache.whole(count)

    def pieces(self, ids: Ids) -> Iterator[Ids]:
        """What a prefill computes one after the other."""
        many = len(ids) if self.model.sliced else len(ids) - 1
        for start in range(0, many, self.chunk):
            yield ids[start : min(start + self.chunk, many)]
        if many < len(ids):
            yield ids[many:]

    def append(self, ids: Ids, keep: int) -> NDArray[np.float32]:
        """Forgets all but the first `keep` positions, appends `ids`; the last one's logits, (vocab,)."""
        with self._computing() as model:
            self._cut(keep)
            self._cache.long = self._is_long(keep + len(ids))
            *first, last = self.pieces(ids)
            for piece in first:  # logits that nobody evaluates are not computed
                model(_tokens(piece), self._cache, 1)
                mx.eval(self._cache.arrays)
                mx.clear_cache()
            logits = model(_tokens(last), self._cache, 1)
            mx.eval(logits, self._cache.arrays)
            self._forget()
            row: NDArray[np.float32] = np.array(logits)[-1]
            return row

    def run(self, ids: Ids, total: int) -> NDArray[np.float32]:
        """Appends a piece of a sequence that is to have `total` tokens; the logits of all its positions, (n, vocab)."""
        with self._computing() as model:
            self._cache.long = self._is_long(total)
            logits = model(_tokens(ids), self._cache)
            mx.eval(logits, self._cache.arrays)
            mx.clear_cache()
            return np.array(logits)

    def new_cache(self, total: int) -> Any:
        """An empty cache beside the network's own, for a sequence that is to have `total` tokens."""
        cache = self.model.new_cache()
        cache.long = self._is_long(total)
        return cache

    def clear(self) -> None:
        """An empty cache, and its memory given back."""
        _ = self.model
        self._cut(0)
        self._sound = True

    def _cut(self, count: int) -> None:
        if count == 0:
            self._cache = self.model.new_cache()
        elif count < self.filled:
            self._cache.cut(count)

    def _is_long(self, total: int) -> bool:
        return 0 < self._long_after < total

    @contextmanager
    def _computing(self) -> Iterator[Computes]:
        """The model, for one thread at a time and on its device, with failures in words."""
        model = self.model
        if not self._turn.acquire(blocking=False):
            raise BadRequest("the session computes already, in another thread", supported="one thread at a time")
        try:
            self._sound = False
            with mx.stream(_DEVICES[self._device]), self._watched:
                yield model
            self._sound = True
        except (RuntimeError, ValueError, MemoryError) as error:
            raise failed(error) from None
        finally:
            self._turn.release()

    def _forget(self) -> None:
        self._steps += 1
        if self._steps % FORGET == 0:
            mx.clear_cache()

    @property
    def model(self) -> Computes:
        """Raises `BadRequest` once closed."""
        if self._model is None:
            raise BadRequest("the session is closed")
        return self._model

    def placement(self) -> Placement:
        """Where it ran, after `close` too."""
        return self._watched.placement()

    def close(self) -> None:
        """Gives back weights and cache."""
        if self._model is not None:
            self._cache = self._model.new_cache()
            self._model = None
            self._wired.close()
            mx.clear_cache()


_DEVICES = {"cpu": mx.cpu, "gpu": mx.gpu}


def failed(error: BaseException) -> EdgecoreError:
    """What stopped a computation, typed."""
    words = " ".join(str(error).split())[-400:]
    if isinstance(error, MemoryError) or "alloc" in words.lower() or "memory" in words.lower():
        return DoesNotFit(f"MLX ran out of memory: {words}", hint="a smaller -c, or a smaller prefill_step_size")
    return EdgecoreError(f"MLX could not compute: {words}")


def _tokens(ids: Ids) -> mx.array:
    return mx.array(ids.astype(np.int32))
