"""The neutral model's computation in OpenVINO's operations: one function a part, top to bottom like the paper's figure.

Weights are parameters here, under their canonical names: ir_file.py makes constants of them when it writes the file,
so that a graph never holds a weight. Families differ in what `Decoder` says, and in nothing else.

What OpenVINO is to fuse (RMS, RoPE, attention with its cache, FullyConnected) is written in the shape that its passes
look for; test_openvino_graph.py counts that they found it.
"""

from __future__ import annotations

from collections.abc import Iterable

from openvino import Model, Node, PartialShape, Type
from openvino import op as operation
from openvino import opset13 as ops

from edgecore.checkpoint import Activation, Decoder
from edgecore_openvino.attention import Attention, soft_capped
from edgecore_openvino.nodes import f32, i64, name_the_rest
from edgecore_openvino.rope import Turns, rotate, turns_of

TYPES = {"f32": Type.f32, "f16": Type.f16, "bf16": Type.bf16}


def build(decoder: Decoder, precision: str) -> Model:
    """input_ids, attention_mask, position_ids int64 (batch, tokens; the mask all so far), beam_idx int32 (batch)
    -> `logits` float32 (batch, tokens, vocab). The KV cache is state. Every weight is a parameter more."""
    return _Graph(decoder, TYPES[precision]).model()


class _Graph:
    def __init__(self, decoder: Decoder, type: Type) -> None:
        self.decoder = decoder
        self._type = type
        self._shapes = decoder.shapes()
        self._weights: dict[str, Node] = {}
        self._parameters: list[Node] = []

    def model(self) -> Model:
        d = self.decoder
        ids = self._parameter("input_ids", Type.i64, [-1, -1])
        mask = self._parameter("attention_mask", Type.i64, [-1, -1])
        positions = self._parameter("position_ids", Type.i64, [-1, -1])
        attention = Attention(d, ids, mask, self._parameter("beam_idx", Type.i32, [-1]))
        turns = turns_of(d, positions)

        x = ops.gather(self._matrix("model.embed_tokens"), ids, i64(0))
        if d.embedding_scale != 1:
            x = ops.multiply(x, f32(d.embedding_scale))
        for layer in range(d.layers):
            at = f"model.layers.{layer}."
            x = ops.add(x, self._attention(at, layer, x, attention, turns[d.layer_rope(layer)]))
            x = ops.add(x, self._mlp(at, x))
        x = self._norm("model.norm", x)
        logits = self._product("lm_head", x, "model.embed_tokens" if d.tied else "lm_head")
        if d.logit_softcap:
            logits = soft_capped(logits, d.logit_softcap)
        logits.output(0).set_names({"logits"})
        result = ops.result(logits)
        model = Model([result], attention.assigns, self._parameters, d.family)
        name_the_rest(model)
        return model

    def _attention(self, at: str, layer: int, x: Node, attention: Attention, turns: Turns) -> Node:
        d, rope = self.decoder, self.decoder.layer_rope(layer)
        x = self._rounded(self._norm(at + "input_layernorm", x))
        q = self._heads(at + "self_attn.q_proj", x, d.heads, at + "self_attn.q_norm")
        k = self._heads(at + "self_attn.k_proj", x, d.kv_heads, at + "self_attn.k_norm")
        v = self._heads(at + "self_attn.v_proj", x, d.kv_heads)
        q, k = rotate(q, turns, rope, d.head_dim), rotate(k, turns, rope, d.head_dim)
        x = attention.attend(layer, q, k, v)
        if d.sub_norms:
            x = self._norm(at + "self_attn.attn_sub_norm", x)
        x = self._linear(at + "self_attn.o_proj", self._rounded(x))
        return self._norm(at + "post_attention_layernorm", x) if d.post_norms else x

    def _heads(self, name: str, x: Node, heads: int, norm: str = "") -> Node:
        """(batch, heads, tokens, head_dim) of a projection."""
        x = ops.reshape(self._linear(name, x), i64([0, 0, heads, self.decoder.head_dim]), True)
        if norm and self.decoder.query_key_norm:
            x = self._norm(norm, x)
        return ops.transpose(x, i64([0, 2, 1, 3]))

    def _mlp(self, at: str, x: Node) -> Node:
        d = self.decoder
        x = self._rounded(self._norm(at + d.mlp_norm, x))
        gate, up = self._linear(at + "mlp.gate_proj", x), self._linear(at + "mlp.up_proj", x)
        x = ops.multiply(_activated(gate, d.activation), up)
        if d.sub_norms:
            x = self._norm(at + "mlp.ffn_sub_norm", x)
        x = self._linear(at + "mlp.down_proj", self._rounded(x))
        return self._norm(at + "post_feedforward_layernorm", x) if d.post_norms else x

    def _norm(self, name: str, x: Node) -> Node:
        mean = ops.reduce_mean(ops.power(x, f32(2)), i64([-1]), True)
        root = ops.sqrt(ops.add(mean, f32(self.decoder.norm_epsilon)))
        normed = ops.multiply(x, ops.divide(f32(1), root))
        return _named(ops.multiply(self._vector(name + ".weight"), normed), name)

    def _rounded(self, x: Node) -> Node:
        """What enters a projection, rounded position by position to 8 bits, where the model was trained so."""
        if not self.decoder.int8_activations:
            return x
        largest = ops.maximum(ops.reduce_max(ops.absolute(x), i64([-1]), True), f32(1e-5))
        scale = ops.divide(f32(127), largest)
        return ops.divide(ops.clamp(ops.round(ops.multiply(x, scale), "half_to_even"), -128, 127), scale)

    def _linear(self, name: str, x: Node) -> Node:
        y = self._product(name, x, name)
        bias = name + ".bias"
        return ops.add(y, self._vector(bias)) if bias in self._shapes else y

    def _product(self, name: str, x: Node, matrix: str) -> Node:
        return _named(ops.matmul(x, self._matrix(matrix), False, True), name)

    def _matrix(self, name: str) -> Node:
        """As float32: the file holds the precision, the device computes in what it was told."""
        name += ".weight"
        if name not in self._weights:
            stored = self._parameter(name, self._type, self._shapes[name])
            self._weights[name] = (
                stored if self._type == Type.f32 else _named(ops.convert(stored, "f32"), f"{name}/f32")
            )
        return self._weights[name]

    def _vector(self, name: str) -> Node:
        """A norm's weights or a bias: float32 in every precision."""
        return self._parameter(name, Type.f32, self._shapes[name])

    def _parameter(self, name: str, type: Type, shape: Iterable[int]) -> Node:
        node = operation.Parameter(type, PartialShape(list(shape)))
        if name not in self._shapes:
            node.output(0).set_names({name})
        self._parameters.append(_named(node, name))
        return node


def _activated(x: Node, activation: Activation) -> Node:
    match activation:
        case Activation.SILU:
            return ops.swish(x)
        case Activation.GELU_TANH:
            return ops.gelu(x, "TANH")
        case Activation.RELU2:
            positive = ops.relu(x)
            return ops.multiply(positive, positive)


def _named(node: Node, name: str) -> Node:
    node.set_friendly_name(name)
    return node
