"""What was seen, apart from what it means: a check observes on the device, and judges anywhere, any number of times.

Observations are kept as raw outputs in the bundle; `verify` judges them again, offline.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgecore_conformance.outcomes import Outcome

LARGEST = 2**30
"""Bytes of all arrays of an observation: whoever verifies a bundle of somebody else unpacks them."""


@dataclass(slots=True)
class Observation:
    """Everything that a judgement may use, and nothing else: JSON values, and arrays by name."""

    facts: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)

    def save(self, stem: Path) -> list[Path]:
        """Writes STEM.json and, where there are arrays, STEM.npz; answers the files. A fact that is no finite number
        becomes its word, `nan` or `inf`: as a figure it misses every bound, and nothing can be computed from it."""
        stem.parent.mkdir(parents=True, exist_ok=True)
        files = [stem.with_name(stem.name + ".json")]
        text = json.dumps(_written(self.facts), indent=1, sort_keys=True, allow_nan=False)
        files[0].write_text(text + "\n", encoding="utf-8")
        if self.arrays:
            files.append(stem.with_name(stem.name + ".npz"))
            with files[1].open("wb") as file:
                np.savez_compressed(file, **self.arrays)  # type: ignore[arg-type]
        return files

    @classmethod
    def load(cls, stem: Path) -> Self:
        """The inverse of `save`. Raises `OSError`, `ValueError`. Never unpickles."""
        facts = json.loads(stem.with_name(stem.name + ".json").read_text(encoding="utf-8"))
        arrays: dict[str, NDArray[Any]] = {}
        packed = stem.with_name(stem.name + ".npz")
        if packed.is_file():
            with zipfile.ZipFile(packed) as archive:
                if (size := sum(i.file_size for i in archive.infolist())) > LARGEST:
                    raise ValueError(f"{packed.name} unpacks to {size} bytes, and {LARGEST} are the most")
            with np.load(packed, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        return cls(facts, arrays)


def _written(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else repr(float(value))
        case Mapping():
            return {k: _written(v) for k, v in value.items()}
        case list() | tuple():
            return [_written(v) for v in value]
    return value


@dataclass(frozen=True, slots=True)
class Figure:
    """A number beside its bound."""

    name: str
    value: float | None
    """None stands for one that is not finite."""
    bound: float | None = None
    """None where the figure only informs."""
    relation: str = "<="
    """How value must stand to bound: `<=`, `>=` or `==`."""
    unit: str = ""
    origin: str = ""
    """Where the bound comes from."""

    @property
    def holds(self) -> bool:
        if self.bound is None:
            return True
        if self.value is None:
            return False
        match self.relation:
            case "<=":
                return self.value <= self.bound
            case ">=":
                return self.value >= self.bound
        return self.value == self.bound

    def __str__(self) -> str:
        value = "not finite" if self.value is None else f"{self.value:.4g}"
        if self.bound is None:
            return f"{self.name} {value} {self.unit}".rstrip()
        stands = "holds" if self.holds else "misses"
        return f"{self.name} {value} {stands} {self.relation} {self.bound:.4g} {self.unit}".rstrip()


@dataclass(slots=True)
class Judgement:
    """Figures and problems, gathered; the outcome follows from them."""

    figures: list[Figure] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    claimed: Outcome | None = None
    """Set by a check where neither passed nor failed is the word: `unsupported`, `unplaced`, `fell_back` ..."""

    def figure(
        self,
        name: str,
        value: float,
        bound: float | None = None,
        relation: str = "<=",
        unit: str = "",
        origin: str = "",
    ) -> None:
        """Records a figure; one that misses its bound is a problem."""
        number = float(value)
        made = Figure(name, number if math.isfinite(number) else None, bound, relation, unit, origin)
        self.figures.append(made)
        if not made.holds:
            self.problems.append(str(made))

    def expect(self, true: bool, otherwise: str) -> None:
        """Records a problem unless `true`. The words say what was seen and what should have been."""
        if not true:
            self.problems.append(otherwise)

    @property
    def outcome(self) -> Outcome:
        if self.problems:
            return Outcome.FAILED
        return self.claimed or Outcome.PASSED

    def to_dict(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome.value,
            "problems": list(self.problems),
            "figures": [{n: getattr(f, n) for n in Figure.__dataclass_fields__} for f in self.figures],
        }


def error_of(error: BaseException) -> Mapping[str, str]:
    """An exception as facts: its type's name and its words."""
    return {"error": type(error).__name__, "what": str(getattr(error, "what", error))[:2000]}
