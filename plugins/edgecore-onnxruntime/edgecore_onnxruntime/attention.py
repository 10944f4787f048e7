"""Attention over a cache that the caller keeps: one operation of ONNX Runtime's a layer, which turns, caches and mixes.

GroupQueryAttention writes the new keys behind the past ones in place where past and present are one buffer, and copies
the past where they are two.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import TensorProto

from edgecore.checkpoint import Decoder
from edgecore_onnxruntime.nodes import MICROSOFT, Graph
from edgecore_onnxruntime.rope import turns_of


@dataclass
class Attention:
    """What the layers share: the lengths that every layer is told, and the tables of rotary positions."""

    graph: Graph
    decoder: Decoder
    context: int

    def __post_init__(self) -> None:
        g = self.graph
        total = g.op("Shape", "attention_mask", start=1, end=2)
        filled = g.op("ReduceSum", "attention_mask", g.i64(1), keepdims=0)
        self._last = g.op("Cast", g.op("Sub", filled, g.i64(1)), to=TensorProto.INT32, name="seqlens_k")
        self._total = g.op("Cast", g.op("Squeeze", total), to=TensorProto.INT32, name="total_sequence_length")
        self._turns = turns_of(g, self.decoder, self.context)

    def attend(self, layer: int, q: str, k: str, v: str) -> str:
        """(batch, tokens, query_size) from this call's q, k and v, (batch, tokens, their heads * head_dim)."""
        g, d = self.graph, self.decoder
        turns = self._turns[d.layer_rope(layer)]
        kinds = ("key", "value")
        past = [g.input(f"past_key_values.{layer}.{kind}", TensorProto.FLOAT, self._cache("past")) for kind in kinds]
        present = [g.output(f"present.{layer}.{kind}", TensorProto.FLOAT, self._cache("total")) for kind in kinds]
        name = f"model.layers.{layer}.self_attn"
        q, k = turns.rotate(g, q, d.heads, d.head_dim), turns.rotate(g, k, d.kv_heads, d.head_dim)
        inputs = [q, k, v, *past, self._last, self._total]
        if not turns.rows:
            inputs += [turns.cos, turns.sin]
        return g.op(
            "GroupQueryAttention", *inputs, name=name, outputs=[f"{name}/out", *present], domain=MICROSOFT,
            num_heads=d.heads, kv_num_heads=d.kv_heads, scale=d.attention_scale, softcap=d.attention_softcap,
            local_window_size=d.layer_window(layer) or -1, do_rotary=int(not turns.rows), rotary_interleaved=0,
        )  # fmt: skip

    def _cache(self, length: str) -> list[int | str]:
        return ["batch", self.decoder.kv_heads, f"{length}_length", self.decoder.head_dim]
