"""Counts false alarms: truthful plugins against the whole suite, again and again. Part of a release.

    python benchmarks/conformance_alarms.py                              # reference and llamacpp, 20 runs each
    python benchmarks/conformance_alarms.py --backend reference --runs 3
    python benchmarks/conformance_alarms.py --challenge                  # other inputs in every run

Every run is `edgecore conformance run --level quick --no-expectations` in a process of its own. A row that is neither
passed nor verified to be unsupported is an alarm, and so is a row that is missing. Ends with 1 when there was one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgecore_conformance.rows import RowFile

GOOD = ("passed", "unsupported", "not_applicable")


@dataclass
class Tally:
    """What became of one backend's runs."""

    backend: str
    seconds: list[float] = field(default_factory=list)
    rows: int = 0
    alarms: Counter[str] = field(default_factory=Counter)
    """How often, by row and outcome."""
    words: dict[str, str] = field(default_factory=dict)
    """What the last one said."""

    def line(self) -> str:
        median = statistics.median(self.seconds)
        return (
            f"{self.backend}: {len(self.seconds)} runs, {self.rows} rows, {sum(self.alarms.values())} false alarms; "
            f"seconds a run: median {median:.1f}, longest {max(self.seconds):.1f}"
        )


def run_once(backend: str, tally: Tally, seed: int, keep: Path | None) -> None:
    with tempfile.TemporaryDirectory(prefix="conformance-alarms-") as temporary:
        out = Path(temporary) / "bundle"
        if keep is not None:
            out = keep / f"{backend}-{len(tally.seconds):02d}"
        command = [sys.executable, "-m", "edgecore", "conformance", "run", "--backend", backend, "--level", "quick"]
        command += ["--no-expectations", "--out", str(out), *(["--challenge", str(seed)] if seed else [])]
        begin = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        tally.seconds.append(time.perf_counter() - begin)
        try:
            rows = RowFile(out).complete()
        except OSError:
            raise SystemExit(
                f"{' '.join(command)} left no rows\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            ) from None
        tally.rows += len(rows)
        for row in rows:
            if row["outcome"] not in GOOD:
                key = f"{row['row']} {row['outcome']}"
                tally.alarms[key] += 1
                tally.words[key] = row.get("message", "")
                print(f"  {key}: {tally.words[key]}", flush=True)
        if done.returncode and all(row["outcome"] in GOOD for row in rows):
            tally.alarms[f"exit code {done.returncode}"] += 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", action="append", help="reference and llamacpp by default; may be given again")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--challenge", action="store_true", help="draw other inputs in every run")
    parser.add_argument("--keep", type=Path, help="keep the bundles in this folder")
    parser.add_argument("--json", type=Path, help="write the tallies to this file")
    how = parser.parse_args(arguments)
    tallies = [Tally(name) for name in how.backend or ("reference", "llamacpp")]
    for number in range(how.runs):
        for tally in tallies:
            run_once(tally.backend, tally, number + 1 if how.challenge else 0, how.keep)
            print(f"run {number + 1} of {how.runs}: {tally.line()}", flush=True)
    for tally in tallies:
        print(tally.line())
        for key, times in tally.alarms.most_common():
            print(f"  {times} x {key}: {tally.words.get(key, '')}")
    if how.json:
        how.json.write_text(json.dumps([vars(tally) for tally in tallies], indent=2) + "\n", encoding="utf-8")
    return 1 if any(tally.alarms for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
