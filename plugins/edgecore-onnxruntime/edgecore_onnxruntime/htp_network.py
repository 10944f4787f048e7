"""A language model's two graphs of fixed shapes, opened: buffers bound once, one KV cache that both read.

Not edgecore's contract yet: htp_session.py makes a `TextSession` of it.

Every call gives out the new keys and values alone, and they are written into the cache when it has succeeded: what
stopped half way has changed nothing. Forgetting positions is counting them no more: masks hide what is not counted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgecore.contract import BadRequest, CorruptModel, Placement
from edgecore.contract.bounds import checked_ids
from edgecore_onnxruntime import htp_folder, runtime
from edgecore_onnxruntime.htp_folder import Description, Turning
from edgecore_onnxruntime.placement import placement_of

Ids = NDArray[np.int64]
_TYPES = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(uint8)": np.uint8}


class Network:
    """One sequence: `filled` positions of it are in the KV cache.

    opened: opens one of the folder's graphs. Raises what it raises, and `CorruptModel` for graphs that are not what the
    description says.
    """

    def __init__(self, folder: Path, opened: Callable[[Path], ort.InferenceSession], device: str) -> None:
        self.description = htp_folder.read(folder)
        self.device = device
        d = self.description
        self._table = d.embedding(folder)
        self._cache: dict[str, NDArray[Any]] = {}
        self._graphs: dict[int, _Graph] = {}
        for name, tokens in ((htp_folder.DECODE, 1), (htp_folder.PREFILL, d.chunk)):
            self._graphs[tokens] = _Graph(opened(folder / name), folder / name, tokens, d, self._cache)
        self._turns = {t: _turns(t, d.context, t.frequencies) for t in d.turnings}
        self._long_turns = {t: _turns(t, d.context, t.long_frequencies or t.frequencies) for t in d.turnings}
        self._placement = Placement()
        self._computes = threading.Lock()
        self.filled = 0
        self._long = False

    sliced = False
    """Logits are computed for every token that a graph takes."""

    @property
    def vocab_size(self) -> int:
        return self.description.vocab_size

    @property
    def kv_type(self) -> str:
        """What the KV cache is stored in."""
        return {"float16": "f16", "float32": "f32", "uint8": "u8"}[next(iter(self._cache.values())).dtype.name]

    def checked(self, tokens: Sequence[int]) -> Ids:
        """Token ids. Raises `BadRequest` for ids outside the vocabulary."""
        return checked_ids(tokens, self.vocab_size)

    def rows_at_once(self, most_bytes: int) -> int:
        """Positions whose logits are computed in one call: the prefill's graph says how many."""
        return self.description.chunk

    def usable(self, count: int, total: int) -> int:
        """How many of the first `count` positions in the cache serve a sequence of `total` tokens; none where longrope
        turns that one otherwise (as edgecore's oracle, and transformers)."""
        _ = self.session
        return min(count, self.filled) if self._long == self._is_long(total) else 0

    def append(self, ids: Ids, keep: int, chunk: int = 0) -> NDArray[np.float32]:
        """Forgets all but the first `keep` positions, appends `ids`, at least one; the last one's logits, (vocab,).
        `chunk` is the prefill's graph's, whatever is asked."""
        total, chunk = keep + len(ids), self.description.chunk
        with self._alone():
            self.truncate(keep)
            for start in range(0, len(ids), chunk):
                logits = self._run(ids[start : start + chunk], self._is_long(total))
        row: NDArray[np.float32] = logits[-1]
        return row

    def run(self, ids: Ids, rows: int, total: int) -> NDArray[np.float32]:
        """Appends at most `chunk` tokens of a sequence that is to have `total`; the logits of all of them, (n, vocab),
        however few `rows` are asked for."""
        with self._alone():
            return self._run(ids, self._is_long(total))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._computes.acquire(blocking=False):
            raise BadRequest("the session computes already, in another thread", supported="one thread at a time")
        try:
            yield
        finally:
            self._computes.release()

    def _run(self, ids: Ids, long: bool) -> NDArray[np.float32]:
        _ = self.session
        count = len(ids)
        graph = self._graphs[1 if count == 1 else self.description.chunk]
        graph.embed(self._table[ids], self.description.embedding_scale)
        graph.place(self.filled, self._long_turns if long else self._turns)
        graph.compute()
        graph.keep(count, self.filled)
        self.filled += count
        self._long = long
        return graph.made["logits"][:count].astype(np.float32)

    def truncate(self, count: int) -> None:
        """Forgets all but the first `count` positions, which are in the cache."""
        _ = self.session
        self.filled = min(self.filled, count)

    def clear(self) -> None:
        self.truncate(0)
        self._long = False

    @property
    def session(self) -> Any:
        """The `InferenceSession` of one token. Raises `BadRequest` once closed."""
        if not self._graphs:
            raise BadRequest("the session is closed")
        return self._graphs[1].session

    def placement(self) -> Placement:
        """Where it runs: of both graphs the one that has more elsewhere. After `close`, where it ran."""
        if self._graphs:
            found = [placement_of(graph.session, self.device) for graph in self._graphs.values()]
            self._placement = min(found, key=lambda placement: placement.share(self.device) or 0.0)
        return self._placement

    def close(self) -> None:
        """Gives back graphs and cache."""
        self._graphs.clear()
        self._cache.clear()

    def _is_long(self, total: int) -> bool:
        return 0 < self.description.long_after < total


