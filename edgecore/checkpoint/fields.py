"""Headers come from anyone: a value is asked for by name, type and range, and a wrong one names its file and field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from edgecore.contract.errors import CorruptModel

MISSING: Any = object()
"""The default that means: there is no default, the field must be there."""
LARGEST = 2**31 - 1
"""No count of a real model is larger; a header that says so is wrong."""


@dataclass(frozen=True, slots=True)
class Fields:
    """A config or metadata mapping together with the file that it stands in."""

    file: Path
    values: Mapping[str, Any]
    prefix: str = ""
    """Put before every key that is asked for and reported (`llama.` in GGUF metadata)."""

    def has(self, key: str) -> bool:
        """True when the field is there and not null."""
        return self.values.get(self.prefix + key) is not None

    def integer(self, key: str, default: Any = MISSING, *, least: int = 1, most: int = LARGEST) -> int:
        """A whole number within `least` and `most`."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(key, f"{short(value)} is not a whole number")
        if not least <= value <= most:
            raise self.wrong(key, f"{short(value)} is not within {least} and {most}")
        return value

    def number(self, key: str, default: Any = MISSING, *, above: float = 0.0) -> float:
        """A finite number larger than `above`."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, f"{short(value)} is not a number")
        if not above < value < 1e30:
            raise self.wrong(key, f"{short(value)} is not a finite number above {above}")
        return float(value)

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """`count` finite numbers above 0."""
        return tuple(self._item(key, n, value).number(key) for n, value in enumerate(self._items(key, count)))

    def texts(self, key: str, count: int) -> tuple[str, ...]:
        """`count` texts."""
        return tuple(self._item(key, n, value).text(key) for n, value in enumerate(self._items(key, count)))

    def _items(self, key: str, count: int) -> list[Any]:
        value = self._get(key, MISSING)
        if not isinstance(value, list) or len(value) != count:
            raise self.wrong(key, f"{short(value)} is not a list of {count}")
        return value

    def _item(self, key: str, number: int, value: Any) -> Fields:
        if value is None:
            raise self.wrong(key, f"item {number} is null")
        return Fields(self.file, {self.prefix + key: value}, self.prefix)

    def flag(self, key: str, default: Any = MISSING) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, f"{short(value)} is neither true nor false")
        return value

    @overload
    def text(self, key: str) -> str: ...
    @overload
    def text(self, key: str, default: str) -> str: ...
    @overload
    def text(self, key: str, default: None) -> str | None: ...
    def text(self, key: str, default: Any = MISSING) -> str | None:
        value = self._get(key, default)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, f"{short(value)} is not text")
        return value

    def section(self, key: str) -> Fields | None:
        """A nested mapping, None where it is missing or null."""
        value = self.values.get(self.prefix + key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.wrong(key, f"{short(value)} is not an object")
        return Fields(self.file, value)

    def wrong(self, key: str, why: str) -> CorruptModel:
        """The error to raise: names the file and the field."""
        return CorruptModel(f"{self.file}: field {self.prefix + key!r}: {why}")

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(self.prefix + key)
        if value is not None:
            return value
        if default is MISSING:
            raise self.wrong(key, "is missing")
        return default


def short(value: object, longest: int = 60) -> str:
    """`repr`, cut: what an error quotes from a file is never longer than an error should be."""
    if isinstance(value, str) and len(value) > longest:
        value = value[:longest]
        return repr(value)[:longest] + "..."
    text = repr(value)
    return text if len(text) <= longest else text[: longest - 3] + "..."
