"""The bounds that verdicts are reached with, read from one data file that a script derives (see `bounds.toml`).

Two gates. *Kernels*: the backend against the oracle on the same weights, a small fixed bound by compute precision,
since that loss is arithmetic and hardly depends on the model. *File*: a multiple of what round-to-nearest of equal bits
loses on this very model, since that loss depends on the model more than on anything else. And a floor below which a
model is garbage.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files

from edgecore.contract.precisions import Precision

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

    typical: Mapping[float, float] = field(default_factory=dict)
    """Mean KL that round-to-nearest loses on the model that the bounds come from, by bits: for what has no oracle."""

    def typical_loss(self, bits: float) -> float | None:
        """Of the nearest width at or below `bits`; 0 from 32 bits on; None where the file has no figure."""
        below = [width for width in self.typical if width <= bits]
        return 0.0 if bits >= 32 else self.typical[max(below)] if below else None

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
        typical={float(bits): float(loss) for bits, loss in data.get("typical", {}).items()},
    )


ORDER = ("f32", "f16", "bf16", "int8")
"""Compute precisions from fine to coarse."""
WORDS = {
    "int8": ("int8", "i8", "a8", "q8", "u8"),
    "bf16": ("bf16", "bfloat16"),
    "f16": ("f16", "fp16", "float16", "half"),
    "f32": ("f32", "fp32", "float32"),
}


def compute_class(stated: str, precision: Precision | None, rounds: bool = False) -> tuple[str, str]:
    """(key of `Bounds.kernels`, where it comes from): the coarser of what the session states and the weights imply.

    stated: the session's `compute` condition in the runtime's own words; the coarsest that it names counts.
    rounds: the model itself rounds activations to 8 bits (`Decoder.int8_activations`): what differs in the last bit
            before that is rounded another way, and so costs what int8 kernels do.
    Kernels commonly round activations to the width of the weights within the product (llama.cpp: to 8 bits for weights
    of up to 8 bits, to float16 or bfloat16 for such weights), and runtimes do not count that as compute precision.
    """
    named = next((key for key in reversed(ORDER) if any(word in stated.lower() for word in WORDS[key])), "")
    implied = _implied(precision, stated=bool(named))
    found = max((named, implied), key=lambda key: ORDER.index(key) if key else -1)
    if rounds and found != "f32":
        return "int8", "the model itself rounds activations to 8 bits"
    says = f"the backend states compute {stated!r}" if named else "the backend does not state its compute precision"
    return found, says if found == named else f"{says}, and {_weights(precision)} imply {found}"


def _implied(precision: Precision | None, stated: bool) -> str:
    if precision is None or precision.bits < 16:
        return "int8"
    if precision.bits >= 32:
        return "f32"
    return "bf16" if "bf" in precision.name or not stated else "f16"


def _weights(precision: Precision | None) -> str:
    return f"weights of {precision.bits:g} bits" if precision else "weights of an unknown type"
