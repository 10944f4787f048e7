"""Backend-specific options: declared as data by verb, so that `-O key=value` is checked before any work.

A key that is not declared, a value of the wrong type, outside its range or not among its choices is an error
that names what is. Resolved options enter the artifact's id.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from edgecore.contract.errors import BadRequest

Value = bool | int | float | str
OPTION_TYPES = ("bool", "int", "float", "str")
_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


@dataclass(frozen=True, slots=True)
class Option:
    """One option of one verb."""

    name: str
    type: str
    """One of `OPTION_TYPES`."""
    default: Value | None = None
    """The value when the user gives none; None lets the backend decide."""
    choices: tuple[Value, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    help: str = ""
    task: str = ""
    """`text` or `tensor`: models of the other task have no such option; empty where all have it."""
    precisions: tuple[str, ...] = ()
    """Of `quantize`: the precisions that have it; empty where all do."""

    def concerns(self, task: str | None, precision: str | None) -> bool:
        """Whether models of a task have it on the way to a precision; None: any."""
        return (task is None or self.task in ("", task)) and (
            precision is None or not self.precisions or precision in self.precisions
        )

    def parse(self, text: Value) -> Value:
        """`text` as this option's type. Raises `BadRequest` where it is not one."""
        value = self._typed(text)
        if self.choices and value not in self.choices:
            raise self._bad(text, "one of " + ", ".join(map(str, self.choices)))
        if isinstance(value, int | float) and not isinstance(value, bool):
            if self.minimum is not None and value < self.minimum:
                raise self._bad(text, f"at least {self.minimum:g}")
            if self.maximum is not None and value > self.maximum:
                raise self._bad(text, f"at most {self.maximum:g}")
        return value

    def _typed(self, given: Value) -> Value:
        text = str(given).strip()
        try:
            if self.type == "int":
                return int(text)
            if self.type == "float":
                number = float(text)
                if not math.isfinite(number):
                    raise ValueError
                return number
        except ValueError:
            raise self._bad(given, f"a value of type {self.type}") from None
        if self.type == "bool":
            if text.lower() not in _TRUE | _FALSE:
                raise self._bad(given, "true or false")
            return text.lower() in _TRUE
        return text

    def _bad(self, given: Value, accepted: str) -> BadRequest:
        return BadRequest(f"option {self.name}={given}: not accepted", supported=f"{self.name}: {accepted}")


def resolve(
    declared: Iterable[Option],
    given: Mapping[str, Value],
    verb: str,
    backend: str,
    task: str | None = None,
    precision: str | None = None,
) -> dict[str, Value]:
    """Every declared option of the task and precision with its given or default value, by name; options without either
    are left out. None: of any.

    Raises `BadRequest` for an unknown key, naming the nearest known one and all that exist, and for one of another task
    or precision.
    """
    options = list(declared)
    known = {option.name: option for option in options if option.concerns(task, precision)}
    foreign = {option.name: option for option in options if option.name not in known}
    for key in given:
        if key in foreign:
            other = foreign[key]
            whose, this = (
                (f"{other.task} models", f"a {task} model")
                if not other.concerns(task, None)
                else (", ".join(other.precisions), str(precision))
            )
            raise BadRequest(
                f"option {key!r} of backend {backend!r} is for {whose}, and this is {this}",
                supported=", ".join(known) or f"no options at all for {verb} of {this}",
                hint=f"edgecore backends {backend}",
            )
        if key not in known:
            near = get_close_matches(key, known, 1)
            raise BadRequest(
                f"backend {backend!r} has no option {key!r} for {verb}"
                + (f"; did you mean {near[0]!r}?" if near else ""),
                supported=", ".join(known) or "no options at all for this verb",
                hint=f"edgecore backends {backend}",
            )
    values = {name: option.parse(given[name]) if name in given else option.default for name, option in known.items()}
    return {name: value for name, value in values.items() if value is not None}
