"""Rotary positions as ONNX Runtime takes them: tables of cosines and sines, a row a position.

Its attention turns queries and keys itself, at the positions that follow the cache. Where it cannot, an operation
before it does: for heads of sizes that it refuses, and for longrope, which has two tables, one after the other, and
turns a call whose sequence is long by the second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from edgecore.checkpoint import Decoder, Rope, RopeScaling
from edgecore_onnxruntime.nodes import MICROSOFT, Graph

_PIECE = 4096
"""Positions computed at once: their angles are float64."""
_SIZES = 16
"""GroupQueryAttention turns heads of multiples of it, and such a part of each."""


@dataclass(frozen=True, slots=True)
class Turns:
    """Names of the tables, (rows, dim/2) each, and of the row of each position of a call."""

    cos: str
    sin: str
    dim: int
    rows: str = ""
    """Empty where attention turns what it gets."""

    def rotate(self, graph: Graph, x: str, heads: int, head_dim: int) -> str:
        """(batch, tokens, heads * head_dim): the first `dim` elements of each head turn, i with i + dim/2."""
        if not self.rows:
            return x
        part: dict[str, Any] = {} if self.dim == head_dim else {"rotary_embedding_dim": self.dim}
        inputs = [x, self.rows, self.cos, self.sin]
        return graph.op("RotaryEmbedding", *inputs, domain=MICROSOFT, num_heads=heads, **part)


def turns_of(graph: Graph, decoder: Decoder, context: int) -> dict[Rope, Turns]:
    """By rotary embedding: layers with a window may have another. context: positions that the tables have."""
    ropes = dict.fromkeys(decoder.layer_rope(layer) for layer in range(decoder.layers))
    return {rope: _turns(graph, rope, f"{n or ''}", context, decoder.head_dim) for n, rope in enumerate(ropes)}


def _turns(graph: Graph, rope: Rope, number: str, context: int, head_dim: int) -> Turns:
    tables, rows = [(rope.frequencies(), context)], ""
    long = rope.scaling is RopeScaling.LONGROPE and context > rope.original_context
    if long:
        tables = [(rope.frequencies(), rope.original_context), (rope.frequencies(context), context)]
    if long or head_dim % _SIZES or rope.dim % _SIZES:
        rows = _rows(graph, rope.original_context if long else 0)
    cos, sin = (np.empty((sum(count for _, count in tables), rope.dim // 2), np.float32) for _ in range(2))
    start = 0
    for frequencies, count in tables:
        for first in range(0, count, _PIECE):
            angles = np.arange(first, min(first + _PIECE, count))[:, None] * frequencies
            place = slice(start + first, start + first + len(angles))
            cos[place], sin[place] = np.cos(angles) * rope.attention_factor, np.sin(angles) * rope.attention_factor
        start += count
    return Turns(graph.constant(f"cos_cache{number}", cos), graph.constant(f"sin_cache{number}", sin), rope.dim, rows)


def _rows(graph: Graph, border: int) -> str:
    """(batch, tokens) the row of each position; where the mask is longer than `border`, of the second table.

    Zeros at the mask's end say that a text will be that long, so that its beginning is turned by the second too; in a
    batch they fill up shorter texts.
    """
    tokens = graph.op("Shape", "input_ids", start=1, end=2)
    filled = graph.op("ReduceSum", "attention_mask", graph.i64(1))
    first = graph.op("Max", graph.op("Sub", filled, tokens), graph.i64(0))
    if border:
        total = graph.op("Shape", "attention_mask", start=1, end=2)
        long = graph.op("Cast", graph.op("Greater", total, graph.i64(border)), to=TensorProto.INT64)
        first = graph.op("Add", first, graph.op("Mul", long, graph.i64(border)))
    zero, one = (graph.constant(f"i64/scalar {value}", np.asarray(value, np.int64)) for value in (0, 1))
    return graph.op("Add", first, graph.op("Range", zero, graph.op("Squeeze", tokens), one))
