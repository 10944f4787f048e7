"""Rotary positions in the shape that OpenVINO fuses into one `RoPE` operation a matrix: x * cos + rotated(x) * sin."""

from __future__ import annotations

from openvino import Node
from openvino import opset13 as ops

from edgecore.checkpoint import Decoder, Rope, RopeScaling
from edgecore_openvino.nodes import f32, i64

Turns = tuple[Node, Node]
"""Cosine and sine of every position's angles, (batch, 1, tokens, dim) each."""


def turns_of(decoder: Decoder, positions: Node) -> dict[Rope, Turns]:
    """By rotary embedding: layers with a window may have another. `positions`: int64 (batch, tokens)."""
    ropes = {decoder.layer_rope(layer) for layer in range(decoder.layers)}
    return {rope: _turns(rope, positions) for rope in sorted(ropes, key=repr)}


def _turns(rope: Rope, positions: Node) -> Turns:
    frequencies = _frequencies(rope, positions)
    row = ops.convert(ops.unsqueeze(positions, i64([1])), "f32")
    angles = ops.transpose(ops.matmul(frequencies, row, False, False), i64([0, 2, 1]))
    both = ops.concat([angles, angles], -1)
    return _factored(ops.cos(both), rope), _factored(ops.sin(both), rope)


def _frequencies(rope: Rope, positions: Node) -> Node:
    """(1, dim/2, 1) radians a position. longrope: a call turns all its positions as its last one asks for."""
    short = f32(rope.frequencies().reshape(1, -1, 1))
    if rope.scaling is not RopeScaling.LONGROPE:
        return short
    long = f32(rope.frequencies(rope.original_context + 1).reshape(1, -1, 1))
    last = ops.reduce_max(positions, i64([0, 1]), False)
    return ops.select(ops.greater_equal(last, i64(rope.original_context)), long, short)


def _factored(turn: Node, rope: Rope) -> Node:
    if rope.attention_factor != 1:
        turn = ops.multiply(turn, f32(rope.attention_factor))
    return ops.unsqueeze(turn, i64([1]))


def rotate(heads: Node, turns: Turns, rope: Rope, head_dim: int) -> Node:
    """(batch, heads, tokens, head_dim): the first `rope.dim` elements of each head turn, i with i + dim/2."""
    cos, sin = turns
    if rope.dim == head_dim:
        return _turned(heads, cos, sin, rope.dim)
    turning, rest = _elements(heads, 0, rope.dim), _elements(heads, rope.dim, head_dim)
    return ops.concat([_turned(turning, cos, sin, rope.dim), rest], -1)


def _turned(x: Node, cos: Node, sin: Node, dim: int) -> Node:
    other = ops.concat([ops.multiply(_elements(x, dim // 2, dim), f32(-1)), _elements(x, 0, dim // 2)], -1)
    return ops.add(ops.multiply(x, cos), ops.multiply(other, sin))


def _elements(x: Node, start: int, stop: int) -> Node:
    return ops.slice(x, i64([start]), i64([stop]), i64([1]), i64([3]))
