"""Does a bundle contradict itself, or what is published? Offline, without the plugin, on any machine.

Every file against its digest, every row against the selection, every figure and verdict against the raw outputs judged
anew, every sum and claim against the rows, every other report against report.json. The answer is *consistent* or a list
of contradictions, and always a list of what nobody can know from a bundle.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from edgecore.contract.errors import BadRequest
from edgecore_conformance import __version__
from edgecore_conformance.bundle import BADGE, JUNIT, PAGE, REPORT, Bundle, digests, open_bundle, read
from edgecore_conformance.check import Cell, Check, all_checks, row_id
from edgecore_conformance.evidence import rendered
from edgecore_conformance.evidence.report import build, validate
from edgecore_conformance.expectations import Expectation, Expectations
from edgecore_conformance.header import FILE as HEADER
from edgecore_conformance.header import MANIFEST, sha256
from edgecore_conformance.known import Known
from edgecore_conformance.outcomes import Outcome
from edgecore_conformance.rejudging import Rejudging, around
from edgecore_conformance.rows import FILE as ROWS
from edgecore_conformance.rows import SELECTED, Row
from edgecore_conformance.run import SESSIONS
from edgecore_conformance.running import RAW, file_name, rows_of

CANNOT_KNOW = (
    "whether the raw outputs came from this device: who can run the reference can write outputs that judge well",
    "whether the header tells the truth about machine, device, versions and power",
    "whether timings, memory and placement were as noted: they were seen once, by the machine that ran",
    "whether the run was chosen among several, or its seed known before (`run --challenge SEED` answers the second)",
)


_STUMBLES = (
    ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RecursionError, TypeError, ValueError,
)  # fmt: skip


@dataclass(slots=True)
class Findings:
    """What a verification came to."""

    contradictions: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """What cannot be known from this bundle, beside what no bundle tells."""
    rows: int = 0
    recomputed: int = 0
    """Rows whose figures and verdict were computed anew from raw outputs."""

    @property
    def consistent(self) -> bool:
        return not self.contradictions

    def to_dict(self) -> dict[str, Any]:
        return {
            "consistent": self.consistent, "contradictions": self.contradictions, "rows": self.rows,
            "recomputed": self.recomputed, "cannot_know": [*self.unknown, *CANNOT_KNOW],
        }  # fmt: skip


def verify(folder: Path, model: Path | None = None) -> Findings:
    """model: the real model of level full, where it is needed and cannot be fetched.

    Raises `BadRequest` for a folder that is no bundle."""
    bundle, found = open_bundle(folder), Findings()
    try:
        validate(bundle.report)
        found.contradictions += _files(bundle)
        if others := list(_suite(bundle)):
            found.contradictions += others
            return found
        _rows(bundle, model, found)
    except BadRequest as error:
        found.contradictions.append(error.what)
    except _STUMBLES as error:
        # Data from strangers: whatever it makes our own code trip over is no bundle that this suite wrote.
        found.contradictions.append(f"it cannot be read to the end: {type(error).__name__}: {error}")
    return found


def _files(bundle: Bundle) -> Iterator[str]:
    """Digests, and what the bundle says twice."""
    noted, here = bundle.report["files"], digests(bundle.folder)
    for path in sorted({*noted, *here}):
        if path not in here:
            yield f"{path} is missing"
        elif path not in noted:
            yield f"{path} is not in the list of files"
        elif noted[path] != here[path]:
            yield f"{path} is another file than the one whose digest is noted"
    for path in sorted(set(here) - _written(bundle)):
        yield f"{path} is no file of a bundle"
    if bundle.header != bundle.report["header"]:
        yield f"{HEADER} and report.json tell different headers: {_first(bundle.header, bundle.report['header'])}"
    sessions = read(bundle.folder / SESSIONS, list)
    if sessions != bundle.report["sessions"]:
        yield f"{SESSIONS} and report.json tell different sessions"
    elif changed := [n for n in ("begun", "command", "power") if sessions[0][n] != bundle.header[n]]:
        yield f"{SESSIONS} has another {changed[0]} than {HEADER}: {sessions[0][changed[0]]}"
    text = (bundle.folder / MANIFEST).read_text(encoding="utf-8").removesuffix("\n")
    if sha256(text) != bundle.header["plugin"]["manifest"]:
        yield f"{MANIFEST} is not the manifest that {HEADER} names"
    if bundle.manifest.name != bundle.header["plugin"]["name"]:
        yield f"{MANIFEST} is of {bundle.manifest.name}, {HEADER} of {bundle.header['plugin']['name']}"


def _written(bundle: Bundle) -> set[str]:
    """Every file that a run may have left: with a row that did not end well may lie what an earlier try saw."""
    stems = [f"{RAW}/{file_name(str(i))}" for i in bundle.selected]
    reports = {HEADER, MANIFEST, ROWS, SELECTED, SESSIONS, REPORT, JUNIT, PAGE, BADGE}
    return reports | {f"{stem}.{kind}" for stem in stems for kind in ("json", "npz")}


def _header(bundle: Bundle, known: Known, pairs: Mapping[str, tuple[Check, Cell]]) -> Iterator[str]:
    """What the header says of the manifest, and what would have ended the run before it began."""
    header = bundle.header
    declared = bundle.manifest.device(known.device)
    if declared is None:
        yield f"{HEADER} names the device {known.device}, and {MANIFEST} has none of that name"
    elif header["device"]["emulated"] != declared.emulated:
        yield f"{HEADER} and {MANIFEST} do not agree whether {known.device} is emulated"
    if header["contract"] != ".".join(map(str, bundle.manifest.contract)):
        yield f"{HEADER} names contract {header['contract']}, {MANIFEST} another"
    if known.level == "quick" and header["model"] is not None:
        yield f"{HEADER} names a real model, and level quick has none"
    begun = datetime.fromisoformat(header["begun"]).date()
    try:
        _expectations(bundle).hold([(c.name(), cell) for c, cell in pairs.values()], around(header), begun)
    except BadRequest as error:
        yield f"{HEADER}: no run begins with this: {error.what}"


def _suite(bundle: Bundle) -> Iterator[str]:
    """Whether this suite is the one that judged; with another, nothing can be recomputed."""
    from edgecore_conformance.fixtures import suite_digest

    theirs, ours = bundle.header["suite"], {"version": __version__, "digest": suite_digest()}
    if theirs["version"] != ours["version"]:
        yield (
            f"judged by suite {theirs['version']}, and this is {ours['version']}: install "
            f"edgecore-conformance=={theirs['version']} to verify it"
        )
    elif theirs["digest"] != ours["digest"]:
        yield (
            f"the suite digest {theirs['digest'][:16]} is not this suite's ({ours['digest'][:16]}), though both are "
            f"version {__version__}: its checks or fixtures were changed"
        )


def _rows(bundle: Bundle, model: Path | None, found: Findings) -> None:
    header = bundle.header
    known = Known(bundle.manifest, header["device"]["name"], header["level"], int(header["seed"]), model)
    checks = [c for c in all_checks().values() if known.level in c.levels]
    pairs = {row_id(c.name(), cell): (c, cell) for c in checks for cell in rows_of(c, known)}
    found.contradictions += _header(bundle, known, pairs)
    found.contradictions += _selection(bundle, list(pairs))
    rows = []
    rejudging = Rejudging(bundle, known, _expectations(bundle))
    for data in bundle.report["rows"]:
        row = Row.from_dict(data)
        rows.append(row)
        if row.row in pairs:
            found.contradictions += rejudging.row(row, *pairs[row.row])
    found.rows, found.recomputed = len(rows), rejudging.recomputed
    found.unknown += rejudging.unknown()
    found.contradictions += _reports(bundle, rows, list(pairs.values()))


def _expectations(bundle: Bundle) -> Expectations:
    return Expectations(tuple(Expectation.from_dict(e) for e in bundle.header["expectations"]))


def _selection(bundle: Bundle, every: list[str]) -> Iterator[str]:
    """Every selected row once, in the row file and in the report, and no other."""
    for i, times in Counter(bundle.selected).items():
        if times > 1:
            yield f"{i} is selected {times} times"
        if i not in every:
            yield f"{i} is selected, and level {bundle.header['level']} of this suite has no such row"
    last = {str(line.get("row")): line for line in bundle.lines}
    for i in last:
        if i not in bundle.selected:
            yield f"{i} is in {ROWS}, and was not selected"
    finished = Counter(str(line["row"]) for line in bundle.lines if line.get("state") == "finished")
    for i, times in finished.items():
        if times > 1:
            yield f"{i} was finished {times} times in {ROWS}"
    reported = Counter(str(r["row"]) for r in bundle.report["rows"])
    for i in [*bundle.selected, *(i for i in reported if i not in bundle.selected)]:
        times = reported[i]
        if i not in bundle.selected:
            yield f"{i} is in report.json, and {SELECTED} does not have it"
        elif times != 1:
            yield f"{i} was selected, and stands in report.json {times} times" if times else f"{i} has no row"
    if len(bundle.selected) < len(every) and not all(_narrows(s["command"]) for s in bundle.report["sessions"]):
        first = next(i for i in every if i not in bundle.selected)
        yield (
            f"{len(bundle.selected)} of {len(every)} rows are selected, and the command selects all of them; "
            f"the first that is left out is {first}"
        )
    for data in bundle.report["rows"]:
        line = last.get(data["row"], {})
        if line.get("state") != "finished":
            if data["outcome"] not in (Outcome.CRASHED, Outcome.MISSING):
                yield f"{data['row']} is {data['outcome']} in report.json, and {ROWS} has no finished row of it"
        elif changed := [n for n in data if _plain(line.get(n)) != data[n]]:
            yield f"{data['row']}: {', '.join(changed)} in report.json is not what {ROWS} has"


def _narrows(command: str) -> bool:
    """Whether it may select fewer rows than all: `-k`, or pytest's ways to name some of its tests."""
    words = command.split()
    return any(w.startswith(("-k", "--deselect", "--lf", "--last-failed")) or "::" in w for w in words)


