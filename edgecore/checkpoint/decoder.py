"""What a decoder-only language model is, as numbers: every reader fills it, every target is built from it.

It is a description of the computation, not of a file: nothing here knows GGUF or Hugging Face. Families differ in the
values, and a family that computes something new adds a field here with a default that means "as Llama does".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray


class RopeScaling(StrEnum):
    """How rotary frequencies are stretched for contexts longer than the first training's."""

    NONE = "none"
    LINEAR = "linear"
    """Every position is divided by `factor`."""
    LLAMA3 = "llama3"
    """Low frequencies are divided by `factor`, high ones kept, those between interpolated."""
    DIVISORS = "divisors"
    """Each frequency has a divisor of its own: what a GGUF file keeps of any such scheme."""
    LONGROPE = "longrope"
    """As `DIVISORS`, and a second set, `long_divisors`, for sequences longer than `original_context`."""


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding: pair i of a head, elements i and i + dim/2, turns by `position * frequencies()[i]`."""

    theta: float
    dim: int
    """Elements of a head that turn, from its first."""
    scaling: RopeScaling = RopeScaling.NONE
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 0
    """Tokens of the context before stretching (llama3, longrope)."""
    divisors: tuple[float, ...] = ()
    """dim/2 of them, for `RopeScaling.DIVISORS` and for `LONGROPE`'s short sequences."""
    long_divisors: tuple[float, ...] = ()
    """dim/2 of them, for `LONGROPE`'s long sequences."""
    attention_factor: float = 1.0
    """Cosines and sines are multiplied by it (longrope)."""

    def is_long(self, positions: int) -> bool:
        """Whether a sequence of so many tokens takes the long divisors: all of its positions do, or none."""
        return self.scaling is RopeScaling.LONGROPE and positions > self.original_context

    def frequency_divisors(self, positions: int = 0) -> NDArray[np.float64]:
        """(dim/2,) what each plain frequency is divided by in a sequence of so many tokens; all ones without scaling.

        llama3: Llama 3.1's own reference, `apply_scaling` in llama-models. longrope: arXiv 2402.13753.
        """
        plain = self._plain()
        match self.scaling:
            case RopeScaling.LINEAR:
                return np.full_like(plain, self.factor)
            case RopeScaling.DIVISORS | RopeScaling.LONGROPE:
                return np.asarray(self.long_divisors if self.is_long(positions) else self.divisors, np.float64)
            case RopeScaling.LLAMA3:
                turns = self.original_context * plain / (2 * math.pi)
                smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
                return 1 / ((1 - np.clip(smooth, 0, 1)) / self.factor + np.clip(smooth, 0, 1))
        return np.ones_like(plain)

    def frequencies(self, positions: int = 0) -> NDArray[np.float64]:
        """(dim/2,) radians a position, in a sequence of so many tokens."""
        return np.asarray(self._plain() / self.frequency_divisors(positions))

    def _plain(self) -> NDArray[np.float64]:
        return np.asarray(self.theta ** (-np.arange(0, self.dim, 2, dtype=np.float64) / self.dim))


class Activation(StrEnum):
    """What the MLP's gate goes through."""

    SILU = "silu"
    """x * sigmoid(x)"""
    GELU_TANH = "gelu_tanh"
    """GELU by its tanh approximation: x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))"""
    RELU2 = "relu2"
    """max(x, 0)^2"""


