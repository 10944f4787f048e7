"""What each precision of a text model is, in MLX's words, and what the options may change of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from edgecore.contract import BadRequest, UnsupportedPrecision, Value
from edgecore_mlx import mixed

AFFINE = "affine"
GROUPS: Mapping[str, tuple[int, ...]] = {AFFINE: (32, 64, 128), "mxfp4": (32,), "mxfp8": (32,), "nvfp4": (16,)}
"""Neighbours in a row that share a scale, by mode."""
RTN, MSE, GPTQ = "rtn", "mse", "gptq"
LEARNED = ("dwq", "awq", "mlx_gptq", "dynamic")
"""mlx-lm's own, in learned.py."""
ALGORITHMS = (RTN, MSE, GPTQ, *LEARNED)
WITH_TEXT = (GPTQ, *LEARNED)
"""Algorithms that look at activations."""
WITHOUT_TEXT = ("q8", "mxfp8")
"""Precisions that lose too little to make up for."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How one matrix is stored."""

    bits: int
    group_size: int
    mode: str = AFFINE

    def __str__(self) -> str:
        return f"{self.bits} bits in groups of {self.group_size}, {self.mode}"

    def config(self) -> dict[str, Any]:
        """As config.json has it under `quantization`, for all and by module path."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the matrices are stored."""

    bits: int
    group_size: int = 64
    """Neighbours in a row that share a scale, where it divides the row."""
    mode: str = AFFINE
    algorithm: str = MSE
    embedding: int | None = None
    """Bits of embedding and output head, affine; 0 leaves them, None: as the layers."""
    mixed: str = ""
    """One of mlx-lm's recipes, by which some matrices have more bits."""
    layers: int = 0
    """Of the model, which those recipes count."""

    @property
    def packing(self) -> Packing:
        """What config.json says of all matrices that it does not name."""
        return Packing(self.bits, self.group_size, self.mode)

    def plan(self, path: str, shape: tuple[int, ...]) -> Packing | None:
        """Of the matrix at a module's path (`model.layers.0.mlp.down_proj`), (rows, columns); None leaves it as it
        was: what is no matrix, what the recipe leaves out, and rows that no group divides."""
        if len(shape) != 2:
            return None
        outside = not any(part.isdigit() for part in path.split("."))
        if outside and self.embedding is not None:
            return grouped(shape[1], Packing(self.embedding, max(self.group_size, GROUPS[AFFINE][0])))
        bits = mixed.bits_of(self.mixed, path, self.layers) if self.mixed else self.bits
        return grouped(shape[1], Packing(bits, self.group_size, self.mode))


def grouped(columns: int, wanted: Packing) -> Packing | None:
    """`wanted` with the largest group, up to its own, that divides a row; None where none does, or for no bits."""
    for size in reversed(GROUPS[wanted.mode]):
        if wanted.bits and size <= wanted.group_size and columns % size == 0:
            return replace(wanted, group_size=size)
    return None


RECIPES: Mapping[str, Recipe] = {
    "q2": Recipe(2, embedding=6),
    "q3": Recipe(3, embedding=6),
    "q4": Recipe(4),
    "q5": Recipe(5),
    "q6": Recipe(6),
    "q8": Recipe(8),
    "mxfp4": Recipe(4, 32, "mxfp4", embedding=6),
    "mxfp8": Recipe(8, 32, "mxfp8"),
    "nvfp4": Recipe(4, 16, "nvfp4", embedding=6),
    **{name: Recipe(few, mixed=name) for name, (few, _) in mixed.BITS.items()},
}
EMBEDDING: Mapping[str, int | None] = {"layers": None, "none": 0} | {f"q{bits}": bits for bits in (2, 3, 4, 5, 6, 8)}
"""Choices of the option of that name."""
OPTION_OF: Mapping[str, str] = {"learning_rate": "dwq", "high_bits": "dynamic", "target_bpw": "dynamic"}
"""Options that one algorithm has; where none is chosen they choose it."""
_OPTIONS = ("group_size", "algorithm", "embedding")


def recipe(precision: str, options: Mapping[str, Value], calibration: bool, layers: int = 0) -> Recipe:
    """The recipe of `precision` with the user's options, for a model of so many layers. Raises `UnsupportedPrecision`,
    `BadRequest`."""
    if precision not in RECIPES:
        raise UnsupportedPrecision(f"quantize does not make {precision!r}", supported=", ".join(RECIPES))
    plain = RECIPES[precision]
    chosen: dict[str, Any] = {name: value for name, value in options.items() if name in _OPTIONS}
    if "embedding" in chosen:
        chosen["embedding"] = EMBEDDING[str(chosen["embedding"])]
    if "group_size" in chosen and chosen["group_size"] not in GROUPS[plain.mode]:
        sizes = ", ".join(map(str, GROUPS[plain.mode]))
        raise BadRequest(f"group_size={chosen['group_size']} for {precision}", supported=sizes)
    meant = {whose for name, whose in OPTION_OF.items() if name in options}
    if "algorithm" not in chosen and len(meant) == 1:
        chosen["algorithm"] = meant.pop()
    elif calibration and precision not in WITHOUT_TEXT and "algorithm" not in chosen:
        chosen["algorithm"] = GPTQ
    found = replace(plain, layers=layers, **chosen)
    if found.algorithm in WITH_TEXT and precision in WITHOUT_TEXT:
        raise BadRequest(
            f"{precision} has no {found.algorithm}: rounding loses too little to make up for", supported=f"{RTN}, {MSE}"
        )
    if found.algorithm in WITH_TEXT and not calibration:
        raise BadRequest(
            f"{found.algorithm} measures activations, and no text was given to measure them on",
            supported=f"{RTN}, {MSE} without a text",
            hint="the same command with --calibration FILE.txt, or with -O self_calibration=true",
        )
    if foreign := [name for name, whose in OPTION_OF.items() if name in options and whose != found.algorithm]:
        whose = OPTION_OF[foreign[0]]
        raise BadRequest(f"{foreign[0]} is for {whose}, not for {found.algorithm}", supported=f"algorithm={whose}")
    return found
