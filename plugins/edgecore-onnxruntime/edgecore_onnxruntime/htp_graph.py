"""The neutral model's computation as an NPU takes it: fixed shapes, few operators, one function a part.

    inputs      embeddings (tokens, hidden)            rows that the session looked up in the table, scaled
                mask (1, 1, tokens, context + tokens)  0, or far below where a position must not look; also mask_window
                cos, sin (1, 1, tokens, dim/2)         of the positions' angles; also cos_local, sin_local
                past_key_values.I.key (1, kv_heads, head_dim, context), .value (1, kv_heads, context, head_dim)
    outputs     logits (tokens, vocab)
                present.I.key (1, kv_heads, head_dim, tokens), .value (1, kv_heads, tokens, head_dim)

Why so, for Hexagon's HTP through QNN:
- Only the new keys and values come out, and the session puts them into the cache that goes in: a cache that came out
  whole would cross the border between CPU and NPU twice a token. Past and new keys are multiplied apart and their
  scores joined, so that the cache is not copied on the NPU either; keys lie transposed, as the product needs them.
- Query heads that share a key/value head are rows of one product: no key is repeated.
- Angles and masks are inputs: no arithmetic on positions is left, and longrope, windows and padding are the session's.
- The embedding table stays with the session, which reads a row a token: a Gather on the NPU would need it in another
  layout than a tied head does, so twice. `Gemm` with transB takes matrices as they lie in a checkpoint.
- Norms are `RMSNormalization`: x * x written out overflows float16. Of more than two axes HTP answers garbage.
- What would be larger than float16 holds is kept `SMALLER`, and the norm that it enters takes it as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgecore.checkpoint import Activation, Decoder
from edgecore_onnxruntime.nodes import TYPES, Graph

EMBEDDING = "model.embed_tokens.weight"
SMALLER = 64.0
"""By what values are divided that real models let grow beyond 65504. A power of two: no digit is lost."""
_NUMPY = {"f32": np.float32, "f16": np.float16}


def build(decoder: Decoder, tokens: int, context: int, precision: str = "f16") -> Graph:
    """The graph that takes `tokens` at once after at most `context` others.

    precision: of weights and of all that is computed: `f16`, or `f32` for whoever calibrates and quantizes.
    """
    return _Parts(decoder, tokens, context, precision).graph()


def hidden_scale(decoder: Decoder) -> float:
    """What hidden states are divided by between the layers: Gemma 3's reach 104,000 in its smallest size."""
    return SMALLER if decoder.post_norms else 1.0


def rotary_names(decoder: Decoder, layer: int) -> tuple[str, str]:
    """The inputs that turn this layer's heads."""
    local = decoder.layer_rope(layer) is not decoder.rope
    return ("cos_local", "sin_local") if local else ("cos", "sin")


def mask_name(decoder: Decoder, layer: int) -> str:
    """The input that hides positions from this layer."""
    return "mask_window" if decoder.layer_window(layer) else "mask"


