"""What may go wrong while a plugin makes files, done to convert and to quantize alike: observations and judgements."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgecore.contract.errors import Cancelled
from edgecore_conformance.bench import Bench
from edgecore_conformance.checks import jobs, refusals
from edgecore_conformance.checks.jobs import Job, Tree
from edgecore_conformance.known import Known
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.outcomes import Outcome

IN_TIME = 5.0
"""Seconds from a wish to stop until the call has ended: two of grace before the core kills, and a busy machine."""
SIZES_DIFFER = 0.05
"""Share of a file's size by which two of the same request may differ."""
SILENCE = 5.0
"""Seconds without a report that people bear."""


# ---- the same request twice ----


def twice(bench: Bench, job: Job) -> Observation:
    """Digests of the files of two runs, in workers with different hash seeds."""
    found = []
    for seed in ("1", "2"):
        before = os.environ.get("PYTHONHASHSEED")
        os.environ["PYTHONHASHSEED"] = seed
        try:
            with bench.fresh() as worker:
                out = bench.folder("twice")
                job.run(worker, out, bench.left)
                found.append(jobs.digests(out))
        finally:
            _restore("PYTHONHASHSEED", before)
    return Observation({"first": found[0], "second": found[1]})


def _restore(name: str, value: str | None) -> None:
    os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value


def judge_twice(seen: Observation, known: Known, verdict: Judgement) -> None:
    first, second = seen.facts["first"], seen.facts["second"]
    verdict.expect(bool(first), "nothing was written")
    different = sorted(n for n in {*first, *second} if first.get(n) != second.get(n))
    verdict.figure("files that differ", len(different), 0 if known.manifest.can("deterministic") else None, "==")
    verdict.expect(
        not (different and known.manifest.can("deterministic")),
        f"declared deterministic; these differ: {', '.join(different)}",
    )


# ---- the source ----


def untouched(bench: Bench, job: Job) -> Observation:
    """The source before and after a run that succeeds, one that is refused and one that is cancelled."""
    backend, before = bench.backend(), jobs.tree(job.source)
    job.run(backend, bench.folder("untouched"), bench.left)
    after = {"made": jobs.tree(job.source)}
    error = jobs.attempt(lambda: refusals.refusal(bench, "precision", bench.folder("untouched"), job), bench)
    after["refused"] = jobs.tree(job.source)
    stopped = jobs.attempt(lambda: job.run(backend, bench.folder("untouched"), bench.left, _Stop()), bench)
    after["cancelled"] = jobs.tree(job.source)
    return Observation({"before": before, "after": after, "refused": error, "cancelled": stopped})


def judge_untouched(seen: Observation, verdict: Judgement) -> None:
    for when, tree in seen.facts["after"].items():
        changed = jobs.changes(seen.facts["before"], tree)
        verdict.expect(not changed, f"the source, after a call that was {when}: {'; '.join(changed[:5])}")


class _Stop:
    """Progress that wants the end of it at its first report, and remembers when it said so."""

    def __init__(self) -> None:
        self.when = 0.0
        self.reports = 0

    def __call__(self, done: int, total: int, stage: str = "") -> None:
        self.reports += 1
        self.when = self.when or time.monotonic()
        raise Cancelled("the conformance suite cancelled this call")


# ---- what lies elsewhere ----


def outside_facts(found: Mapping[str, Any], before: Tree, after: Tree, out: Path) -> Observation:
    kept = {name: found[name] for name in ("events", "left", "error", "call_error") if name in found}
    written = sorted(name for name, facts in jobs.tree(out).items() if facts[3])
    return Observation({**kept, "before": before, "after": after, "written": written})


def judge_outside(seen: Observation, verdict: Judgement) -> None:
    from edgecore_conformance.checks.direct import outside

    facts = seen.facts
    error = facts["error"] or facts.get("call_error")
    verdict.expect(not error, f"the hook raised {error}")
    verdict.expect(bool(facts["written"]) or bool(error), "nothing was written")
    for place, files in facts["left"].items():
        verdict.expect(not files, f"left in {place}: {', '.join(files[:5])}")
    changed = jobs.changes(facts["before"], facts["after"])
    verdict.expect(not changed, f"the source: {'; '.join(changed[:5])}")
    wrote = outside(facts["events"], ("call",), ("out", "temp"))
    verdict.expect(not wrote, f"files elsewhere are changed: {', '.join(wrote[:5])}")
    called = [what for _, kind, what in facts["events"] if kind == "network"]
    verdict.expect(not called, f"it wants the network: {', '.join(called[:5])}")


# ---- progress ----


def reports(bench: Bench, job: Job) -> Observation:
    """[seconds since the call, done, total, stage] of every report, and when the call ended."""
    backend = bench.backend()
    backend.probe(deadline=bench.left)  # the runtime is loaded: its time is nobody's progress
    begun, kept = time.monotonic(), list[list[Any]]()

    def report(done: int, total: int, stage: str = "") -> None:
        if len(kept) < 5000:
            kept.append([round(time.monotonic() - begun, 4), done, total, stage])

    job.run(backend, bench.folder("progress"), bench.left, report)
    return Observation({"reports": kept, "ended": time.monotonic() - begun})


