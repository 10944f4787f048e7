"""Names of precisions stay native; classes make them comparable across backends.

`q4_k_m`, `int4_sym_g64` and `a16w8` are words of their runtimes and are kept. Each belongs to a class by the
nominal weight bits of its name, and bounds on quality and size are stated by class.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from edgecore.contract.errors import UnsupportedPrecision

OVERSIZE = 1.25
"""Measured bits per weight over nominal bits, over eligible tensors, above which an artifact is refused."""


class PrecisionClass(StrEnum):
    """What a user may ask for without knowing a runtime's names."""

    ULTRA_LOW = "ultra-low"
    """1 to 2 bits a weight."""
    LOW = "low"
    """3 to 4 bits a weight."""
    MEDIUM = "medium"
    """5 to 8 bits a weight."""
    HALF = "half"
    """16 bits a weight."""
    FULL = "full"
    """32 bits a weight."""

    @classmethod
    def of_bits(cls, bits: float) -> PrecisionClass:
        """The class of a precision of `bits` nominal bits a weight."""
        for limit, member in ((2, cls.ULTRA_LOW), (4, cls.LOW), (8, cls.MEDIUM), (16, cls.HALF)):
            if bits <= limit:
                return member
        return cls.FULL


@dataclass(frozen=True, slots=True)
class Precision:
    """One precision as a manifest declares it."""

    name: str
    """The runtime's own name, lower case."""
    bits: float
    """Nominal weight bits: the number in the name, not the measured bits per weight."""
    by: str
    """The verb that makes it: `convert` (straight from the source), `quantize` (from an artifact), or `both`."""
    calibration: str = "none"
    """Whether calibration data is `none` (ignored), `optional` or `required`."""
    recommended: bool = False
    """Chosen when a user asks for the class instead of a name. One a class."""
    overhead: float = 0.0
    """Bits a weight that scales and mixed types add by design, so that the size check is fair (q4_k_m: 0.9)."""
    help: str = ""
    """One line for people."""

    @property
    def precision_class(self) -> PrecisionClass:
        return PrecisionClass.of_bits(self.bits)


def select(declared: Iterable[Precision], asked: str, backend: str, task: str | None = None) -> Precision:
    """The declared precision that `asked` names, natively or by class. Raises `UnsupportedPrecision`, in the words of
    the task whose precisions these are."""
    known = list(declared)
    wanted = asked.lower()
    for precision in known:
        if precision.name == wanted:
            return precision
    of_class = [p for p in known if p.precision_class.value == wanted]
    if of_class:
        return next((p for p in of_class if p.recommended), of_class[0])
    classes = [c.value for c in PrecisionClass if any(p.precision_class is c for p in known)]
    raise UnsupportedPrecision(
        f"backend {backend!r} has no precision {asked!r}" + (f" for {task} models" if task else ""),
        supported=", ".join([p.name for p in known] + classes),
        hint=f"edgecore backends {backend}",
    )
