"""One run of the suite: a backend, a device, a level, a folder. Selects rows, runs them, writes the evidence."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgecore import registry
from edgecore.contract.errors import BadRequest, DeviceUnavailable
from edgecore_conformance.bench import Bench
from edgecore_conformance.bundle import read
from edgecore_conformance.check import Cell, Check, all_checks, row_id
from edgecore_conformance.expectations import LEVELS, Circumstances, Expectations, read_expectations, today
from edgecore_conformance.header import FILE as HEADER
from edgecore_conformance.header import MANIFEST, check_same, header
from edgecore_conformance.known import Known
from edgecore_conformance.outcomes import Outcome
from edgecore_conformance.rows import SELECTED, Row, RowFile
from edgecore_conformance.running import manifest_for, rows_of, run_row

SESSIONS = "sessions.json"
"""When the run was begun and gone on with."""


class Run:
    """See the module. Raises `BackendUnavailable`, `DeviceUnavailable`, `BadRequest` when it cannot begin."""

    def __init__(
        self,
        backend: str,
        device: str = "",
        level: str = "quick",
        *,
        out: Path | None = None,
        resume: bool = False,
        seed: int = 0,
        model: Path | None = None,
        expectations: bool = True,
    ) -> None:
        if not backend:
            raise BadRequest(
                "which backend?", supported=", ".join(e.name for e in registry.usable()), hint="--backend NAME"
            )
        if level not in LEVELS:
            raise BadRequest(f"there is no level {level!r}", supported=", ".join(LEVELS))
        self.entry = registry.find(backend)
        manifest = self.entry.ready_manifest
        device = device or manifest.devices[0].name
        if manifest.device(device) is None:
            raise DeviceUnavailable(
                f"backend {manifest.name!r} has no device {device!r}",
                supported=", ".join(d.name for d in manifest.devices),
            )
        self.known = Known(manifest, device, level, seed, model)
        self._temporary = tempfile.TemporaryDirectory(prefix="edgecore-conformance-")
        self.folder = out or Path(self._temporary.name) / "bundle"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rows = RowFile(self.folder)
        begun = (self.folder / SELECTED).is_file() and (self.folder / HEADER).is_file()
        self._resumed = resume and begun
        # A run that was killed in its first moment leaves no more than these.
        rest = {f.name for f in self.folder.iterdir()} - ({HEADER, MANIFEST} if resume else set())
        if rest and not self._resumed:
            raise BadRequest(
                f"{self.folder} is not empty" + ("" if begun else f", and holds no run that was begun: {min(rest)}"),
                supported="a new folder",
                hint="the same with --resume" if begun else "the same with another --out",
            )
        if self._resumed:
            self.rows.mend()
        self._kept = self.rows.finished() if self._resumed else {}
        self.bench = Bench(self.entry, self.known, Path(self._temporary.name) / "work")
        self.expectations = read_expectations(self.entry) if expectations else Expectations(())
        if self.expectations.entries:
            rows = [(c.name(), cell) for c, cell in self.pairs()]
            self.expectations.hold(rows, Circumstances.of(self), today())
        self.begun = datetime.now(UTC)
        self.on_row: Callable[[Row], None] | None = None
        """Told of every finished row."""
        self._selected = False
        self.report: dict[str, Any] | None = None
        """What report.json says, once the run is finished."""

    @property
    def room(self) -> str:
        """A folder that lives as long as the run."""
        return self._temporary.name

    def pairs(self) -> list[tuple[Check, Cell]]:
        """Every row that there is, in the order of the groups."""
        return [
            (c, cell) for c in all_checks().values() if self.known.level in c.levels for cell in rows_of(c, self.known)
        ]

    def select(self, ids: Iterable[str]) -> None:
        """Exactly these rows are run; others are not this run's business. A run that goes on keeps what an earlier one
        had selected beside them, and its header: a selection never shrinks."""
        chosen, now, file = set(ids), header(self), self.folder / HEADER
        if self._resumed:
            try:
                check_same(read(file, dict), now)
                chosen |= {str(i) for i in read(self.folder / SELECTED, list)}
                noted = self._sessions()
            except BadRequest as error:
                error.hint = error.hint or "the same with another --out and without --resume"
                raise
        else:
            file.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            noted = []
        (self.folder / MANIFEST).write_text(self.entry.data + "\n", encoding="utf-8")
        self.rows.select(i for c, cell in self.pairs() if (i := row_id(c.name(), cell)) in chosen)
        (self.folder / SESSIONS).write_text(json.dumps([*noted, _session(now)], indent=1) + "\n", encoding="utf-8")
        self._selected = True

    def _sessions(self) -> list[Any]:
        """The earlier ones. A run that was killed before it noted the first has it in its header."""
        if (file := self.folder / SESSIONS).is_file():
            return list(read(file, list))
        return [_session(read(self.folder / HEADER, dict))]

    def row(self, check: Check, cell: Cell) -> Row:
        """Runs it, or answers what an earlier run has kept."""
        identity = row_id(check.name(), cell)
        if (kept := self._kept.get(identity)) is not None:
            return self._told(Row.from_dict(kept))
        self.rows.start(identity)
        if (disabled := self.expectations.disabled(check, cell, self)) is not None:
            row = disabled
        else:
            row = self._run(check, cell)
            row = self.expectations.applied(row, self, lambda: self._run(check, cell))
        self.rows.finish(row)
        return self._told(row)

    def _run(self, check: Check, cell: Cell) -> Row:
        return run_row(check, cell, self.bench, self.folder)

    def _told(self, row: Row) -> Row:
        if self.on_row is not None:
            self.on_row(row)
        return row

    def finished(self) -> list[Row]:
        """Every selected row, in order. What was lost keeps its cell and what it would have proven."""
        pairs = {row_id(c.name(), cell): (c, cell) for c, cell in self.pairs()}
        rows = [Row.from_dict(r) for r in self.rows.complete()]
        for number, row in enumerate(rows):
            if row.outcome in (Outcome.CRASHED, Outcome.MISSING) and not row.cell and row.row in pairs:
                check, cell = pairs[row.row]
                proves = dict(check.proves(manifest_for(check, self.known), cell))
                rows[number] = replace(row, cell=dict(cell), proves=proves)
        return rows

    def finish(self) -> None:
        """Ends the worker, writes the reports into the bundle, and notes the claims where `edgecore backends` looks."""
        from edgecore_conformance.evidence import write_reports

        self.bench.close()
        try:
            if self._selected:
                self.report = write_reports(self)
        finally:
            self._temporary.cleanup()


def _session(header: Mapping[str, Any]) -> dict[str, Any]:
    return {name: header[name] for name in ("begun", "command", "power")}
