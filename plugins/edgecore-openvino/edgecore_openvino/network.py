"""A language model's IR in OpenVINO: one request, its inputs allocated once, its KV cache as cache.py keeps it.

Not edgecore's contract yet: session.py makes a `TextSession` of it.

Whoever asks for the last position's logits must not pay for all of them: the head's product over the vocabulary is a
fifth of a prefill of SmolLM2. So in memory, the file stays as it is, the hidden states are cut to the last few before
that product, and how few is one more input of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from edgecore.contract import BadRequest, DoesNotFit, EdgecoreError, Placement, UnsupportedModel, usable_memory
from edgecore.contract.bounds import checked_ids
from edgecore_openvino import runtime
from edgecore_openvino.cache import Cache, Ids, Inputs, Pages, State, paged
from edgecore_openvino.placement import assignment, placement_of

CHUNK = 512
"""Tokens computed at once: bounds the memory of a prefill, and how long one goes on after it was cancelled."""
LAST = "edgecore_last"
"""The input that says how many last positions get logits, negated."""
_PASSED = ("Convert", "Multiply", "Divide", "Tanh", "Add")
"""What may stand between the head's product and the logits: a softcap, a bias, a change of type."""
INPUTS = ("input_ids", "attention_mask", "position_ids", "beam_idx")


