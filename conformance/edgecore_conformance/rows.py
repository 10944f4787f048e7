"""One row a check and cell, written ahead: a run that dies leaves `started`, never silence.

The file is JSON lines: `{"row": ID, "state": "started"}`, later the finished row. The last line of a row counts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from edgecore_conformance.outcomes import Outcome

FILE = "rows.jsonl"
SELECTED = "selected.json"
"""Ids of all selected rows, in order, written before the first of them runs."""


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one check in one cell."""

    row: str
    """Its id: `text.logits[family=gemma3]`."""
    check: str
    cell: Mapping[str, str]
    outcome: Outcome
    stage: str = ""
    """Where it ended, when not well: `convert`, `quantize`, `open`, `run`, `judge`."""
    message: str = ""
    """Every problem, a line each."""
    figures: tuple[Mapping[str, Any], ...] = ()
    raw: Mapping[str, str] = field(default_factory=dict)
    """Files of the observation, relative to the bundle, with their sha256."""
    seconds: float = 0.0
    proves: Mapping[str, str] = field(default_factory=dict)
    """Fields of the claims that this row speaks of."""
    exception: Mapping[str, str] = field(default_factory=dict)
    """The entry of conformance.toml that changed the outcome."""

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "outcome": self.outcome.value, "state": "finished"}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        known = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        return cls(**{**known, "outcome": Outcome(data["outcome"]), "figures": tuple(data.get("figures", ()))})


class RowFile:
    """Appends rows, each flushed to the disk before the next begins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / FILE

    def select(self, ids: Iterable[str]) -> None:
        (self.folder / SELECTED).write_text(json.dumps(list(ids), indent=1) + "\n", encoding="utf-8")

    def mend(self) -> None:
        """Takes out what a killed run or a full disk left half: lines that are no rows, and finished rows whose raw
        outputs are not whole. Those rows are run again."""
        if not self._file.is_file():
            return
        before = self._file.read_bytes()
        whole = b"".join(line + b"\n" for line in before.splitlines() if self._is_whole(line))
        if whole != before:
            made = self._file.with_suffix(".new")
            made.write_bytes(whole)
            made.replace(self._file)

    def _is_whole(self, line: bytes) -> bool:
        try:
            data = json.loads(line)
            if data.get("state") != "finished":
                return isinstance(data["row"], str)
            row = Row.from_dict(data)
            return all(hashlib.sha256((self.folder / p).read_bytes()).hexdigest() == d for p, d in row.raw.items())
        except (AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError):
            return False

    def start(self, row: str) -> None:
        self._append({"row": row, "state": "started"})

    def finish(self, row: Row) -> None:
        self._append(row.to_dict())

    def finished(self) -> dict[str, dict[str, Any]]:
        """Finished rows by id."""
        return {row["row"]: row for row in self._latest().values() if row.get("state") == "finished"}

    def complete(self) -> list[dict[str, Any]]:
        """Every selected row, in order: finished, `crashed` where it only started and the run went on or ended there,
        `missing` where it never did."""
        latest = self._latest()
        return [
            latest.get(i, {}) if latest.get(i, {}).get("state") == "finished" else _lost(i, latest)
            for i in self.selected()
        ]

    def selected(self) -> list[str]:
        ids: list[str] = json.loads((self.folder / SELECTED).read_text(encoding="utf-8"))
        return ids

    def _latest(self) -> dict[str, dict[str, Any]]:
        return {row["row"]: row for row in self._lines()}

    def _lines(self) -> Iterator[dict[str, Any]]:
        if not self._file.is_file():
            return
        for line in self._file.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the last line of a run that was killed
                continue
            if isinstance(row, dict) and isinstance(row.get("row"), str):
                yield row

    def _append(self, row: Mapping[str, Any]) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _lost(row: str, latest: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    check = row.partition("[")[0]
    if row in latest:
        lost = Row(row, check, {}, Outcome.CRASHED, message="it started, and the run ended before it did")
    else:
        lost = Row(row, check, {}, Outcome.MISSING, message="it was selected and never started")
    return lost.to_dict()
