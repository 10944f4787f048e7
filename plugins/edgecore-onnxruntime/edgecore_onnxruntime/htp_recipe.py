"""What each precision of a text model asks of an NPU: bits of weights and of what is multiplied with them.

Hexagon multiplies 16-bit activations with weights of 8 or 4 bits, and 8-bit ones with weights of 8, giving as many bits
as it took. Everything between the products (residual stream, norms, rotary embedding, attention) stays in float16: it
costs little there, and static ranges in 16 bits lose on it what the products do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgecore.contract import BadRequest, UnsupportedPrecision, Value

WIDE = ("mlp.down_proj", "self_attn.o_proj", "lm_head")
"""Products that take and give 16 bits in every recipe. What enters down_proj is a product of two outliers: in 8 bits
SmolLM2 loses a KL of 0.55 by it alone. What o_proj gives lands in the residual stream: a third of what is lost in all
of the random families. The head: 0.02, since a tied one cannot be smoothed."""

LEAST_LEVEL = 25.0
"""In dB. Where what enters a product leaves its median channel less over a step of 16 bits, the product stays in
float16: two of SmolLM2's thirty down_proj, of whose input one token in one channel holds nearly all."""
LEVEL_OF_4_BITS = 50.0
"""The same of what a product gives: below it a matrix gets 8 bits instead of 4. With 4, HTP's products of 16-bit
activations are off by three to five steps, all to one side; with 8 by a third of one."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How products are computed."""

    weight_bits: int
    """Of the layers' matrices, each output with a scale of its own; embedding and head have 8."""
    activation_bits: int
    """Of what enters and leaves the products, by ranges measured on the calibration text."""
    smoothing: float = 0.0
    """Share of the activations' outliers that norms hand over to the matrices (SmoothQuant, arXiv 2211.10438)."""
    clearness: float = 30.0
    """Products of 8 bits whose input or output has less signal over rounding noise than this, in dB, get 16."""
    margin: float = 1.1
    """Ranges of 16 bits are wider than the calibration text needed, by this factor; those of 8 cannot afford it."""
    kv_cache: str = "float16"
    """What keys and values are kept in: `float16` or `uint8`."""
    gptq: bool = False
    """Matrices are rounded by how the text uses them, else each weight to the nearest."""

    def bits_in(self, name: str) -> int:
        """Of what the projection or head of this name takes and gives, where nothing forbids it."""
        return 16 if name.endswith(WIDE) else self.activation_bits

    def bits_of(self, name: str) -> int:
        """Of its matrix."""
        return self.weight_bits if ".layers." in name else 8


RECIPES: Mapping[str, Recipe] = {
    "a16w8": Recipe(8, 16),
    "a8w8": Recipe(8, 8, smoothing=0.7, kv_cache="uint8"),
    "a16w4": Recipe(4, 16, gptq=True),
}


def recipe(precision: str, options: Mapping[str, Value]) -> Recipe:
    """The recipe of `precision` with the user's options. Raises `UnsupportedPrecision`, `BadRequest`."""
    if precision not in RECIPES:
        raise UnsupportedPrecision(f"quantize does not make {precision!r} for an NPU", supported=", ".join(RECIPES))
    chosen: dict[str, Any] = {name: value for name, value in options.items() if name in Recipe.__slots__}
    if (algorithm := options.get("algorithm")) is not None:
        if algorithm not in ("rtn", "gptq"):
            raise BadRequest(f"algorithm={algorithm} for an NPU", supported="rtn, gptq")
        chosen["gptq"] = algorithm == "gptq"
    return replace(RECIPES[precision], **chosen)