class Network:
    """One sequence: `filled` positions of it are in the KV cache.

    length:     tokens that fit.
    long_after: longrope's original context, 0 without: the cached keys of a longer sequence are turned otherwise, and
                the graph decides by the largest position of a call.
    in_pages:   whether the cache may lie in pages (cache.py); only a CPU's does.
    """

    def __init__(
        self, xml: Path, device: str, properties: Mapping[str, Any], length: int, long_after: int = 0, *,
        in_pages: bool = True,
    ) -> None:  # fmt: skip
        """Raises as `runtime.read_model` and `compile_model`; `UnsupportedModel` for a graph without KV cache,
        `DoesNotFit` for a cache larger than the machine."""
        model = runtime.read_model(xml)
        _check(model, xml)
        _check_room(model, length, str(properties.get("KV_CACHE_PRECISION", "f16")))
        pages = paged(model) if in_pages and device == "cpu" else None
        model = pages or model
        self.in_pages = pages is not None
        self.sliced = slice_hidden(model, axis=0 if pages else 1)
        self.compiled = runtime.compile_model(model, device, properties)
        self._assigned = assignment(model, properties) if device == "hetero" else None
        self._placement = Placement()
        self._request: Any = self.compiled.create_infer_request()
        self.vocab_size = _vocabulary(self.compiled)
        self._long_after = long_after
        self._inputs: Any = Inputs(self._request, self.compiled)
        self._cache: Any = self._made_cache(pages is not None)
        self.filled = 0
        self._long = False
        self._sound = True
        """False while the state is being changed: what stopped half way is not to be used."""

    def _made_cache(self, in_pages: bool) -> Cache:
        if in_pages:
            return Pages(self._request, self._inputs, self.compiled)
        return State(self._request, self._inputs)

    def checked(self, tokens: Sequence[int]) -> Ids:
        """Token ids as the graph takes them. Raises `BadRequest` for ids outside the vocabulary."""
        return checked_ids(tokens, self.vocab_size)

    def rows_at_once(self, most_bytes: int) -> int:
        """Positions whose logits are computed in one call, in at most so much memory."""
        return int(min(CHUNK, max(1, most_bytes // (4 * self.vocab_size))))

    def usable(self, count: int, total: int) -> int:
        """How many of the first `count` positions in the cache serve a sequence of `total` tokens; none where longrope
        turns that one otherwise (as edgecore's oracle, and transformers)."""
        _ = self._open
        if not self._sound or self._long != self._is_long(total):
            return 0
        whole: int = self.filled if count >= self.filled else self._cache.whole(count)
        return whole

    def append(self, ids: Ids, keep: int, chunk: int = CHUNK) -> NDArray[np.float32]:
        """Forgets all but the first `keep` positions, appends `ids`; a view of the last one's logits, (vocab,), valid
        until the next call."""
        total = keep + len(ids)
        self.truncate(keep)
        self._long = self._is_long(total)
        for start in range(0, len(ids), chunk):
            logits = self.run(ids[start : start + chunk], 1, total)
        row: NDArray[np.float32] = logits[-1]
        return row

    def run(self, ids: Ids, rows: int, total: int) -> NDArray[np.float32]:
        """Appends at most `CHUNK` tokens of a sequence that is to have `total`; a view of the logits of at least the
        last `rows`, (n, vocab), valid until the next call."""
        end = self.filled + len(ids)
        decoy = self._is_long(total) and end <= self._long_after
        """One token more, as if it stood where the long sequence begins: attention is causal, so nothing sees it but
        the graph's choice of frequencies. It is forgotten at once."""
        positions = np.arange(self.filled, end, dtype=np.int64)
        if decoy:
            ids, positions = np.append(ids, 0), np.append(positions, self._long_after)
        request, self._sound = self._open, False
        try:
            self._cache.give(ids, positions, self.filled)
            self._inputs.give(LAST, [-(rows + decoy)], np.int64)
            self._infer()
            logits: NDArray[np.float32] = request.get_output_tensor(0).data.reshape(-1, self.vocab_size)
        except RuntimeError as error:
            raise failed(error) from None
        self.filled, self._sound = end, True
        if decoy:
            logits = logits[:-1].copy()
            self._cut(end)
        return logits

    def truncate(self, count: int) -> None:
        """Forgets all but the first `count` positions, which are in the cache."""
        if count == 0 or count < self.filled:
            self._cut(count)

    def clear(self) -> None:
        self.truncate(0)
        self._long = False

    def _cut(self, count: int) -> None:
        _ = self._open
        self._sound = False
        try:
            self._cache.cut(count)
        except RuntimeError as error:
            raise failed(error) from None
        self.filled, self._sound = count, True

    def _is_long(self, total: int) -> bool:
        return 0 < self._long_after < total

    def _infer(self) -> None:
        """Not `infer`: on one thread OpenVINO 2026.4 loses what fails there, and answers what was before."""
        self._request.start_async()
        self._request.wait()

    @property
    def _open(self) -> Any:
        if self._request is None:
            raise BadRequest("the session is closed")
        return self._request

    @property
    def request(self) -> Any:
        """The `InferRequest`. Raises `BadRequest` once closed."""
        return self._open

    def placement(self) -> Placement:
        """Where it runs; after `close`, where it ran when last asked."""
        if self._request is not None:
            self._placement = placement_of(self.compiled, self._request, self._assigned)
        return self._placement

    def close(self) -> None:
        """Gives back weights and cache; the compiled model still says what it was."""
        self._request = self._inputs = self._cache = None
        self.compiled = None


def slice_hidden(model: ov.Model, axis: int = 1) -> bool:
    """Cuts what enters the head's product to the last positions, by the new input `LAST`; they run along `axis`.
    False, and the model as it was, where the product is not found."""
    node = model.get_results()[0].input_value(0).get_node()
    while node.get_type_name() in _PASSED:
        node = node.input_value(0).get_node()
    if node.get_type_name() != "MatMul" or node.input_value(0).get_partial_shape().rank.get_length() != 3:
        return False
    last = ops.parameter([1], np.int64, name=LAST)
    last.output(0).set_names({LAST})
    end = ops.constant(np.array([np.iinfo(np.int64).max]))
    one, along = ops.constant(np.array([1], np.int64)), ops.constant(np.array([axis], np.int64))
    cut = ops.slice(node.input_value(0), last, end, one, along)
    node.input(0).replace_source_output(cut.output(0))
    model.add_parameters([last])
    model.validate_nodes_and_infer_types()
    return True


def failed(error: RuntimeError) -> EdgecoreError:
    """What stopped a computation, typed."""
    words = " ".join(str(error).split())[-400:]
    if "is busy" in words:
        return BadRequest("the session computes already, in another thread", supported="one thread at a time")
    if "alloc" in words or "memory" in words.lower():
        return DoesNotFit(f"OpenVINO ran out of memory: {words}", hint="a smaller -c, or kv_cache=u8")
    return EdgecoreError(f"OpenVINO could not compute: {words}")


def _check(model: ov.Model, xml: Path) -> None:
    names = {name for port in model.inputs for name in port.get_names()}
    unknown = [port.any_name for port in model.inputs if not port.get_names() & set(INPUTS)]
    if "input_ids" not in names or unknown or not model.get_variables():
        why = f"inputs {', '.join(sorted(names))}" if unknown or "input_ids" not in names else "no KV cache as state"
        raise UnsupportedModel(
            f"{xml}: not a language model's stateful graph: {why}",
            supported=f"inputs {', '.join(INPUTS)}, one output, a KV cache as state",
            hint="edgecore convert MODEL --to openvino",
        )


_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "u8": 1}


def _check_room(model: ov.Model, length: int, precision: str) -> None:
    """The cache grows as it is used: what can never fit is refused now. A state is (batch, heads, positions, size)."""
    shapes = [variable.info.data_shape for variable in model.get_variables()]
    elements = sum(shape[1].get_max_length() * shape[3].get_max_length() for shape in shapes if len(shape) == 4)
    needed, there = elements * length * _BYTES.get(precision, 2), usable_memory()[0]
    if needed > there:
        raise DoesNotFit(
            f"a KV cache of {length} tokens in {precision} takes {needed / 2**30:.1f} GiB of {there / 2**30:.1f}",
            supported=f"up to {length * there // needed} tokens, without the model itself",
            hint="a smaller -c, or -O kv_cache=u8",
        )


def _vocabulary(compiled: Any) -> int:
    size = compiled.output(0).get_partial_shape()[-1]
    if size.is_dynamic:
        raise UnsupportedModel("the graph does not say how many logits a position has")
    return int(size.get_length())
