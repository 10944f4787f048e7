"""Runs a mutant against the checks that must catch it, row by row, in this process: `Run` without the reports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgecore import registry
from edgecore.contract.artifacts import Artifact
from edgecore.contract.precisions import Precision
from edgecore.contract.progress import Progress
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, all_checks
from edgecore_conformance.known import Known
from edgecore_conformance.rows import Row
from edgecore_conformance.running import rows_of, run_row
from mutants.mutant import TRUTHFUL, Mutant, write_mutant


class Converted:
    """What the truthful plugins make, each artifact once a session."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._benches: dict[tuple[str, str], Bench] = {}

    def artifact(self, base: str, device: str, fixture: str, precision: str) -> Artifact:
        # Artifacts of the timer are the reference's, and so are those for devices that only a mutant has.
        base = "reference" if base == "timer" else base
        where = device if base == "emulator" else "cpu"
        if (base, where) not in self._benches:
            plugin = write_mutant(TRUTHFUL[base], self._folder / f"{base}-{where}")
            self._benches[base, where] = bench_of(plugin, self._folder / f"{base}-{where}-work", where)
        bench = self._benches[base, where]
        bench.begin(300)
        return bench.artifact(fixture, precision)

    def close(self) -> None:
        for bench in self._benches.values():
            bench.close()


class SharingBench(Bench):
    """Takes artifacts from the truthful plugin: sealed by it, opened by the mutant."""

    converted: Converted
    base: str

    def _made(self, fixture: str, precision: Precision, format: str, progress: Progress) -> Artifact:
        made = self.converted.artifact(self.base, self.device, fixture, precision.name)
        return replace(made, backend=self.entry.name)


def bench_of(plugin: Path, work: Path, device: str = "cpu", kind: type[Bench] = Bench) -> Bench:
    entry = registry.find(plugin)
    return kind(entry, Known(entry.ready_manifest, device), work)


def rows_of_mutant(mutant: Mutant, folder: Path, converted: Converted, checks: tuple[str, ...] = ()) -> list[Row]:
    """For each check that must catch it, or each of `checks`: rows that `cells` selects, until one has caught it."""
    plugin = write_mutant(mutant, folder / "plugin")
    bench = bench_of(plugin, folder / "work", mutant.device, Bench if mutant.makes else SharingBench)
    if isinstance(bench, SharingBench):
        bench.converted, bench.base = converted, mutant.base
    rows = []
    try:
        for name in checks or mutant.caught_by:
            check = all_checks()[name]
            if mutant.seconds:
                check = type(check)()
                check.seconds = mutant.seconds  # type: ignore[misc]
            for cell in sorted(rows_of(check, bench.known), key=_small_first):
                if all(cell.get(key) == value for key, value in mutant.cells.items()):
                    rows.append(run_row(check, cell, bench, folder / "bundle"))
                    if rows[-1].outcome in mutant.outcomes:
                        break
    finally:
        bench.close()
    return rows


def _small_first(cell: Cell) -> int:
    """The random checkpoints have two layers: most faults show there as well, and sooner."""
    return ("family" not in cell) + (cell.get("family", "llama") != "llama")
