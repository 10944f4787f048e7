"""What each precision of a text model on a CPU is, and what the options may change of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgecore.contract import BadRequest, UnsupportedPrecision, Value

GPTQ = "gptq"
ALGORITHMS = ("rtn", "mse", "k_quant", GPTQ)
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LEAST_BLOCK, MOST_BLOCK = 16, 256
NAMES = ("block_size", "symmetric", "algorithm", "embedding", "wide", "accuracy_level")
"""Options of the recipe."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the matrices are stored, and computed with."""

    bits: int
    block_size: int = 32
    """Neighbours in a row that share a scale."""
    symmetric: bool = False
    """No zero points: the middle level is zero."""
    algorithm: str = "mse"
    embedding: int = 8
    """Bits of embedding and output head; 0 leaves them."""
    wide: tuple[str, ...] = ()
    """Projections that have 8 bits."""
    accuracy_level: int = 4
    """How kernels compute: 1 in float32, 4 with activations rounded to 8 bits, a scale a block."""

    def bits_of(self, name: str) -> int:
        """Of a matrix by its canonical name."""
        if ".layers." not in name:
            return self.embedding
        return 8 if any(f".{projection}." in name for projection in self.wide) else self.bits


RECIPES: Mapping[str, Recipe] = {
    "int8": Recipe(8, symmetric=True, embedding=8),
    "int4": Recipe(4, embedding=4),
}


def recipe(precision: str, options: Mapping[str, Value], calibration: bool) -> Recipe:
    """The recipe of `precision` with the user's options. Raises `UnsupportedPrecision`, `BadRequest`."""
    if precision not in RECIPES:
        raise UnsupportedPrecision(f"quantize does not make {precision!r}", supported=", ".join(RECIPES))
    found = RECIPES[precision]
    chosen: dict[str, Any] = {name: value for name, value in options.items() if name in NAMES}
    if "wide" in chosen:
        chosen["wide"] = _projections(str(chosen["wide"]), found)
    if "embedding" in chosen:
        chosen["embedding"] = {"int4": 4, "int8": 8, "none": 0}[str(chosen["embedding"])]
    _check_block(chosen.get("block_size"))
    if calibration and "algorithm" not in chosen:
        chosen["algorithm"] = GPTQ
    found = replace(found, **chosen)
    if found.algorithm == GPTQ and not calibration:
        raise BadRequest(
            "gptq measures activations, and no text was given to measure them on",
            supported=f"{', '.join(name for name in ALGORITHMS if name != GPTQ)} without a text",
            hint="the same command with --calibration FILE.txt, or with -O self_calibration=true",
        )
    if found.algorithm == "k_quant" and found.symmetric:
        raise BadRequest("k_quant searches for zero points, and symmetric=true has none", supported="rtn, mse, gptq")
    return found


def block_of(columns: int, asked: int) -> int:
    """Columns that share a scale where `asked` were asked for: the largest power of two that divides them. Rows that
    not even the least divides are filled up with zeros."""
    return max(min(asked, columns & -columns), LEAST_BLOCK)


def _check_block(size: Value | None) -> None:
    if size is not None and (not LEAST_BLOCK <= int(size) <= MOST_BLOCK or int(size) & (int(size) - 1)):
        raise BadRequest(f"block_size={size}", supported=f"a power of two from {LEAST_BLOCK} to {MOST_BLOCK}")


def _projections(given: str, found: Recipe) -> tuple[str, ...]:
    names = tuple(name.strip() for name in given.split(",") if name.strip())
    if wrong := [name for name in names if name not in PROJECTIONS]:
        raise BadRequest(f"wide={given}: {wrong[0]!r} is no projection", supported=", ".join(PROJECTIONS))
    if found.bits == 8 and names:
        raise BadRequest("int8 has no option wide: all of its matrices have 8 bits", supported="int4")
    return names
