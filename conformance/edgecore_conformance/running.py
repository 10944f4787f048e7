"""Runs one row: observe on the device, keep what was seen, judge it; whatever happens becomes a row."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from threadpoolctl import threadpool_limits

from edgecore.contract.errors import DeviceUnavailable, EdgecoreError, Timeout, WorkerCrashed
from edgecore.contract.manifest import Manifest
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, Check, row_id
from edgecore_conformance.header import FILE as HEADER
from edgecore_conformance.header import reduced, reduced_facts
from edgecore_conformance.known import Known
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.outcomes import Outcome
from edgecore_conformance.rows import Row

RAW = "raw"
STAMP = "edgecore_conformance"
"""The fact that ties raw outputs to their row and run: `{"row": ID, "header": SHA256}`. Judgements do not see it."""


P = ParamSpec("P")
R = TypeVar("R")


def one_thread(call: Callable[P, R]) -> Callable[P, R]:
    """The suite's own arithmetic in one thread: two that wait for a core which others use take twice as long as one,
    and figures do not depend on how many there are."""

    @wraps(call)
    def limited(*arguments: P.args, **named: P.kwargs) -> R:
        with threadpool_limits(limits=1, user_api="blas"):
            return call(*arguments, **named)

    return limited


@one_thread
def run_row(check: Check, cell: Cell, bench: Bench, folder: Path) -> Row:
    """The row of a check in a cell; raw outputs go to `folder`/raw. Only KeyboardInterrupt comes out of it."""
    begin = time.monotonic()
    name, known = check.name(), bench.known
    identity = row_id(name, cell)

    def ended(outcome: Outcome, message: str = "", stage: str = "", **more: object) -> Row:
        proves = dict(check.proves(manifest_for(check, known), cell))
        return Row(
            identity, name, dict(cell), outcome, stage, reduced(message), seconds=round(time.monotonic() - begin, 3),
            proves=proves, **more,  # type: ignore[arg-type]
        )  # fmt: skip

    if (why := inapplicable(check, known)) is not None:
        return ended(Outcome.NOT_APPLICABLE, why)
    bench.begin(known.patient(check.seconds))
    try:
        seen = check.observe(bench, cell)
    except WorkerCrashed as error:
        bench.forget()
        return ended(Outcome.CRASHED, str(error), bench.stage)
    except Timeout as error:
        bench.forget()
        return ended(Outcome.TIMEOUT, str(error), bench.stage)
    except EdgecoreError as error:
        if isinstance(error, DeviceUnavailable) and bench.missing:
            return ended(Outcome.UNAVAILABLE, str(error), bench.stage)
        return ended(Outcome.FAILED, f"{type(error).__name__}: {error}", bench.stage)
    except Exception as error:  # the suite's own fault, or an answer so strange that the check fell over it
        bench.forget()
        return ended(Outcome.ERROR, f"{type(error).__name__}: {error}", bench.stage)
    stem = folder / RAW / file_name(identity)
    try:
        stamped = {**reduced_facts(seen.facts), STAMP: stamp(identity, folder)}
        files = Observation(stamped, seen.arrays).save(stem)
        # Judged as it was kept, because that is what a third person will judge.
        seen, _ = unstamped(Observation.load(stem))
    except Exception as error:  # a full disk, or values that no file of ours holds
        return ended(Outcome.ERROR, f"what was seen cannot be kept: {type(error).__name__}: {error}", "judge")
    raw = {f.relative_to(folder).as_posix(): digest(f) for f in files}
    verdict = judged(check, seen, cell, known)
    return ended(
        verdict.outcome,
        "\n".join(verdict.problems),
        "judge" if verdict.problems else "",
        figures=tuple(verdict.to_dict()["figures"]),
        raw=raw,
    )


def judged(check: Check, seen: Observation, cell: Cell, known: Known) -> Judgement:
    """The judgement alone: what `verify` repeats. An observation that cannot be judged is a problem of its own."""
    verdict = Judgement()
    try:
        check.judge(seen, cell, known, verdict)
    except Exception as error:
        verdict.problems.append(f"the observation cannot be judged: {type(error).__name__}: {error}")
    return verdict


def stamp(row: str, folder: Path) -> dict[str, str]:
    """What ties raw outputs to a row of the run whose header lies in `folder`."""
    header = folder / HEADER
    return {"row": row, "header": digest(header) if header.is_file() else ""}


def unstamped(seen: Observation) -> tuple[Observation, Mapping[str, str]]:
    """The observation as a judgement gets it, and its stamp."""
    facts = dict(seen.facts)
    kept = facts.pop(STAMP, None)
    return Observation(facts, seen.arrays), kept if isinstance(kept, dict) else {}


def rows_of(check: Check, known: Known) -> list[Mapping[str, str]]:
    """The cells that a run selects: one empty cell for a check that does not apply, so that it has a row."""
    if inapplicable(check, known) is not None:
        return [{}]
    return list(check.cells(manifest_for(check, known), known.device, known.level))


def manifest_for(check: Check, known: Known) -> Manifest:
    """What a check is told of the plugin."""
    return known.whole if check.whole else known.manifest


def inapplicable(check: Check, known: Known) -> str | None:
    """Why a check has one row that is `not_applicable`, without a word where the plugin has nothing of the kind; None
    where it applies."""
    if not check.applies(manifest_for(check, known)):
        return ""
    return check.unfit(known) or None


def file_name(row: str) -> str:
    """A row's id as a file name, the same everywhere, another for every row."""
    plain = re.sub(r"[\[\]]", "_", row)
    safe = re.sub(r"[^A-Za-z0-9_.=,-]", "_", plain)
    return safe if safe == plain else f"{safe}{hashlib.sha256(row.encode()).hexdigest()[:8]}"


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