@dataclass
class _Graph:
    """One of the two, its inputs and outputs bound to arrays for good."""

    session: Any
    file: Path
    tokens: int
    description: Description
    cache: dict[str, NDArray[Any]]
    """Name of an input to the array that holds it, for both graphs."""
    given: dict[str, NDArray[Any]] = field(default_factory=dict)
    made: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._binding = self.session.io_binding()
        shapes = self._shapes()
        for value in self.session.get_inputs():
            past = value.name.startswith("past_key_values.")
            arrays = self.cache if past else self.given
            if value.name not in arrays:
                arrays[value.name] = np.zeros(*self._checked(value, shapes))
            self._bind(self._binding.bind_input, value.name, arrays[value.name])
        for value in self.session.get_outputs():
            array = self.made[value.name] = np.zeros(*self._checked(value, shapes))
            self._bind(self._binding.bind_output, value.name, array)
        if missing := shapes.keys() - {*self.cache, *self.given, *self.made}:
            raise CorruptModel(f"{self.file}: has no {sorted(missing)[0]}")

    def embed(self, rows: NDArray[Any], scale: float) -> None:
        """The tokens' embeddings; nothing where there are fewer tokens than the graph takes."""
        into = self.given["embeddings"]
        into[: len(rows)] = rows.astype(np.float32) * np.float32(scale) if scale != 1 else rows
        into[len(rows) :] = 0

    def place(self, start: int, turns: dict[Turning, tuple[NDArray[Any], NDArray[Any]]]) -> None:
        """Angles and masks of the positions from `start`. Those after the last token are hidden by what came before
        them: attention is causal."""
        context = self.description.context
        at = np.minimum(np.arange(start, start + self.tokens), context - 1)
        for turning, (cos, sin) in turns.items():
            self.given[turning.cos][0, 0] = cos[at]
            self.given[turning.sin][0, 0] = sin[at]
        queries = np.arange(start, start + self.tokens)[:, None]
        keys = np.concatenate([np.arange(context), np.arange(start, start + self.tokens)])
        there = np.concatenate([np.arange(context) < start, np.ones(self.tokens, bool)])
        for name, window in self.description.masks.items():
            seen = there & (keys <= queries)
            if window:
                seen &= keys > queries - window
            self.given[name][0, 0] = np.where(seen, 0, self.description.masked)

    def compute(self) -> None:
        try:
            self.session.run_with_iobinding(self._binding)
        except runtime.ERRORS as error:
            raise runtime.failed(error) from None

    def keep(self, count: int, start: int) -> None:
        """Puts the keys and values of the first `count` tokens into the cache, from position `start`."""
        for layer in range(self.description.layers):
            keys, values = (self.cache[f"past_key_values.{layer}.{kind}"] for kind in ("key", "value"))
            keys[..., start : start + count] = self.made[f"present.{layer}.key"][..., :count]
            values[:, :, start : start + count] = self.made[f"present.{layer}.value"][:, :, :count]

    def _bind(self, bind: Any, name: str, array: NDArray[Any]) -> None:
        bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def _checked(self, value: Any, shapes: dict[str, tuple[int, ...]]) -> tuple[tuple[int, ...], Any]:
        expected = shapes.get(value.name)
        if expected is None or tuple(value.shape) != expected or value.type not in _TYPES:
            raise CorruptModel(
                f"{self.file}: {value.name} is {value.type} {value.shape}, not what {htp_folder.DESCRIPTION} describes"
            )
        return expected, _TYPES[value.type]

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        d, n = self.description, self.tokens
        shapes: dict[str, tuple[int, ...]] = {"embeddings": (n, d.hidden_size), "logits": (n, d.vocab_size)}
        shapes |= dict.fromkeys(d.masks, (1, 1, n, d.context + n))
        shapes |= {name: (1, 1, n, len(t.frequencies)) for t in d.turnings for name in (t.cos, t.sin)}
        for layer in range(d.layers):
            shapes[f"past_key_values.{layer}.key"] = (1, d.kv_heads, d.head_dim, d.context)
            shapes[f"past_key_values.{layer}.value"] = (1, d.kv_heads, d.context, d.head_dim)
            shapes[f"present.{layer}.key"] = (1, d.kv_heads, d.head_dim, n)
            shapes[f"present.{layer}.value"] = (1, d.kv_heads, n, d.head_dim)
        return shapes


def _turns(turning: Turning, context: int, frequencies: Sequence[float]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Cosine and sine of every position's angles, (context, dim/2) each."""
    angles = np.arange(context)[:, None] * np.asarray(frequencies)
    cos, sin = np.cos(angles) * turning.factor, np.sin(angles) * turning.factor
    return cos.astype(np.float32), sin.astype(np.float32)