@dataclass
class _Parts:
    decoder: Decoder
    tokens: int
    context: int
    type: str
    _graph: Graph = field(default_factory=Graph)
    _inputs: set[str] = field(default_factory=set)

    def graph(self) -> Graph:
        d = self.decoder
        x = self._input("embeddings", self.tokens, d.hidden_size)
        for layer in range(d.layers):
            at = f"model.layers.{layer}."
            x = self._add(x, self._attention(at, layer, x))
            x = self._add(x, self._mlp(at, x))
        x = self._norm("model.norm", x, hidden_scale(d))
        capped = bool(d.logit_softcap)
        logits = self._linear("lm_head", x, EMBEDDING if d.tied else "lm_head.weight", to="" if capped else "logits")
        if capped:
            self._soft_capped(logits, d.logit_softcap, to="logits")
        self._output("logits", self.tokens, d.vocab_size)
        self._graph.outputs.insert(0, self._graph.outputs.pop())
        return self._graph

    def _attention(self, at: str, layer: int, x: str) -> str:
        d, at = self.decoder, at + "self_attn."
        x = self._rounded(self._norm(at.removesuffix("self_attn.") + "input_layernorm", x, hidden_scale(d)))
        q = self._heads(at + "q_proj", x, d.heads, at + "q_norm")
        k = self._heads(at + "k_proj", x, d.kv_heads, at + "k_norm")
        v = self._heads(at + "v_proj", x, d.kv_heads, to=f"present.{layer}.value")
        q, k = self._rotated(layer, q), self._rotated(layer, k)
        k = self._transposed(k, [1, d.kv_heads, d.head_dim, self.tokens], [0, 1, 3, 2], to=f"present.{layer}.key")
        self._output(f"present.{layer}.key", 1, d.kv_heads, d.head_dim, self.tokens)
        self._output(f"present.{layer}.value", 1, d.kv_heads, self.tokens, d.head_dim)
        x = self._attended(layer, q, k, v)
        if d.sub_norms:
            x = self._norm(at + "attn_sub_norm", x)
        x = self._linear(at + "o_proj", self._rounded(x))
        return self._after(at.removesuffix("self_attn.") + "post_attention_layernorm", x)

    def _attended(self, layer: int, q: str, k: str, v: str) -> str:
        """(tokens, query_size) of the past in the cache and of this call's own keys and values."""
        d, count = self.decoder, self.tokens
        groups, seen = d.heads // d.kv_heads, self.context + count
        past_k = self._input(f"past_key_values.{layer}.key", 1, d.kv_heads, d.head_dim, self.context)
        past_v = self._input(f"past_key_values.{layer}.value", 1, d.kv_heads, self.context, d.head_dim)
        mask = self._input(mask_name(d, layer), 1, 1, count, seen)
        cap = d.attention_softcap
        # The smaller factor first: float16 has few digits above 2048 and none above 65504.
        q = self._mul(q, self._number(d.attention_scale / (cap or 1)))
        q = self._reshaped(q, [1, d.kv_heads, groups * count, d.head_dim])
        products = [self._op("MatMul", q, past_k), self._op("MatMul", q, k)]
        scores = self._reshaped(self._op("Concat", *products, axis=-1), [1, d.heads, count, seen])
        if cap:
            scores = self._mul(self._op("Tanh", scores), self._number(cap))
        shares = self._op("Softmax", self._add(scores, mask), axis=-1)
        shares = self._reshaped(shares, [1, d.kv_heads, groups * count, seen])
        past, new = self._split(shares, self.context, count)
        mixed = self._add(self._op("MatMul", past, past_v), self._op("MatMul", new, v))
        mixed = self._reshaped(mixed, [1, d.heads, count, d.head_dim])
        joined = self._transposed(mixed, [1, count, d.heads, d.head_dim], [0, 2, 1, 3])
        return self._reshaped(joined, [count, d.query_size])

    def _heads(self, name: str, x: str, heads: int, norm: str = "", to: str = "") -> str:
        """(1, heads, tokens, head_dim) of a projection."""
        d, x = self.decoder, self._linear(name, x)
        if norm and d.query_key_norm:
            x = self._norm(norm, self._reshaped(x, [self.tokens * heads, d.head_dim]))
        x = self._reshaped(x, [1, self.tokens, heads, d.head_dim])
        return self._transposed(x, [1, heads, self.tokens, d.head_dim], [0, 2, 1, 3], to)

    def _rotated(self, layer: int, x: str) -> str:
        """The first `rope.dim` elements of each head turned, i with i + dim/2."""
        d, half = self.decoder, self.decoder.layer_rope(layer).dim // 2
        cos, sin = (self._input(name, 1, 1, self.tokens, half) for name in rotary_names(d, layer))
        rest = d.head_dim - 2 * half
        a, b, *kept = self._split(x, half, half, *([rest] if rest else []))
        turned = [
            self._op("Sub", self._mul(a, cos), self._mul(b, sin)),
            self._add(self._mul(b, cos), self._mul(a, sin)),
        ]
        return self._op("Concat", *turned, *kept, axis=-1)

    def _mlp(self, at: str, x: str) -> str:
        d = self.decoder
        x = self._rounded(self._norm(at + d.mlp_norm, x, hidden_scale(d)))
        gate, up = self._linear(at + "mlp.gate_proj", x), self._linear(at + "mlp.up_proj", x)
        x = self._gated(gate, up)
        if d.sub_norms:
            divided = SMALLER if d.activation is Activation.RELU2 else 1.0
            x = self._norm(at + "mlp.ffn_sub_norm", x, divided)
        x = self._linear(at + "mlp.down_proj", self._rounded(x))
        return self._after(at + "post_feedforward_layernorm", x)

    def _gated(self, gate: str, up: str) -> str:
        """activation(gate) * up; of squared ReLU, `SMALLER` where a norm follows."""
        match self.decoder.activation:
            case Activation.SILU:
                # gate * sigmoid(gate) in this order alone: together, HTP makes one operation of them that errs thrice
                # as much where there are few tokens.
                return self._mul(self._mul(self._op("Sigmoid", gate), up), gate)
            case Activation.GELU_TANH:
                # As above: of Gemm and Gelu HTP makes one, which errs twice as much. The Clip lets all of float16 pass.
                gate = self._op("Clip", gate, self._number(-65504), self._number(65504))
                return self._mul(self._op("Gelu", gate, approximate="tanh"), up)
            case Activation.RELU2:
                positive = self._op("Relu", gate)
                smaller = self._mul(positive, self._number(1 / SMALLER)) if self.decoder.sub_norms else positive
                return self._mul(self._mul(smaller, positive), up)

    def _rounded(self, x: str) -> str:
        """What enters a projection, rounded position by position to 8 bits, where the model was trained so."""
        if not self.decoder.int8_activations:
            return x
        axes = self._graph.i64(-1)
        largest = self._op("ReduceMax", self._op("Abs", x), axes, keepdims=1)
        scale = self._op("Div", self._number(127), self._op("Max", largest, self._number(1e-5)))
        return self._op("Div", self._op("Round", self._mul(x, scale)), scale)

    def _after(self, name: str, x: str) -> str:
        """What a block adds to the hidden states: normed, where the family does so, and divided as they are."""
        scale = hidden_scale(self.decoder)
        x = self._norm(name, x) if self.decoder.post_norms else x
        return x if scale == 1 else self._mul(x, self._number(1 / scale))

    def _norm(self, name: str, x: str, divided: float = 1.0) -> str:
        """Of an x that was divided by so much, the norm is that of x itself."""
        epsilon = self.decoder.norm_epsilon / divided**2
        return self._op("RMSNormalization", x, self._weight(name + ".weight"), name=name, axis=-1, epsilon=epsilon)

    def _linear(self, name: str, x: str, matrix: str = "", to: str = "") -> str:
        inputs = [x, self._weight(matrix or name + ".weight")]
        if name + ".bias" in self._shapes:
            inputs.append(self._weight(name + ".bias"))
        return self._op("Gemm", *inputs, name=name, to=to, transB=1)

    def _soft_capped(self, x: str, cap: float, to: str) -> str:
        return self._op("Mul", self._op("Tanh", self._mul(x, self._number(1 / cap))), self._number(cap), to=to)

    def _transposed(self, x: str, shape: Sequence[int], order: Sequence[int], to: str = "") -> str:
        """Of one token it is a reshape: there are no two axes to change places."""
        return self._reshaped(x, shape, to) if self.tokens == 1 else self._op("Transpose", x, to=to, perm=order)

    def _reshaped(self, x: str, shape: Sequence[int], to: str = "") -> str:
        return self._op("Reshape", x, self._graph.i64(*shape), to=to)

    def _split(self, x: str, *sizes: int) -> list[str]:
        name = self._graph.numbered("Split")
        outputs = [f"{name}/{i}" for i in range(len(sizes))]
        self._graph.op("Split", x, self._graph.i64(*sizes), name=name, outputs=outputs, axis=-1)
        return outputs

    def _add(self, a: str, b: str) -> str:
        return self._op("Add", a, b)

    def _mul(self, a: str, b: str) -> str:
        return self._op("Mul", a, b)

    def _op(self, kind: str, *inputs: str, name: str = "", to: str = "", **attributes: Any) -> str:
        return self._graph.op(kind, *inputs, name=name, outputs=[to] if to else (), **attributes)

    def _number(self, value: float) -> str:
        return self._graph.constant(f"{self.type}/{value!r}", np.array(value, _NUMPY[self.type]))

    def _weight(self, name: str) -> str:
        return self._graph.weight(name, self._shapes[name], self.type)

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return self.decoder.shapes()

    def _input(self, name: str, *shape: int) -> str:
        """Of inputs that several layers share, one."""
        if name not in self._inputs:
            self._inputs.add(name)
            self._graph.input(name, TYPES[self.type], shape)
        return name

    def _output(self, name: str, *shape: int) -> None:
        self._graph.output(name, TYPES[self.type], shape)
