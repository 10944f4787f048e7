"""One run of the suite: a backend, a device, a level, a folder. Selects rows, runs them, writes the evidence."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from edgecore import registry
from edgecore.contract.errors import BadRequest, DeviceUnavailable
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, Check, all_checks, row_id
from edgecore_conformance.expectations import Expectations, read_expectations
from edgecore_conformance.header import header
from edgecore_conformance.known import Known
from edgecore_conformance.rows import Row, RowFile
from edgecore_conformance.running import rows_of, run_row


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
        self._kept = self.rows.finished() if resume else {}
        if not resume and any(self.folder.iterdir()):
            raise BadRequest(f"{self.folder} is not empty", supported="a new folder", hint="the same with --resume")
        self.bench = Bench(self.entry, self.known, Path(self._temporary.name) / "work")
        self.expectations = read_expectations(self.entry) if expectations else Expectations(())
        self.begun = datetime.now(UTC)

    def pairs(self) -> list[tuple[Check, Cell]]:
        """Every row that there is, in the order of the groups."""
        return [
            (c, cell) for c in all_checks().values() if self.known.level in c.levels for cell in rows_of(c, self.known)
        ]

    def select(self, ids: Iterable[str]) -> None:
        """Exactly these rows are run; others are not this run's business."""
        self.rows.select(ids)
        (self.folder / "header.json").write_text(
            json.dumps(header(self), indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )

    def row(self, check: Check, cell: Cell) -> Row:
        """Runs it, or answers what an earlier run has kept."""
        identity = row_id(check.name(), cell)
        if (kept := self._kept.get(identity)) is not None:
            return Row.from_dict(kept)
        self.rows.start(identity)
        if (disabled := self.expectations.disabled(check, cell, self)) is not None:
            row = disabled
        else:
            row = self.expectations.applied(run_row(check, cell, self.bench, self.folder), self)
        self.rows.finish(row)
        return row

    def finish(self) -> None:
        """Ends the worker and writes the reports into the bundle."""
        from edgecore_conformance.evidence import write_reports

        self.bench.close()
        try:
            write_reports(self)
        finally:
            self._temporary.cleanup()