def judge_reports(seen: Observation, verdict: Judgement) -> None:
    told: list[list[Any]] = seen.facts["reports"]
    verdict.figure("reports", len(told), 2, ">=", "", "a beginning and an end")
    times = [0.0, *(r[0] for r in told), seen.facts["ended"]]
    silent = max(b - a for a, b in itertools.pairwise(times))
    verdict.figure("longest silence", silent, SILENCE, "<=", "s", "what people bear")
    stages: dict[str, list[list[Any]]] = {}
    for report in told:
        stages.setdefault(report[3], []).append(report)
    for stage, mine in stages.items():
        name = f"stage {stage!r}"
        done, totals = [r[1] for r in mine], {r[2] for r in mine}
        verdict.expect(done == sorted(done), f"{name}: progress falls: {done[:20]}")
        verdict.expect(min(done) >= 0 and min(totals) > 0, f"{name}: {done[0]} of {mine[0][2]}")
        verdict.expect(all(r[1] <= r[2] for r in mine), f"{name}: more is done than there is")
        verdict.expect(len(totals) == 1, f"{name}: its total changes: {sorted(totals)[:5]}")
        verdict.expect(done[-1] == mine[-1][2], f"{name}: ends at {done[-1]} of {mine[-1][2]}")


# ---- cancelling and killing ----


def cancelled(bench: Bench, job: Job) -> Observation:
    """Cancelled at the first report, in a worker of its own; then once more in it, and once undisturbed."""
    stop = _Stop()
    with bench.fresh() as backend:
        backend.probe(deadline=bench.left)
        begun = time.monotonic()
        cancelled_out = jobs.nested(bench, "cancel")
        error = jobs.attempt(lambda: job.run(backend, cancelled_out, bench.left, stop), bench)
        took = time.monotonic() - (stop.when or begun)
        out = bench.folder("after")
        again = jobs.attempt(lambda: job.run(backend, out, bench.left), bench)
        pid = backend.pid
        living = alive(pid)
        made = {} if again else jobs.digests(out)
    return Observation(
        {
            **error, "seconds": took, "reports": stop.reports, "beside": jobs.beside(cancelled_out),
            "again": again, "alive": living, "made": made,
            "gone": gone(pid), "undisturbed": undisturbed(bench, job),
        }
    )  # fmt: skip


def undisturbed(bench: Bench, job: Job) -> dict[str, str]:
    out = bench.folder("undisturbed")
    job.run(bench.backend(), out, bench.left)
    return jobs.digests(out)


def cancelled_facts(found: Mapping[str, Any]) -> dict[str, Any]:
    told = found.get("reports", [])
    return {
        "error": found["error"] or found.get("call_error", {}),
        "reports": len(told),
        "stages": len({r[3] for r in told}),
    }


def judge_cancelled(seen: Observation, verdict: Judgement, native: bool = False) -> None:
    """`native`: a runtime that cannot be interrupted, so its worker may have been ended instead."""
    facts = seen.facts
    if not facts["reports"]:
        verdict.problems.append("there was no report of progress, so nobody could cancel")
        return
    verdict.expect(facts.get("error") == "Cancelled", f"{facts.get('error') or 'an artifact'}, where Cancelled is due")
    verdict.figure("from the wish to the end", facts["seconds"], IN_TIME, "<=", "s", "2 s of grace, and a busy machine")
    if facts["alive"]:
        verdict.expect(not facts["again"], f"the worker lives and does not work: {facts['again']}")
        _same(facts["made"], facts["undisturbed"], "after a cancelled call", verdict)
    else:
        verdict.expect(native, "the worker had to be ended, because the hook did not stop when it was asked to")
    verdict.expect(facts["gone"], "the worker lives on after it was closed")
    verdict.expect(not facts["beside"], f"left beside the folder that was given: {', '.join(facts['beside'])}")
    if "direct" in facts and not native:
        error = facts["direct"]["error"]
        verdict.expect(
            error.get("error") == "Cancelled", f"the hook itself ends with {error or 'an answer'}, not Cancelled"
        )
        after = facts["direct"]["reports"] - 2
        verdict.figure("reports after Cancelled was raised", after, 1, "<=", "", "the hook stops where it reports")


def killed(bench: Bench, job: Job) -> Observation:
    """A worker in empty places, killed at its first report."""
    where = jobs.places(bench.folder("killed"))
    before, out = jobs.tree(job.source), jobs.nested(bench, "killed-out")
    reports = 0
    with jobs.elsewhere(where):
        context = bench.fresh()
        backend = context.__enter__()
    try:
        backend.probe(deadline=bench.left)
        pid, place_before = backend.pid, jobs.trees(where)

        def kill(done: int, total: int, stage: str = "") -> None:
            nonlocal reports
            reports += 1
            if reports == 1:
                end_process(pid)

        error = jobs.attempt(lambda: job.run(backend, out, bench.left, kill), bench)
    finally:
        context.__exit__(None, None, None)
    left = {n: jobs.changes(place_before[n], t) for n, t in jobs.trees(where).items()}
    with bench.fresh() as fresh:
        second = bench.folder("after")
        again = jobs.attempt(lambda: job.run(fresh, second, bench.left), bench)
    return Observation(
        {
            **error, "reports": reports, "before": before, "after": jobs.tree(job.source),
            "left": {**left, "the folder around": jobs.beside(out)},
            "again": again, "made": jobs.digests(second), "undisturbed": undisturbed(bench, job), "gone": gone(pid),
        }
    )  # fmt: skip


