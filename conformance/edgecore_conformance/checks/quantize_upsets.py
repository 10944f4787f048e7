"""What may go wrong while a plugin quantizes: as for convert, by the same code. Part of group *quantize*."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, ClassVar

from edgecore.contract.manifest import Manifest
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, check
from edgecore_conformance.checks import direct, jobs, upsets
from edgecore_conformance.known import TRAINED, Known
from edgecore_conformance.observation import Judgement, Observation


def usual_job(bench: Bench) -> jobs.Job:
    return jobs.quantize_job(bench, jobs.usual(bench.manifest, bench.device))


def job_of(bench: Bench, cell: Cell) -> jobs.Job:
    """The usual one of text, or the tensor model's in the cell's precision."""
    if cell.get("task") != "tensor":
        return usual_job(bench)
    return jobs.quantize_job(bench, bench.precision(cell["precision"]), base=jobs.base_of(bench, "tensor"))


def called(bench: Bench, job: jobs.Job, out: Any) -> dict[str, Any]:
    """The same call for a fresh interpreter."""
    assert job.base is not None
    calibration = str(jobs.calibration_of(bench, job.base.task)) if job.precision.calibration == "required" else None
    return {
        "hook": "edgecore_quantize",
        "arguments": {
            "artifact": direct.artifact_facts(job.base), "out": str(out), "precision": job.precision.name,
            "calibration": calibration, "options": bench.options("quantize", job.base.task),
        },
    }  # fmt: skip


class OfUsual(jobs.OfQuantize):
    """One row: the usual quantization of this plugin, observed and judged by a pair of functions of `upsets`."""

    upset: ClassVar[tuple[Callable[[Bench, jobs.Job], Observation], Callable[[Observation, Judgement], None]]]

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        return self.upset[0](bench, usual_job(bench))

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        self.upset[1](seen, verdict)


@check
class Deterministic(jobs.OfEither):
    """quantize.deterministic: the same request gives the same bytes, where that is declared.

    As convert.deterministic, for the usual precision of this plugin and for each of tensor models, calibrated with the
    same feeds.
    """

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        return upsets.twice(bench, job_of(bench, cell))

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        upsets.judge_twice(seen, known, verdict)


@check
class Source(jobs.OfEither):
    """quantize.source: the artifact that is quantized is left as it was, also when quantizing fails.

    As convert.source: content, times and permissions, after a call that succeeds, one that is refused and one that is
    cancelled; of language models in the usual precision, of tensor models in each.
    """

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        return upsets.untouched(bench, job_of(bench, cell))

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        upsets.judge_untouched(seen, verdict)


@check
class Outside(jobs.OfQuantize):
    """quantize.outside: nothing is written outside the folder that was given.

    As convert.outside.
    """

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        job, out = usual_job(bench), bench.folder("outside")
        before = jobs.tree(job.source)
        found = direct.observe_directly(bench, called(bench, job, out), out=out, source=job.source)
        return upsets.outside_facts(found, before, jobs.tree(job.source), out)

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        upsets.judge_outside(seen, verdict)


@check
class Progress(OfUsual):
    """quantize.progress: progress is told, only grows, ends at its total, and is never silent for long.

    As convert.progress.
    """

    upset = upsets.reports, upsets.judge_reports


@check
class Cancel(jobs.OfQuantize):
    """quantize.cancel: a quantization that nobody waits for any more ends in time.

    As convert.cancel. A plugin that does not declare `cancel_quantize` (its runtime cannot be interrupted) may end with
    its worker instead; it must still end within five seconds, and leave nothing that runs on.
    """

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        job = usual_job(bench)
        seen = upsets.cancelled(bench, job)
        call = {**called(bench, job, bench.folder("cancelled")), "cancel_at": 2}
        seen.facts["direct"] = upsets.cancelled_facts(direct.observe_directly(bench, call))
        return seen

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        upsets.judge_cancelled(seen, verdict, native=not known.manifest.can("cancel_quantize"))


@check
class Killed(OfUsual):
    """quantize.killed: kill -9 in the middle leaves nothing outside the folder, and the next call works.

    As convert.killed.
    """

    upset = upsets.killed, upsets.judge_killed


@check
class DiskFull(OfUsual):
    """quantize.disk_full: a full disk is an error that says so, never an artifact.

    As convert.disk_full.
    """

    upset = upsets.disk_full, upsets.judge_disk_full


@check
class Corrupt(jobs.OfQuantize):
    """quantize.corrupt: a damaged artifact is refused with a typed error, never quantized.

    A copy of the artifact whose largest file ends after two thirds, and one with bytes of ones (NaN in every float
    format) in the middle of it. The hook must raise one of the contract's errors; an artifact, a fault or a crash is a
    failure, because what is damaged on the disk would be passed on as a model.
    """

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        return [{"fault": "truncated"}, {"fault": "nan"}]

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        base = damaged(bench, bench.artifact(TRAINED), cell["fault"])
        job = jobs.quantize_job(bench, jobs.usual(bench.manifest, bench.device), base=base)

        def ask() -> object:
            with bench.fresh() as backend:
                return job.run(backend, bench.folder("corrupt"), bench.left)

        return Observation(jobs.attempt(ask, bench))

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        error = seen.facts.get("error", "")
        verdict.expect(
            error not in jobs.UNTYPED[:-1],
            f"{error or 'an artifact'}, where CorruptModel is due: {seen.facts.get('what', '')}",
        )


def damaged(bench: Bench, artifact: Any, fault: str = "truncated") -> Any:
    """A copy whose largest file lacks its last third, or has bytes of ones in its middle."""
    folder = bench.folder("damaged")
    shutil.copytree(artifact.path, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
    largest = max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    data = bytearray(largest.read_bytes())
    if fault == "nan":
        at = len(data) // 2 // 256 * 256
        data[at : at + 1024] = b"\xff" * 1024
    else:
        del data[len(data) * 2 // 3 :]
    largest.write_bytes(data)
    return replace(artifact, path=folder)