@dataclass(frozen=True, slots=True)
class Decoder:
    """A stack of pre-normed blocks: RMSNorm, grouped-query attention with rotary positions, RMSNorm, gated MLP.

    Norm weights are what a normed value is multiplied by: where a family stores an offset from one, it is added on the
    way in. Fields after `context_length` default to what Llama does.
    """

    family: str
    vocab_size: int
    """Rows of the embedding table: the length of a row of logits. Tokenizers may know fewer ids."""
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    """Key/value heads: `heads` for multi-head attention, 1 for multi-query, between for grouped-query."""
    head_dim: int
    """Need not be hidden_size / heads."""
    intermediate_size: int
    norm_epsilon: float
    rope: Rope
    tied: bool
    """The output matrix is the embedding table."""
    context_length: int
    """Tokens it was trained for."""
    activation: Activation = Activation.SILU
    attention_bias: bool = False
    """q, k and v projections add a bias."""
    output_bias: bool = False
    """The o projection adds a bias."""
    mlp_bias: bool = False
    """gate, up and down projections add a bias."""
    query_key_norm: bool = False
    """Each head of q and k is normed over its head_dim elements, before it turns."""
    post_norms: bool = False
    """What attention and MLP give is normed once more before it is added (`post_attention_layernorm` and
    `post_feedforward_layernorm`; the norm before the MLP is then `pre_feedforward_layernorm`)."""
    sub_norms: bool = False
    """Norms before the o projection (`self_attn.attn_sub_norm`) and the down projection (`mlp.ffn_sub_norm`)."""
    int8_activations: bool = False
    """What enters a projection of a layer is rounded, position by position, to 8 bits: symmetric, by its largest
    magnitude. BitNet is trained so (arXiv 2402.17764)."""
    embedding_scale: float = 1.0
    """Embeddings are multiplied by it; the output matrix is not."""
    query_scale: float = 0.0
    """What q . k is multiplied by; 0 stands for head_dim ** -0.5."""
    attention_softcap: float = 0.0
    """Scores s become cap * tanh(s / cap) before the mask; 0: not."""
    logit_softcap: float = 0.0
    """The same for logits."""
    window: int = 0
    """Positions that a windowed layer sees, its own included; 0: there are no windowed layers."""
    windowed: tuple[bool, ...] = ()
    """By layer; empty means all of them where `window` is not 0."""
    local_rope: Rope | None = None
    """Rotary embedding of windowed layers, where it is another."""

    @property
    def query_size(self) -> int:
        """Rows of q_proj, columns of o_proj."""
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Rows of k_proj and v_proj."""
        return self.kv_heads * self.head_dim

    @property
    def attention_scale(self) -> float:
        """What q . k is multiplied by."""
        return self.query_scale or self.head_dim**-0.5

    @property
    def mlp_norm(self) -> str:
        """Name of the norm before the MLP: with `post_norms`, Llama's name stands for the one after attention."""
        return "pre_feedforward_layernorm" if self.post_norms else "post_attention_layernorm"

    def layer_window(self, layer: int) -> int:
        """Positions that this layer sees, its own included; 0: all."""
        return self.window if not self.windowed or self.windowed[layer] else 0

    def layer_rope(self, layer: int) -> Rope:
        return self.local_rope if self.local_rope is not None and self.layer_window(layer) else self.rope

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that the model has, canonical name to shape, in the order of the computation."""
        hidden, ffn = self.hidden_size, self.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        for layer in range(self.layers):
            at = f"model.layers.{layer}."
            for name, rows, columns, there, bias in (
                ("input_layernorm", hidden, 0, True, False),
                ("self_attn.q_proj", self.query_size, hidden, True, self.attention_bias),
                ("self_attn.k_proj", self.kv_size, hidden, True, self.attention_bias),
                ("self_attn.v_proj", self.kv_size, hidden, True, self.attention_bias),
                ("self_attn.q_norm", self.head_dim, 0, self.query_key_norm, False),
                ("self_attn.k_norm", self.head_dim, 0, self.query_key_norm, False),
                ("self_attn.attn_sub_norm", self.query_size, 0, self.sub_norms, False),
                ("self_attn.o_proj", hidden, self.query_size, True, self.output_bias),
                ("post_attention_layernorm", hidden, 0, True, False),
                ("pre_feedforward_layernorm", hidden, 0, self.post_norms, False),
                ("mlp.gate_proj", ffn, hidden, True, self.mlp_bias),
                ("mlp.up_proj", ffn, hidden, True, self.mlp_bias),
                ("mlp.ffn_sub_norm", ffn, 0, self.sub_norms, False),
                ("mlp.down_proj", hidden, ffn, True, self.mlp_bias),
                ("post_feedforward_layernorm", hidden, 0, self.post_norms, False),
            ):
                if there:
                    shapes[f"{at}{name}.weight"] = (rows, columns) if columns else (rows,)
                if bias:
                    shapes[f"{at}{name}.bias"] = (rows,)
        shapes["model.norm.weight"] = (hidden,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes
