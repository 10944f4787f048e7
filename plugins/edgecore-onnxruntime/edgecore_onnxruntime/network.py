"""A language model's graph in ONNX Runtime: one session, its inputs allocated once, its KV cache as cache.py keeps it.

Not edgecore's contract yet: session.py makes a `TextSession` of it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgecore.checkpoint import OnnxNode, read_onnx
from edgecore.contract import BadRequest, DoesNotFit, Placement, UnsupportedModel, usable_memory
from edgecore.contract.bounds import checked_ids
from edgecore_onnxruntime import runtime
from edgecore_onnxruntime.cache import Cache, Handed, Inputs, Shared
from edgecore_onnxruntime.layout import Layout
from edgecore_onnxruntime.placement import placement_of

CHUNK = 512
"""Tokens computed at once: bounds the memory of a prefill, and how long one goes on after it was cancelled."""
LAST = "edgecore_last"
"""The input with a default that says how many last positions get logits; other people's graphs have none."""
ATTENTION = "com.microsoft.GroupQueryAttention"
"""The operator that appends to its cache in place."""
_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64, "tensor(int32)": np.int32,
}  # fmt: skip
_WORDS = {np.float32: "f32", np.float16: "f16"}
Ids = NDArray[np.int64]


class Network:
    """One sequence: `filled` positions of it are in the KV cache.

    length:     tokens that fit.
    long_after: longrope's original context, 0 without: the cached keys of a longer sequence are turned otherwise, and
                the graph decides by the length of a call's mask. Not where the cache is handed on: there a mask is as
                long as the text.
    """

    def __init__(
        self, layout: Layout, options: ort.SessionOptions, length: int, long_after: int = 0, device: str = "cpu"
    ) -> None:
        """Raises as `runtime.open_model`; `UnsupportedModel` for a graph without KV cache, `DoesNotFit` for a cache
        larger than the machine."""
        self._layout = layout
        self._device = device
        self._session: Any = runtime.open_model(layout.model, options)
        nodes = read_onnx(layout.model).nodes
        inputs = {port.name: port for port in self._session.get_inputs()}
        outputs = {port.name: port for port in self._session.get_outputs()}
        _check(layout, inputs, outputs)
        self.vocab_size = _vocabulary(layout, outputs[layout.logits])
        self._logits_type = _type(layout, outputs[layout.logits])
        kept = _type(layout, inputs[layout.past[0]])
        heads, size = _sizes(layout, inputs[layout.past[0]])
        _check_room(len(layout.past) * heads * size * np.dtype(kept).itemsize, length)
        self.shared = _appends_in_place(nodes, layout.past)
        self.compute, self.kv_cache = _WORDS[self._logits_type], _WORDS[kept]
        self.activations = _activations(nodes)
        self.sliced = LAST in {port.name for port in self._session.get_overridable_initializers()}
        self._binding: Any = self._session.io_binding()
        types = {name: _type(layout, port) for name, port in inputs.items() if name not in layout.past}
        self._inputs: Any = Inputs(self._binding, types | ({LAST: np.int64} if self.sliced else {}))
        self._mask = np.ones((1, length), types[layout.mask])
        self._logits = np.empty(0, self._logits_type)
        self._bind_logits(1)
        self._cache: Any = self._made(kept, heads, size, length)
        self._placement = Placement()
        self._long_after = long_after if self.shared else 0
        self._long = False
        self._computes = threading.Lock()
        self.filled = 0

    def _made(self, kept: type[np.generic], heads: int, size: int, length: int) -> Cache:
        past, present = self._layout.past, self._layout.present
        if self.shared:
            return Shared(self._binding, past, present, kept, heads, size, length)
        return Handed(self._binding, past, present, kept, heads, size)

    def checked(self, tokens: Sequence[int]) -> Ids:
        """Token ids as the graph takes them. Raises `BadRequest` for ids outside the vocabulary."""
        return checked_ids(tokens, self.vocab_size)

    def rows_at_once(self, most_bytes: int) -> int:
        """Positions whose logits are computed in one call, in at most so much memory."""
        return int(min(CHUNK, max(1, most_bytes // (4 * self.vocab_size))))

    def usable(self, count: int, total: int) -> int:
        """How many of the first `count` positions in the cache serve a sequence of `total` tokens; none where longrope
        turns that one otherwise (as edgecore's oracle, and transformers)."""
        _ = self.session
        return 0 if self._long != self._is_long(total) else min(count, self.filled)

    def append(self, ids: Ids, keep: int, chunk: int = CHUNK) -> NDArray[np.float32]:
        """Forgets all but the first `keep` positions, appends `ids`; a view of the last one's logits, (vocab,), valid
        until the next call."""
        total = keep + len(ids)
        with self._alone():
            self.truncate(keep)
            self._long = self._is_long(total)
            for start in range(0, len(ids), chunk):
                logits = self._run(ids[start : start + chunk], 1, self._long)
        row: NDArray[np.float32] = logits[-1]
        return row

    def run(self, ids: Ids, rows: int, total: int) -> NDArray[np.float32]:
        """Appends at most `CHUNK` tokens of a sequence that is to have `total`; a view of the logits of at least the
        last `rows`, (n, vocab), valid until the next call."""
        with self._alone():
            return self._run(ids, rows, self._is_long(total))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._computes.acquire(blocking=False):
            raise BadRequest("the session computes already, in another thread", supported="one thread at a time")
        try:
            yield
        finally:
            self._computes.release()

    def _run(self, ids: Ids, rows: int, long: bool) -> NDArray[np.float32]:
        _, inputs, names = self.session, self._inputs, self._layout
        end = self.filled + len(ids)
        try:
            inputs.give(names.ids, ids[None])
            inputs.give(names.positions, np.arange(self.filled, end)[None])
            shown = self._give_mask(end, long)
            if self.sliced:
                inputs.give(LAST, np.array([rows]))
            self._bind_logits(rows if self.sliced else len(ids))
            self._cache.give(shown, self.filled)
            self._infer()
            self._cache.took()
        except runtime.ERRORS as error:
            raise runtime.failed(error) from None
        self.filled = end
        return self._logits[: self._rows * self.vocab_size].reshape(self._rows, -1).astype(np.float32, copy=False)

    def _infer(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def _give_mask(self, end: int, long: bool) -> int:
        """Ones; behind those of the beginning of a long sequence zeros, so many that the graph sees that it is one."""
        if not long or end > self._long_after:
            self._inputs.bind(self._layout.mask, self._mask, (1, end))
            return end
        shown = self._long_after + 1
        self._inputs.give(self._layout.mask, (np.arange(shown) < end)[None])
        return shown

    def _bind_logits(self, rows: int) -> None:
        if rows * self.vocab_size > self._logits.size:
            self._logits = np.empty(rows * self.vocab_size, self._logits_type)
            self._rows = 0
        if rows != self._rows:
            shape, at = (1, rows, self.vocab_size), self._logits.ctypes.data
            self._binding.bind_output(self._layout.logits, "cpu", 0, self._logits_type, shape, at)
            self._rows = rows

    def truncate(self, count: int) -> None:
        """Forgets all but the first `count` positions, which are in the cache."""
        _ = self.session
        if count < self.filled:
            self._cache.cut(count)
            self.filled = count

    def clear(self) -> None:
        self.truncate(0)
        self._long = False

    def _is_long(self, total: int) -> bool:
        return 0 < self._long_after < total

    @property
    def session(self) -> Any:
        """The `InferenceSession`. Raises `BadRequest` once closed."""
        if self._session is None:
            raise BadRequest("the session is closed")
        return self._session

    @property
    def threads(self) -> int:
        """As the session says."""
        return int(self.session.get_session_options().intra_op_num_threads)

    def placement(self) -> Placement:
        """Where it runs; after `close`, where it ran when last asked."""
        if self._session is not None:
            self._placement = placement_of(self._session, self._device)
        return self._placement

    def close(self) -> None:
        """Gives back weights and cache."""
        self._cache = self._inputs = self._binding = self._session = None
        self._logits = np.empty(0, self._logits_type)
        runtime.give_back_memory()


def _check(layout: Layout, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    known = {layout.ids, layout.mask, layout.positions, *layout.past}
    missing = [name for name in (layout.ids, layout.mask, *layout.past) if name not in inputs]
    missing += [name for name in (layout.logits, *layout.present) if name not in outputs]
    surplus = [name for name in inputs if name not in known]
    if missing or surplus:
        why = f"without {missing[0]}" if missing else f"it also takes {surplus[0]}"
        raise UnsupportedModel(
            f"{layout.model}: not a language model's graph: {why}",
            supported="input ids, a mask, positions and a KV cache in, logits and the KV cache out",
            hint="edgecore convert MODEL --to onnx-genai",
        )


def _type(layout: Layout, port: Any) -> type[np.generic]:
    found = _TYPES.get(port.type)
    if found is None:
        raise UnsupportedModel(f"{layout.model}: {port.name} has type {port.type}", supported=", ".join(_TYPES))
    return found


def _sizes(layout: Layout, port: Any) -> tuple[int, int]:
    """Heads and their size of a cache (batch, heads, positions, size), from the graph where it says them."""
    shape = port.shape
    if len(shape) != 4:
        raise UnsupportedModel(f"{layout.model}: {port.name} has shape {shape}", supported="4 dimensions")
    heads, size = shape[1::2]
    return (
        heads if isinstance(heads, int) else layout.kv_heads,
        size if isinstance(size, int) else layout.head_size,
    )


def _check_room(position_bytes: int, length: int) -> None:
    """The cache grows as it is used: what can never fit is refused now."""
    needed, there = position_bytes * length, usable_memory()[0]
    if needed > there:
        raise DoesNotFit(
            f"a KV cache of {length} tokens takes {needed / 2**30:.1f} GiB of {there / 2**30:.1f}",
            supported=f"up to {there // position_bytes} tokens, without the model itself",
            hint="a smaller -c",
        )


def _vocabulary(layout: Layout, port: Any) -> int:
    last = port.shape[-1] if port.shape else None
    size = last if isinstance(last, int) else layout.vocab_size
    if not size:
        raise UnsupportedModel(f"{layout.model} does not say how many logits a position has")
    return size


def _appends_in_place(nodes: Sequence[OnnxNode], past: Sequence[str]) -> bool:
    names = set(past)
    return all(node.operator == ATTENTION for node in nodes if names.intersection(node.inputs))


def _activations(nodes: Sequence[OnnxNode]) -> str:
    """What enters the products with weights, by the graph: kernels round it to 8 bits where `accuracy_level` is 4."""
    dynamic = ("DynamicQuantizeLinear", "com.microsoft.DynamicQuantizeMatMul")
    rounding = [n for n in nodes if n.operator in dynamic or n.attributes.get("accuracy_level") == 4]
    return "int8" if rounding else ""
