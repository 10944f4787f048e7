"""Attention over a cache that is the model's state, in the shape that OpenVINO fuses.

The CPU plugin makes one operation of cache and attention, and openvino_genai's paged attention replaces both, only if
past and new keys meet in Concat([Gather(ReadValue, beam_idx), new]), go through Unsqueeze, Broadcast and Reshape where
query heads share them, and nothing else looks at any of these nodes. So lengths are taken from the inputs' shapes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from openvino import Node, Type
from openvino import opset13 as ops

from edgecore.checkpoint import Decoder
from edgecore_openvino.nodes import f32, i32, i64

_MASKED = -65504.0
"""Added to the scores of positions that are not seen. Finite: a row of padding alone would become NaN."""


@dataclass
class Attention:
    """What the layers share: masks by window, and the assignments that end the graph."""

    decoder: Decoder
    input_ids: Node
    attention_mask: Node
    beam_idx: Node
    assigns: list[Node] = field(default_factory=list)
    _masks: dict[int, Node] = field(default_factory=dict)

    def attend(self, layer: int, q: Node, k: Node, v: Node) -> Node:
        """(batch, tokens, query_size) from q (batch, heads, tokens, head_dim) and this call's k and v, of kv_heads."""
        d = self.decoder
        keys, values = self._shared(self._cached(layer, "key", k)), self._shared(self._cached(layer, "value", v))
        mask = self._mask(d.layer_window(layer))
        if d.attention_softcap:
            mixed = self._capped(q, keys, values, mask)
        else:
            mixed = ops.scaled_dot_product_attention(q, keys, values, mask, f32(d.attention_scale))
        return ops.reshape(ops.transpose(mixed, i64([0, 2, 1, 3])), i64([0, 0, d.query_size]), True)

    def _capped(self, q: Node, keys: Node, values: Node, mask: Node) -> Node:
        """Written out: OpenVINO's attention operation has no soft cap, so these layers are not fused."""
        scores = ops.multiply(ops.matmul(q, keys, False, True), f32(self.decoder.attention_scale))
        capped = ops.add(soft_capped(scores, self.decoder.attention_softcap), mask)
        return ops.matmul(ops.softmax(capped, -1), values, False, False)

    def _cached(self, layer: int, kind: str, new: Node) -> Node:
        d = self.decoder
        name = f"past_key_values.{layer}.{kind}present.{layer}.{kind}"
        empty = ops.concat([_dimension(self.input_ids, [0]), i64([d.kv_heads, 0, d.head_dim])], 0)
        past = ops.read_value(ops.broadcast(f32(0), empty), name, Type.f32, [-1, d.kv_heads, -1, d.head_dim])
        joined = ops.concat([ops.gather(past, self.beam_idx, i64(0)), new], -2)
        self.assigns.append(ops.assign(joined, name))
        return joined

    def _shared(self, cached: Node) -> Node:
        """A key/value head repeated for each query head of its run."""
        d = self.decoder
        groups = d.heads // d.kv_heads
        if groups == 1:
            return cached
        apart = ops.unsqueeze(cached, i64([2]))
        repeated = ops.broadcast(apart, i64([1, 1, groups, 1, 1]), broadcast_spec="BIDIRECTIONAL")
        return ops.reshape(repeated, i64([0, d.heads, -1, d.head_dim]), True)

    def _mask(self, window: int) -> Node:
        """(batch, 1, tokens, total), 0 or `_MASKED`."""
        if window not in self._masks:
            self._masks[window] = self._made_mask(window)
        return self._masks[window]

    def _made_mask(self, window: int) -> Node:
        total = _dimension(self.attention_mask, 1)
        tokens = _dimension(self.input_ids, 1)
        key = ops.unsqueeze(ops.range(i64(0), total, i64(1), "i64"), i64([0, 1, 2]))
        at = ops.unsqueeze(ops.range(ops.subtract(total, tokens), total, i64(1), "i64"), i64([0, 1, 3]))
        past = ops.less_equal(key, at)
        filled = ops.unsqueeze(ops.convert(self.attention_mask, "boolean"), i64([1, 2]))
        if not window:
            return _scores(ops.bitwise_and(past, filled))
        # openvino_genai's paged attention knows a window by this chain, which is gpt-oss's of transformers, down to
        # conditions that say the same twice and a slice that takes all.
        near = ops.bitwise_and(past, ops.greater(key, ops.add(at, i64(-window))))
        seen = ops.bitwise_and(filled, ops.bitwise_and(near, past))
        twice = ops.bitwise_and(seen, filled)
        whole = ops.broadcast(twice, ops.shape_of(twice), broadcast_spec="BIDIRECTIONAL")
        return ops.slice(_scores(whole), i64([0]), ops.unsqueeze(total, i64([0])), i64([1]), i64([3]))


def soft_capped(x: Node, cap: float) -> Node:
    return ops.multiply(ops.tanh(ops.divide(x, f32(cap))), f32(cap))


def _scores(seen: Node) -> Node:
    return ops.select(seen, f32(0), f32(_MASKED))


def _dimension(of: Node, axis: int | list[int]) -> Node:
    return ops.gather(ops.shape_of(of), i64(axis), i32(0))