def _plain(value: Any) -> Any:
    """As it comes out of JSON that knows no infinity."""
    if isinstance(value, float) and value - value != 0:
        return None
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _reports(bundle: Bundle, rows: list[Row], pairs: list[tuple[Check, Cell]]) -> Iterator[str]:
    """Sums, groups and claims follow from the rows; the other reports follow from report.json."""
    again = build(bundle.header, bundle.report["sessions"], bundle.manifest, rows, pairs)
    for name, value in again.items():
        if name in ("rows", "header", "sessions"):
            continue
        if bundle.report[name] != value:
            yield f"{name} in report.json does not follow from the rows: {_first(bundle.report[name], value)}"
    for name, text in rendered(bundle.report).items():
        file = bundle.folder / name
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            yield f"{name} does not show what report.json says"


def _first(told: Any, computed: Any, where: str = "") -> str:
    """The first place where two JSON values differ."""
    if isinstance(told, Mapping) and isinstance(computed, Mapping):
        for key in [*told, *(k for k in computed if k not in told)]:
            if told.get(key) != computed.get(key):
                return _first(told.get(key), computed.get(key), f"{where}/{key}" if where else str(key))
    if isinstance(told, list) and isinstance(computed, list) and len(told) == len(computed):
        for number, (a, b) in enumerate(zip(told, computed, strict=True)):
            if a != b:
                name = "/".join(str(b[n]) for n in ("family", "precision", "row") if isinstance(b, Mapping) and n in b)
                return _first(a, b, f"{where}[{name or number}]")
    return f"{where}: {json.dumps(told)[:80]}, computed {json.dumps(computed)[:80]}"