def judge_killed(seen: Observation, verdict: Judgement) -> None:
    facts = seen.facts
    if not facts["reports"]:
        verdict.problems.append("there was no report of progress, so it could not be killed in the middle")
        return
    # A call of a few milliseconds may be answered before the signal arrives: that is no fault of anybody.
    verdict.expect(
        facts.get("error", "WorkerCrashed") == "WorkerCrashed", f"{facts.get('error')}, where WorkerCrashed is due"
    )
    for place, files in facts["left"].items():
        verdict.expect(not files, f"left in {place}: {', '.join(files[:5])}")
    changed = jobs.changes(facts["before"], facts["after"])
    verdict.expect(not changed, f"the source: {'; '.join(changed[:5])}")
    verdict.expect(not facts["again"], f"the next call fails: {facts['again']}")
    _same(facts["made"], facts["undisturbed"], "after a killed worker", verdict)
    verdict.expect(facts["gone"], "the worker lives on")


def _same(made: Mapping[str, str], due: Mapping[str, str], when: str, verdict: Judgement) -> None:
    """Names always; bytes too, which a plugin that is not deterministic may make anew."""
    verdict.expect(sorted(made) == sorted(due), f"{when} other files are made: {sorted(made)}, not {sorted(due)}")
    different = [name for name in made if made[name] != due.get(name)]
    verdict.figure(f"files that differ {when}", len(different))


def end_process(pid: int) -> None:
    if sys.platform == "win32":
        import psutil

        psutil.Process(pid).kill()
    else:
        os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def gone(pid: int, seconds: float = 3.0) -> bool:
    """Whether a process ends within some seconds."""
    until = time.monotonic() + seconds
    while alive(pid):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


# ---- a full disk ----


def disk_full(bench: Bench, job: Job) -> Observation:
    """The call with a limit on the size of files, then without it, in one worker."""
    if not sys.platform.startswith("linux"):
        return Observation({"skipped": "only Linux can limit another process's files"})
    import resource

    whole = undisturbed_sizes(bench, job)
    largest = max(whole.values())
    tried = []
    with bench.fresh() as backend:
        backend.probe(deadline=bench.left)
        before = resource.prlimit(backend.pid, resource.RLIMIT_FSIZE)
        for limit in (largest // 2, 4096):
            resource.prlimit(backend.pid, resource.RLIMIT_FSIZE, (limit, before[1]))
            error = jobs.attempt(lambda: job.run(backend, bench.folder("full"), bench.left), bench)
            tried.append({"limit": limit, **error, "alive": alive(backend.pid)})
            if not tried[-1]["alive"]:
                break
            resource.prlimit(backend.pid, resource.RLIMIT_FSIZE, before)
        out = bench.folder("after")
        again = jobs.attempt(lambda: job.run(backend, out, bench.left), bench)
    sizes = {name: facts[0] for name, facts in jobs.tree(out).items() if facts[3]}
    return Observation({"whole": whole, "tried": tried, "again": again, "after": sizes})


def undisturbed_sizes(bench: Bench, job: Job) -> dict[str, int]:
    out = bench.folder("whole")
    job.run(bench.backend(), out, bench.left)
    return {name: facts[0] for name, facts in jobs.tree(out).items() if facts[3]}


def judge_disk_full(seen: Observation, verdict: Judgement) -> None:
    facts = seen.facts
    if "skipped" in facts:
        verdict.claimed = Outcome.NOT_APPLICABLE
        return
    for one in facts["tried"]:
        error = one.get("error", "")
        what = f"files of at most {one['limit']} bytes: {error or 'an artifact'}, where DoesNotFit is due"
        verdict.expect(error == "DoesNotFit", f"{what}; {one.get('what', '')}")
        verdict.expect(one["alive"], f"files of at most {one['limit']} bytes: the worker died")
    verdict.expect(not facts["again"], f"with room again, the call fails: {facts['again']}")
    after, whole = facts["after"], facts["whole"]
    verdict.expect(sorted(after) == sorted(whole), f"with room again, there are {sorted(after)}, not {sorted(whole)}")
    # A number that is written may be longer the next time, and other bytes are `deterministic`'s business: what was cut
    # off is far shorter.
    other = sorted(n for n in {*after} & {*whole} if abs(after[n] - whole[n]) > SIZES_DIFFER * whole[n])
    verdict.expect(not other, f"with room again, these have other sizes: {', '.join(other)}")
