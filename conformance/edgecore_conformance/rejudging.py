"""A row's verdict, computed again from its raw outputs by the check's own judgement: what `verify` is about."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgecore.contract.errors import EdgecoreError
from edgecore_conformance.bundle import Bundle
from edgecore_conformance.check import Cell, Check
from edgecore_conformance.expectations import Circumstances, Expectations, excused
from edgecore_conformance.header import FILE as HEADER
from edgecore_conformance.header import model_of, reduced
from edgecore_conformance.known import Known
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.outcomes import Outcome
from edgecore_conformance.rows import Row
from edgecore_conformance.running import RAW, file_name, inapplicable, judged, manifest_for, one_thread, unstamped

RELATIVE, OF_BOUND, ABSOLUTE = 0.01, 0.01, 1e-9
"""How far a figure may be from the recomputed one: the oracle's arithmetic differs in the last digits by machine."""
BOUND = 1e-3
"""The same for a bound, relative: some follow from the fixture through the oracle."""
_JUDGED = (Outcome.PASSED, Outcome.UNSUPPORTED, Outcome.UNPLACED, Outcome.XPASS)
"""Outcomes that only a judgement gives, so that outputs must be there."""


def around(header: Mapping[str, Any]) -> Circumstances:
    """What entries of conformance.toml may ask for, as the header tells it."""
    platform = f"{header['host']['system']}-{header['host']['architecture']}".lower()
    return Circumstances(header["device"]["name"], header["level"], platform)


class Rejudging:
    """One verification's half that concerns rows; counts what it did."""

    def __init__(self, bundle: Bundle, known: Known, expectations: Expectations) -> None:
        self.bundle, self.known, self.expectations = bundle, known, expectations
        self.recomputed = 0
        self._header = hashlib.sha256((bundle.folder / HEADER).read_bytes()).hexdigest()
        self._around = around(bundle.header)
        self._model_is_here = model_of(known) == bundle.header["model"]
        self._wordless: list[str] = []
        self._modelless: list[str] = []
        self._edge: list[str] = []

    def unknown(self) -> list[str]:
        """What could not be recomputed, in words."""
        told = []
        if self._wordless:
            told.append(f"how these rows ended, which left no outputs: {_some(self._wordless)}")
        if self._modelless:
            told.append(f"whether these rows judge so: the real model is not here (--model): {_some(self._modelless)}")
        if self._edge:
            told.append(f"on which side of the bound these rows are; they lie on it: {_some(self._edge)}")
        return told

    def row(self, row: Row, check: Check, cell: Cell) -> Iterator[str]:
        """Every contradiction of a row, each beginning with its id."""
        for problem in self._row(row, check, cell):
            yield f"{row.row}: {problem}"

    def _row(self, row: Row, check: Check, cell: Cell) -> Iterator[str]:
        if row.check != check.name() or dict(row.cell) != dict(cell):
            yield f"check and cell are {row.check} {dict(row.cell)}, its id says {check.name()} {dict(cell)}"
        proves = dict(check.proves(manifest_for(check, self.known), cell))
        if dict(row.proves) != proves:
            yield f"speaks of {dict(row.proves)}, the check of {proves}"
        why = inapplicable(check, self.known)
        applies = why is None
        # A judgement may come to it as well, from outputs: that is computed again like every other.
        if (row.outcome is Outcome.NOT_APPLICABLE and not row.raw) != (not applies):
            does = "applies" if applies else "does not apply"
            yield f"is {row.outcome.value}, and the check {does} to this manifest"
            return
        if why is not None and row.message != why:
            yield f"says {row.message!r}, and does not apply for {why or 'no reason of its own'!r}"
        yield from self._exception(row)
        if not row.raw:
            if row.outcome in _JUDGED or row.figures:
                yield f"is {row.outcome.value} without raw outputs"
            elif row.outcome is Outcome.UNAVAILABLE and self.bundle.header["device"].get("available") is not False:
                yield f"is unavailable, and {HEADER} does not say that the device is"
            elif applies:
                self._wordless.append(f"{row.row} ({row.outcome.value})")
            return
        yield from self._outputs(row, check, cell)

    def _exception(self, row: Row) -> Iterator[str]:
        entry = self.expectations.find(row.check, row.cell, self._around)
        told = {n: v for n, v in row.exception.items() if n != "tries"}
        lost = row.outcome in (Outcome.CRASHED, Outcome.MISSING, Outcome.NOT_APPLICABLE)
        if told != (entry.to_dict() if entry else {}) and not (lost and not told):
            yield "its exception is not the one that the header lists for it"
        kinds = {Outcome.XFAIL: "xfail", Outcome.XPASS: "xfail", Outcome.DISABLED: "disabled"}
        if (needed := kinds.get(row.outcome)) and told.get("kind") != needed:
            yield f"is {row.outcome.value} without an exception that says so"

    def _outputs(self, row: Row, check: Check, cell: Cell) -> Iterator[str]:
        stem = f"{RAW}/{file_name(row.row)}"
        broken = False
        for path, digest in row.raw.items():
            file = self.bundle.folder / path
            if path not in (f"{stem}.json", f"{stem}.npz"):
                yield f"{path} is not where outputs of this row lie"
                broken = True
            elif not file.is_file() or file.is_symlink():
                yield f"{path} is missing"
                broken = True
            elif hashlib.sha256(file.read_bytes()).hexdigest() != digest:
                yield f"{path} is another file than the one whose digest the row has"
        if broken:
            return
        if (self.bundle.folder / f"{stem}.npz").is_file() and f"{stem}.npz" not in row.raw:
            yield f"{stem}.npz is not among the row's files"
        try:
            seen, stamp = unstamped(Observation.load(self.bundle.folder / stem))
        except Exception as error:  # whatever a forged file makes a reader raise
            yield f"raw outputs cannot be read: {type(error).__name__}: {error}"
            return
        if stamp.get("row") != row.row:
            yield f"raw outputs are of row {stamp.get('row')!r}"
        if stamp.get("header") != self._header:
            yield f"raw outputs are of a run with another {HEADER}"
        again = self._judged(check, seen, cell)
        if again is None:
            self._modelless.append(row.row)
            return
        self.recomputed += 1
        yield from self._compared(row, again)

    @one_thread
    def _judged(self, check: Check, seen: Observation, cell: Cell) -> Judgement | None:
        """None where the real model is needed and not at hand."""
        if self._model_is_here or "real" not in cell.values():
            return judged(check, seen, cell, self.known)
        again = Judgement()
        try:
            check.judge(seen, cell, self.known, again)
        except EdgecoreError:
            return None
        except Exception:  # what cannot be judged is a problem of the row's own, and `judged` says it
            return judged(check, seen, cell, self.known)
        return again

    def _compared(self, row: Row, again: Judgement) -> Iterator[str]:
        computed = again.to_dict()["figures"]
        if [f["name"] for f in row.figures] != [f["name"] for f in computed]:
            yield f"figures are {_names(row.figures)}, computed {_names(computed)}"
        for told, made in zip(row.figures, computed, strict=False):
            yield from _figure(told, made)
        edges = {str(figure) for figure, made in zip(again.figures, computed, strict=True) if _near(made)}
        # A pass is excused where only such figures failed, a failure where there is one.
        near = bool(edges) and set(again.problems) <= edges
        expected = again.outcome
        if row.exception.get("kind") == "xfail":
            expected = excused(expected)
        if row.outcome is not expected:
            if near and row.outcome in (Outcome.PASSED, Outcome.FAILED, Outcome.XFAIL, Outcome.XPASS):
                self._edge.append(row.row)
            else:
                yield f"is {row.outcome.value}, computed {expected.value}" + _why(again)
        elif _numberless(row.message) != _numberless(reduced("\n".join(again.problems))):
            yield "its message is not what the judgement says"


