"""What each precision of a text model asks of NNCF, and what the options may change of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgecore.contract import BadRequest, UnsupportedPrecision, Value

METHODS = ("awq", "scale_estimation", "gptq")
"""Methods that look at activations: NNCF's first two, of which AWQ can do without, and gptq.py."""
MOST_GROUP = 1 << 16
LEAST_GROUP = 16
"""Smaller groups cost more bits in scales than they save, and kernels do not know them."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the matrices are stored. Names are NNCF's."""

    mode: str
    group_size: int = -1
    """Neighbours in a row that share a scale; -1: the whole row."""
    ratio: float = 1.0
    """Share of the layers' weights in `mode`; the rest, the most sensitive matrices, are in `backup`."""
    backup: str = "int8_asym"
    """Type of embedding and output head, of what `ratio` leaves, and of rows that no group divides."""
    all_layers: bool = False
    """Embedding and output head too are in `mode`."""
    awq: bool = False
    scale_estimation: bool = False
    gptq: bool = False

    @property
    def calibrated(self) -> bool:
        """Needs a text."""
        return self.scale_estimation or self.gptq


RECIPES: Mapping[str, Recipe] = {
    "int8_asym": Recipe("int8_asym"),
    "int8_sym": Recipe("int8_sym", backup="int8_sym"),
    "int4_asym": Recipe("int4_asym", 64),
    "int4_sym": Recipe("int4_sym", 64),
    "nf4": Recipe("nf4", 64),
    "mxfp4": Recipe("mxfp4", 32),
    "nvfp4": Recipe("nvfp4", 16),
}
WITH_TEXT = ("int4_asym", "int4_sym")
"""Precisions for which a calibration text means GPTQ, where the user does not choose otherwise."""
FIXED: Mapping[str, tuple[str, ...]] = {
    "int8_asym": ("group_size", "ratio", "backup", "all_layers", *METHODS, "self_calibration"),
    "int8_sym": ("group_size", "ratio", "backup", "all_layers", *METHODS, "self_calibration"),
    "nf4": ("gptq",),
    "mxfp4": ("group_size", *METHODS, "self_calibration"),
    "nvfp4": ("group_size", *METHODS, "self_calibration"),
}
"""Options that a precision does not have."""


def recipe(precision: str, options: Mapping[str, Value], calibration: bool) -> Recipe:
    """The recipe of `precision` with the user's options. Raises `UnsupportedPrecision`, `BadRequest`."""
    if precision not in RECIPES:
        raise UnsupportedPrecision(f"quantize does not make {precision!r}", supported=", ".join(RECIPES))
    chosen: dict[str, Any] = {n: v for n, v in options.items() if n in Recipe.__slots__}
    given = [*chosen, *(["self_calibration"] if options.get("self_calibration") else [])]
    if fixed := [name for name in given if name in FIXED.get(precision, ())]:
        free = [name for name in Recipe.__slots__ if name not in ("mode", *FIXED[precision])]
        raise BadRequest(
            f"{precision} has no option {fixed[0]}", supported=", ".join(free) or "no options that change the type"
        )
    _check_group(chosen.get("group_size"))
    if calibration and precision in WITH_TEXT and chosen.get("ratio", 1) == 1 and not chosen.keys() & set(METHODS):
        chosen["gptq"] = True
    found = replace(RECIPES[precision], **chosen)
    if found.calibrated and not calibration:
        raise BadRequest(
            "scale estimation and GPTQ measure activations, and no text was given to measure them on",
            supported="awq without a text",
            hint="the same command with --calibration FILE.txt, or with -O self_calibration=true",
        )
    if found.gptq and (found.awq or found.scale_estimation or found.ratio < 1):
        raise BadRequest(
            "gptq goes with no other method and no ratio: it searches for scales itself and rounds all of the layers",
            supported="gptq alone, or awq and scale_estimation with a ratio",
        )
    return found


def group_of(columns: int, asked: int) -> int:
    """Columns that share a scale where `asked` were asked for: the largest power of two that divides, as NNCF adjusts
    it; 0 where that is less than `LEAST_GROUP`."""
    if asked == -1 or columns % asked == 0:
        return columns if asked == -1 else asked
    largest = columns & -columns
    return largest if largest >= LEAST_GROUP else 0


def _check_group(size: Value | None) -> None:
    if size is not None and size != -1 and (not LEAST_GROUP <= int(size) <= MOST_GROUP or int(size) & (int(size) - 1)):
        supported = f"-1 (a whole row) or a power of two from {LEAST_GROUP} to {MOST_GROUP}"
        raise BadRequest(f"group_size={size}", supported=supported)
