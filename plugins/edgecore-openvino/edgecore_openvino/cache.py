"""The KV cache of one sequence, in the two forms that OpenVINO computes attention over.

Pages: keys and values lie in tensors of ours, block by block, and each call says how many positions came before, so
forgetting some is not mentioning them. openvino_genai computes so on a CPU unless it is told otherwise.
State: the graph as it stands in the file, for devices other than the CPU and for what OpenVINO cannot rewrite into
pages (an attention with a soft cap).

Pages also because the CPU plugin of 2026.4 never frees all of a model whose attention it fused with its state: a
thread and about a megabyte stay each time one is closed (test_openvino_cache.py watches for it).
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino._offline_transformations import paged_attention_transformation

from edgecore_openvino.nodes import name_the_rest

Ids = NDArray[np.int64]
FIRST = 8
"""Blocks allocated at first; they double as the sequence grows."""


class Cache(Protocol):
    """What a network asks of either."""

    def give(self, ids: Ids, positions: Ids, filled: int) -> None:
        """Hand the request what it takes to append `ids` at `positions` to the first `filled` positions."""

    def whole(self, count: int) -> int:
        """How many of the first `count` positions bear no trace of what came after them."""

    def cut(self, count: int) -> None:
        """Forget all but the first `count` positions."""


class Inputs:
    """A request's inputs, each in one buffer for good: handed over again only when its shape is another."""

    def __init__(self, request: Any, compiled: ov.CompiledModel) -> None:
        self._request = request
        self._names = {name for port in compiled.inputs for name in port.names}
        self._buffers: dict[str, NDArray[Any]] = {}
        self._given: dict[str, tuple[int, ...]] = {}

    def give(self, name: str, values: Any, dtype: type[np.generic]) -> None:
        """Nothing happens where the graph has no such input."""
        if name not in self._names:
            return
        values = np.asarray(values, dtype)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < values.size:
            buffer = self._buffers[name] = np.empty(max(1, 2 * values.size), dtype)
            self._given.pop(name, None)
        view = buffer[: values.size].reshape(values.shape)
        view[...] = values
        if self._given.get(name) != values.shape:
            self._request.set_tensor(name, ov.Tensor(view, shared_memory=True))
            self._given[name] = values.shape


class State:
    """The cache is the plugin's own: a tensor (batch, heads, positions, head_dim) a layer for keys, one for values."""

    def __init__(self, request: Any, inputs: Inputs) -> None:
        self._request = request
        self._inputs = inputs

    def give(self, ids: Ids, positions: Ids, filled: int) -> None:
        self._inputs.give("input_ids", ids[None], np.int64)
        self._inputs.give("position_ids", positions[None], np.int64)
        self._inputs.give("attention_mask", np.ones((1, filled + len(ids))), np.int64)
        self._inputs.give("beam_idx", np.zeros(1), np.int32)

    def whole(self, count: int) -> int:
        return count

    def cut(self, count: int) -> None:
        """What is handed over is contiguous: of a view into a larger tensor the CPU plugin reads the wrong bytes when
        it stores 8 bits."""
        if count == 0:
            self._request.reset_state()
            return
        for state in self._request.query_state():
            state.state = ov.Tensor(np.ascontiguousarray(state.state.data[:, :, :count]))


class Pages:
    """Blocks of positions, used in their order: there is one sequence. A tensor is (blocks, heads, positions, ...)."""

    def __init__(self, request: Any, inputs: Inputs, compiled: ov.CompiledModel) -> None:
        self._request = request
        self._inputs = inputs
        ports = {port.any_name: port for port in compiled.inputs if is_page(port.any_name)}
        self._shapes = {name: [d.get_length() for d in list(p.partial_shape)[1:]] for name, p in ports.items()}
        self._types = {name: port.element_type for name, port in ports.items()}
        self._tensors: dict[str, ov.Tensor] = {}
        # Of keys in 8 bits a block is longer than its positions: their scales lie behind them.
        self._block = self._shapes["value_cache.0"][1]
        self._exact = all(type.is_real() for type in self._types.values())
        self._blocks = 0
        self._reserve(FIRST)

    def give(self, ids: Ids, positions: Ids, filled: int) -> None:
        end = filled + len(ids)
        blocks = -(-end // self._block)
        if blocks > self._blocks:
            self._reserve(max(blocks, 2 * self._blocks))
        self._inputs.give("input_ids", ids, np.int64)
        self._inputs.give("position_ids", positions, np.int64)
        self._inputs.give("past_lens", [filled], np.int32)
        self._inputs.give("subsequence_begins", [0, len(ids)], np.int32)
        self._inputs.give("block_indices", np.arange(blocks), np.int32)
        self._inputs.give("block_indices_begins", [0, blocks], np.int32)
        self._inputs.give("max_context_len", end, np.int32)

    def whole(self, count: int) -> int:
        """Keys of 8 bits share their scales within a block, and were rounded anew with each one that came after."""
        return count if self._exact else count // self._block * self._block

    def cut(self, count: int) -> None:
        """Nothing to do: `give` says what is there."""

    def _reserve(self, blocks: int) -> None:
        for name, rest in self._shapes.items():
            larger = ov.Tensor(self._types[name], ov.Shape([blocks, *rest]))
            if old := self._tensors.get(name):
                old.copy_to(ov.Tensor(larger, ov.Coordinate([0] * (1 + len(rest))), ov.Coordinate(old.shape)))
            self._tensors[name] = larger
            self._request.set_tensor(name, larger)
        self._blocks = blocks


def is_page(name: str) -> bool:
    return name.startswith(("key_cache.", "value_cache."))


def paged(model: ov.Model) -> ov.Model | None:
    """The stateful graph rewritten to take its cache in pages; None where OpenVINO cannot. `model` stays as it is."""
    rewritten = model.clone()
    try:
        paged_attention_transformation(rewritten)
    except RuntimeError:
        return None
    if {node.get_type_name() for node in rewritten.get_ops()} & {"ReadValue", "Assign"}:
        return None
    name_the_rest(rewritten)
    return rewritten