def _figure(told: Mapping[str, Any], made: Mapping[str, Any]) -> Iterator[str]:
    name = told["name"]
    for word in ("relation", "unit", "origin"):
        if _numberless(told[word]) != _numberless(made[word]):
            yield f"{word} of {name} is {told[word]!r}, computed {made[word]!r}"
    if not _close(told["bound"], made["bound"], BOUND * abs(made["bound"] or 0)):
        yield f"bound of {name} is {told['bound']}, computed {made['bound']}"
    room = max(RELATIVE * abs(made["value"] or 0), OF_BOUND * abs(made["bound"] or 0), ABSOLUTE)
    if made["relation"] == "==":  # counts and yes or no: no arithmetic, nothing that differs by machine
        room = 0.0
    if not _close(told["value"], made["value"], room):
        yield f"{name} is {told['value']}, computed {made['value']}"


def _close(a: float | None, b: float | None, room: float) -> bool:
    if a is None or b is None:
        return a is b
    return abs(a - b) <= room


def _near(figure: Mapping[str, Any]) -> bool:
    """Whether a figure lies so close to its bound that another machine may see it on the other side."""
    value, bound = figure["value"], figure["bound"]
    if figure["relation"] == "==":
        return False
    return value is not None and bound is not None and value != bound and abs(value - bound) <= RELATIVE * abs(bound)


def _names(figures: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(str(f["name"]) for f in figures) or "none"


def _why(again: Judgement) -> str:
    return f" ({again.problems[0]})" if again.problems else ""


def _numberless(text: str) -> str:
    """Numbers in messages differ by machine as figures do; figures are compared on their own."""
    return re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?", "#", text)


def _some(rows: Sequence[str]) -> str:
    return ", ".join(rows[:10]) + (f" and {len(rows) - 10} more" if len(rows) > 10 else "")
