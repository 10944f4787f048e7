"""The neutral model's computation in ONNX's operators: one function a part, top to bottom like the paper's figure.

Weights bear their canonical names, and so do the nodes that use them. Families differ in what `Decoder` says, and in
nothing else. Operators are those that ONNX Runtime's CPU kernels are made for; com.microsoft's are declared.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from edgecore.checkpoint import Activation, Decoder
from edgecore_onnxruntime.attention import Attention
from edgecore_onnxruntime.nodes import MICROSOFT, Graph

LAST = "edgecore_last"
"""An input with a default: how many of the last positions get logits."""
_ALL = np.iinfo(np.int64).max


def build(decoder: Decoder, precision: str, context: int) -> Graph:
    """input_ids and attention_mask int64 (batch, tokens; the mask all so far), past keys and values of every layer
    -> `logits` float32 (batch, tokens, vocab) and present keys and values. context: positions that can be turned."""
    return _Decoder(decoder, precision, context).built()


class _Decoder:
    def __init__(self, decoder: Decoder, precision: str, context: int) -> None:
        self.decoder = decoder
        self._type = precision
        self._context = context
        self._shapes = decoder.shapes()
        self._graph = Graph()

    def built(self) -> Graph:
        g, d = self._graph, self.decoder
        ids = g.input("input_ids", TensorProto.INT64, ["batch", "tokens"])
        g.input("attention_mask", TensorProto.INT64, ["batch", "total_length"])
        g.output("logits", TensorProto.FLOAT, ["batch", "tokens", d.vocab_size])
        attention = Attention(g, d, self._context)

        table = g.weight("model.embed_tokens.weight", self._shapes["model.embed_tokens.weight"], self._type)
        x = self._widened(g.op("Gather", table, ids, name="model.embed_tokens"), "model.embed_tokens/f32")
        if d.embedding_scale != 1:
            x = g.op("Mul", x, g.f32(d.embedding_scale))
        normed = self._norm("model.layers.0.input_layernorm", x)
        for layer in range(d.layers):
            at, following = f"model.layers.{layer}.", f"model.layers.{layer + 1}.input_layernorm"
            normed, x = self._added(at + d.mlp_norm, x, self._attention(at, layer, normed, attention))
            normed, x = self._added(following if layer + 1 < d.layers else "model.norm", x, self._mlp(at, normed))
        last = g.op("Neg", g.default(LAST, np.array([_ALL], np.int64)))
        logits = self._head(g.op("Slice", normed, last, g.i64(_ALL), g.i64(1)))
        if d.logit_softcap:
            logits = g.op("Mul", g.op("Tanh", g.op("Div", logits, g.f32(d.logit_softcap))), g.f32(d.logit_softcap))
        g.op("Identity", logits, outputs=["logits"])
        return g

    def _attention(self, at: str, layer: int, x: str, attention: Attention) -> str:
        d = self.decoder
        x = self._rounded(x)
        q = self._heads(at + "self_attn.q_proj", x, at + "self_attn.q_norm")
        k = self._heads(at + "self_attn.k_proj", x, at + "self_attn.k_norm")
        x = attention.attend(layer, q, k, self._linear(at + "self_attn.v_proj", x))
        if d.sub_norms:
            x = self._norm(at + "self_attn.attn_sub_norm", x)
        x = self._linear(at + "self_attn.o_proj", self._rounded(x))
        return self._norm(at + "post_attention_layernorm", x) if d.post_norms else x

    def _heads(self, name: str, x: str, norm: str) -> str:
        """A projection, each of its heads normed where the model does."""
        g, d = self._graph, self.decoder
        x = self._linear(name, x)
        if not d.query_key_norm:
            return x
        apart = g.op("Reshape", x, g.i64(0, 0, -1, d.head_dim))
        return g.op("Reshape", self._norm(norm, apart), g.i64(0, 0, -1))

    def _mlp(self, at: str, x: str) -> str:
        d = self.decoder
        x = self._rounded(x)
        gate, up = self._linear(at + "mlp.gate_proj", x), self._linear(at + "mlp.up_proj", x)
        x = self._graph.op("Mul", self._activated(gate), up)
        if d.sub_norms:
            x = self._norm(at + "mlp.ffn_sub_norm", x)
        x = self._linear(at + "mlp.down_proj", self._rounded(x))
        return self._norm(at + "post_feedforward_layernorm", x) if d.post_norms else x

    def _activated(self, x: str) -> str:
        g = self._graph
        match self.decoder.activation:
            case Activation.SILU:
                return g.op("Mul", x, g.op("Sigmoid", x))
            case Activation.GELU_TANH:
                return g.op("Gelu", x, approximate="tanh")
            case Activation.RELU2:
                positive = g.op("Relu", x)
                return g.op("Mul", positive, positive)

    def _norm(self, name: str, x: str) -> str:
        weight = self._vector(name + ".weight")
        return self._graph.op("RMSNormalization", x, weight, name=name, epsilon=self.decoder.norm_epsilon, axis=-1)

    def _added(self, norm: str, x: str, more: str) -> tuple[str, str]:
        """The sum normed, and the sum."""
        sum = f"{norm}/sum"
        normed = self._graph.op(
            "SkipSimplifiedLayerNormalization", x, more, self._vector(norm + ".weight"), name=norm,
            outputs=[f"{norm}/out", "", "", sum], domain=MICROSOFT, epsilon=self.decoder.norm_epsilon,
        )  # fmt: skip
        return normed, sum

    def _rounded(self, x: str) -> str:
        """What enters a projection, rounded position by position to 8 bits, where the model was trained so."""
        if not self.decoder.int8_activations:
            return x
        g = self._graph
        largest = g.op("Max", g.op("ReduceMax", g.op("Abs", x), g.i64(-1), keepdims=1), g.f32(1e-5))
        scale = g.op("Div", g.f32(127), largest)
        rounded = g.op("Round", g.op("Mul", x, scale))
        return g.op("Div", g.op("Clip", rounded, g.f32(-128), g.f32(127)), scale)

    def _linear(self, name: str, x: str) -> str:
        g = self._graph
        weight, bias = name + ".weight", name + ".bias"
        matrix = self._widened(g.weight(weight, self._shapes[weight], self._type, transposed=True), f"{weight}/f32")
        y = g.op("MatMul", x, matrix, name=name)
        return g.op("Add", y, self._vector(bias)) if bias in self._shapes else y

    def _head(self, x: str) -> str:
        if not self.decoder.tied:
            return self._linear("lm_head", x)
        g = self._graph
        table = self._widened("model.embed_tokens.weight", "model.embed_tokens.weight/f32")
        return g.op("MatMul", x, g.op("Transpose", table, perm=[1, 0]), name="lm_head")

    def _widened(self, x: str, name: str) -> str:
        """As float32: the file holds the precision, a CPU computes in float32."""
        return x if self._type == "f32" else self._graph.op("Cast", x, name=name, to=TensorProto.FLOAT)

    def _vector(self, name: str) -> str:
        """A norm's weights or a bias: float32 in every precision."""
        return self._graph.weight(name, self._shapes[name])
