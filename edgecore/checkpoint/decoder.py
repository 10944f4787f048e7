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
    """Tokens of the context before stretching (llama3)."""
    divisors: tuple[float, ...] = ()
    """dim/2 of them, for `RopeScaling.DIVISORS`."""

    def frequency_divisors(self) -> NDArray[np.float64]:
        """(dim/2,) what each plain frequency is divided by; all ones without scaling.

        llama3: Llama 3.1's own reference, `apply_scaling` in llama-models.
        """
        plain = self.theta ** (-np.arange(0, self.dim, 2, dtype=np.float64) / self.dim)
        match self.scaling:
            case RopeScaling.LINEAR:
                return np.full_like(plain, self.factor)
            case RopeScaling.DIVISORS:
                return np.asarray(self.divisors, np.float64)
            case RopeScaling.LLAMA3:
                turns = self.original_context * plain / (2 * math.pi)
                smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
                return 1 / ((1 - np.clip(smooth, 0, 1)) / self.factor + np.clip(smooth, 0, 1))
        return np.ones_like(plain)

    def frequencies(self) -> NDArray[np.float64]:
        """(dim/2,) radians a position."""
        plain = self.theta ** (-np.arange(0, self.dim, 2, dtype=np.float64) / self.dim)
        return np.asarray(plain / self.frequency_divisors())


@dataclass(frozen=True, slots=True)
class Decoder:
    """A stack of pre-normed blocks: RMSNorm, grouped-query attention with rotary positions, RMSNorm, gated MLP."""

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
    activation: str = "silu"
    """Of the MLP's gate."""
    attention_bias: bool = False
    """q, k, v and o projections add a bias."""
    mlp_bias: bool = False
    """gate, up and down projections add a bias."""

    @property
    def query_size(self) -> int:
        """Rows of q_proj, columns of o_proj."""
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Rows of k_proj and v_proj."""
        return self.kv_heads * self.head_dim

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that the model has, canonical name to shape, in the order of the computation."""
        hidden, ffn = self.hidden_size, self.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        for layer in range(self.layers):
            at = f"model.layers.{layer}."
            shapes[at + "input_layernorm.weight"] = (hidden,)
            for name, rows, columns, bias in (
                ("self_attn.q_proj", self.query_size, hidden, self.attention_bias),
                ("self_attn.k_proj", self.kv_size, hidden, self.attention_bias),
                ("self_attn.v_proj", self.kv_size, hidden, self.attention_bias),
                ("self_attn.o_proj", hidden, self.query_size, self.attention_bias),
                ("post_attention_layernorm", hidden, 0, False),
                ("mlp.gate_proj", ffn, hidden, self.mlp_bias),
                ("mlp.up_proj", ffn, hidden, self.mlp_bias),
                ("mlp.down_proj", hidden, ffn, self.mlp_bias),
            ):
                shapes[f"{at}{name}.weight"] = (rows, columns) if columns else (rows,)
                if bias:
                    shapes[f"{at}{name}.bias"] = (rows,)
        shapes["model.norm.weight"] = (hidden,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes
