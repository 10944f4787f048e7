"""What each precision of a text model on a CPU is, and what the options may change of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgecore.contract import BadRequest, UnsupportedPrecision, Value
from edgecore_onnxruntime import nbits

GPTQ = "gptq"
ALGORITHMS = ("rtn", "mse", "k_quant", GPTQ)
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LEAST_BLOCK, MOST_BLOCK = 16, 256
MOST_BITS = 1.24
"""Times the nominal bits; the core refuses more than 1.25."""
LEVELS = (0, 1, 4)
"""Of accuracy: 2 and 3, float16 and bfloat16, ONNX Runtime computes in float32 on x86-64 without a word."""
NAMES = ("block_size", "symmetric", "algorithm", "embedding", "wide", "accuracy_level", "self_calibration")
"""Options of the recipe."""
WITH_TEXT = ("int4",)
"""Precisions for which a calibration text means GPTQ, where the user does not choose otherwise."""
FIXED: Mapping[str, tuple[str, ...]] = {"int8": ("wide", "self_calibration")}
"""Options that a precision does not have."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the matrices are stored, and computed with."""

    bits: int
    block_size: int = 32
    """Neighbours in a row that share a scale."""
    symmetric: bool = False
    """No zero points: the middle level is zero. Of matrices in `bits`; those with more have none anyway."""
    algorithm: str = "mse"
    embedding: int = 8
    """Bits of embedding and output head; 0 leaves them."""
    wide: tuple[str, ...] = ()
    """Projections that have 8 bits."""
    accuracy_level: int = 4
    """How kernels compute: 1 in float32, 4 with activations rounded to 8 bits, a scale a block."""

    def symmetric_of(self, name: str) -> bool:
        return self.symmetric or self.bits_of(name) > self.bits

    def bits_of(self, name: str) -> int:
        """Of a matrix by its canonical name."""
        if ".layers." not in name:
            return self.embedding
        return 8 if any(f".{projection}." in name for projection in self.wide) else self.bits


RECIPES: Mapping[str, Recipe] = {
    "int8": Recipe(8, symmetric=True, embedding=8),
    "int4": Recipe(4, embedding=4, wide=("v_proj",)),
}


def recipe(precision: str, options: Mapping[str, Value], calibration: bool) -> Recipe:
    """The recipe of `precision` with the user's options. Raises `UnsupportedPrecision`, `BadRequest`."""
    if precision not in RECIPES:
        raise UnsupportedPrecision(f"quantize does not make {precision!r}", supported=", ".join(RECIPES))
    chosen: dict[str, Any] = {name: value for name, value in options.items() if name in NAMES}
    if fixed := [name for name in chosen if name in FIXED.get(precision, ())]:
        free = [name for name in NAMES if name not in FIXED[precision]]
        raise BadRequest(f"{precision} has no option {fixed[0]}", supported=", ".join(free))
    chosen.pop("self_calibration", None)
    if "wide" in chosen:
        chosen["wide"] = _projections(str(chosen["wide"]))
    if "embedding" in chosen:
        chosen["embedding"] = {"int4": 4, "int8": 8, "none": 0}[str(chosen["embedding"])]
    _check_block(chosen.get("block_size"))
    if chosen.get("accuracy_level", LEVELS[0]) not in LEVELS:
        raise BadRequest(f"accuracy_level={chosen['accuracy_level']}: a CPU has no such kernels", supported="0, 1, 4")
    if calibration and precision in WITH_TEXT and "algorithm" not in chosen:
        chosen["algorithm"] = GPTQ
    found = replace(RECIPES[precision], **chosen)
    if found.algorithm == GPTQ and precision not in WITH_TEXT:
        raise BadRequest(
            f"{precision} has no gptq: rounding loses too little to make up for", supported="rtn, mse, k_quant"
        )
    if found.algorithm == GPTQ and not calibration:
        raise BadRequest(
            "gptq measures activations, and no text was given to measure them on",
            supported=f"{', '.join(name for name in ALGORITHMS if name != GPTQ)} without a text",
            hint="the same command with --calibration FILE.txt, or with -O self_calibration=true",
        )
    if found.algorithm == "k_quant" and found.symmetric:
        raise BadRequest("k_quant searches for zero points, and symmetric=true has none", supported="rtn, mse, gptq")
    return found


def affordable(found: Recipe, sizes: Mapping[str, tuple[int, int]]) -> Recipe:
    """Without wide matrices where they would make more of the layers than a precision of so many bits may.

    sizes: of the layers' matrices by name, rows and columns.
    """
    if not found.wide:
        return found
    total = sum(
        nbits.nbytes(rows, columns, block_of(columns, found.block_size), found.bits_of(name), found.symmetric_of(name))
        for name, (rows, columns) in sizes.items()
    )
    bits = 8 * total / sum(rows * columns for rows, columns in sizes.values())
    return found if bits <= MOST_BITS * found.bits else replace(found, wide=())


def block_of(columns: int, asked: int) -> int:
    """Columns that share a scale where `asked` were asked for: the largest power of two that divides them. Rows that
    not even the least divides are filled up with zeros."""
    return max(min(asked, columns & -columns), LEAST_BLOCK)


def _check_block(size: Value | None) -> None:
    if size is not None and (not LEAST_BLOCK <= int(size) <= MOST_BLOCK or int(size) & (int(size) - 1)):
        raise BadRequest(f"block_size={size}", supported=f"a power of two from {LEAST_BLOCK} to {MOST_BLOCK}")


def _projections(given: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in given.split(",") if name.strip())
    if wrong := [name for name in names if name not in PROJECTIONS]:
        raise BadRequest(f"wide={given}: {wrong[0]!r} is no projection", supported=", ".join(PROJECTIONS))
    return names
