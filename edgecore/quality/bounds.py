"""The bounds that verdicts are reached with, read from one data file that a script derives (see `bounds.toml`).

Two gates. *Kernels*: the backend against the oracle on the same weights, a small fixed bound by compute precision,
since that loss is arithmetic and hardly depends on the model. *File*: a multiple of what round-to-nearest of equal bits
loses on this very model, since that loss depends on the model more than on anything else. And a floor below which a
model is garbage.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

FILE = "quality/bounds.toml"


@dataclass(frozen=True, slots=True)
class Bounds:
    """`bounds.toml`. KL in nats."""

    kernels: Mapping[str, float]
    """Largest mean KL(oracle || backend) on the same weights, by compute precision: f32, f16, bf16, int8."""
    file_multiple: float
    """Largest mean KL that the file may lose, as a multiple of what round-to-nearest of equal bits loses."""
    file_slack: float
    """Added to it: the oracle's own float32 arithmetic, so that a baseline of zero does not forbid everything."""
    garbage_share: float
    """Share of what the reference gains from context (`divergence.ContextGain`) above which nothing useful is left."""

    def kernel(self, compute: str) -> float:
        return self.kernels[compute]


@lru_cache(maxsize=1)
def bounds() -> Bounds:
    """The shipped bounds."""
    data = tomllib.loads((files("edgecore.quality") / "bounds.toml").read_text(encoding="utf-8"))
    return Bounds(
        kernels={name: float(entry["kl_mean"]) for name, entry in data["kernels"].items()},
        file_multiple=float(data["file"]["multiple"]),
        file_slack=float(data["file"]["slack"]),
        garbage_share=float(data["garbage"]["share"]),
    )


def compute_class(stated: str, bits: float | None) -> tuple[str, str]:
    """(key of `Bounds.kernels`, where it comes from) for what a session states as its `compute` condition.

    Runtimes write it in words of their own (`f16 weights, int8 activations`); the coarsest precision that is named
    counts, because it dominates the error. Nothing stated: int8 is taken for quantized weights (CPU kernels round
    activations to 8 bits), else bf16 for 16 bits and f32 for 32.
    """
    text = stated.lower()
    for key, words in (
        ("int8", ("int8", "i8", "a8", "q8", "u8")),
        ("bf16", ("bf16", "bfloat16")),
        ("f16", ("f16", "fp16", "float16", "half")),
        ("f32", ("f32", "fp32", "float32")),
    ):
        if any(word in text for word in words):
            return key, f"the backend states compute {stated!r}"
    assumed = "int8" if bits is None or bits < 16 else "bf16" if bits < 32 else "f32"
    return assumed, f"the backend does not state its compute precision; {assumed} is taken"
