"""Group *convert*: a source becomes an artifact that opens and answers, whole or not at all, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgecore.contract.manifest import Manifest
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, Check, check
from edgecore_conformance.checks import (
    closeness,
    convert_sources,
    convert_tensors,
    direct,
    jobs,
    refusals,
    sizes,
    sources,
    upsets,
)
from edgecore_conformance.checks.words import judge_words, observe_words
from edgecore_conformance.known import TRAINED, Known
from edgecore_conformance.observation import Judgement, Observation

PARTS = (convert_sources, convert_tensors)


def converts(manifest: Manifest) -> bool:
    """Whether there is anything to convert."""
    return any(jobs.makes(manifest, "convert", task) for task in ("text", "tensor"))


def usual_job(bench: Bench) -> jobs.Job:
    """The conversion that stands for all: the first declared source in the finest precision of at most 16 bits."""
    task = usual_task(bench.manifest)
    kind = jobs.sources_of(bench.manifest, task)[0]
    return jobs.convert_job(bench, sources.source(bench, kind), precision_for(bench.manifest, task), task=task)


def usual_task(manifest: Manifest) -> str:
    """What `usual_job` converts: a language model, where there is one to convert."""
    return "text" if jobs.makes(manifest, "convert", "text") else "tensor"


def precision_for(manifest: Manifest, task: str, format: str = "") -> Any:
    """As `Bench.finest`, among what is claimed for the task, and in a format where one is named."""
    named = {c.precision for c in manifest.claims if c.task == task and format in ("", c.format)}
    made = [p for p in manifest.precisions if p.by != "quantize"]
    known = [p for p in made if p.name in named] or made
    halves = [p for p in known if p.bits == 16]
    return next((p for p in halves if p.recommended), (halves or sorted(known, key=lambda p: -p.bits))[0])


class OfConvert(Check):
    """Applies to plugins that convert; speaks of claims about models of the kind that it converts."""

    def applies(self, manifest: Manifest) -> bool:
        return converts(manifest)

    def proves(self, manifest: Manifest, cell: Cell) -> Mapping[str, str]:
        named = [f.task for f in manifest.formats if f.name == cell.get("format")]
        named += [jobs.task_of(cell["source"])] if "source" in cell else []
        return {"task": [*named, usual_task(manifest)][0], **super().proves(manifest, cell)}


@check
class Opens(OfConvert):
    """convert.opens: every declared source becomes every declared format, and the artifact opens and answers.

    The language model is converted from each declared kind of source (a folder; a GGUF file in float32 that the suite
    wrote) to each claimed format and each precision that convert makes; what was written is exactly what the plugin
    lists, with one model in it, of the size that it says. Then the source is taken away and the artifact moved, by
    paths with spaces and letters beyond ASCII's: it must open, its logits be the oracle's within what the precision
    may lose, and its tokenizer, ends and chat template the model's. A failure in one source alone usually is its
    order of rows (GGUF keeps q and k interleaved).
    """

    def applies(self, manifest: Manifest) -> bool:
        return jobs.makes(manifest, "convert", "text")

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        for format in manifest.formats_of("text"):
            finest = precision_for(manifest, "text", format).name
            for number, kind in enumerate(jobs.sources_of(manifest, "text")):
                for precision in jobs.claimed(manifest, device):
                    made = precision.by != "quantize" and format in manifest.formats_of("text", precision.name)
                    if made and (number == 0 or precision.name == finest):
                        yield {"source": kind, "format": format, "precision": precision.name}

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        precision = bench.precision(cell["precision"])
        source = sources.moved(bench, sources.source(bench, cell["source"]))
        job, out = jobs.convert_job(bench, source, precision, cell["format"]), bench.folder(f"opens{sources.ODD}")
        before = jobs.tree(source)
        made = job.run(bench.backend(), out, bench.left)
        after, found = jobs.tree(source), {name: facts[0] for name, facts in jobs.tree(out).items() if facts[3]}
        if lost := sorted({f.path for f in made.files} - set(found)):
            return Observation({"lost": lost})
        _, out = (sources.moved(bench, path) for path in (source, out))
        artifact = bench.sealed(out, made, precision.name, TRAINED, format=cell["format"])
        seen = Observation(
            {
                "files": {f.path: [f.size, f.role] for f in artifact.files},
                "found": found,
                "weights": sizes.weights_facts(made.weights),
                "source": {"before": before, "after": after},
                "words": observe_words(bench, artifact),
            }
        )
        closeness.observe_logits(bench, seen, artifact, TRAINED, "convert", small=precision.bits < 16)
        seen.facts["tensors"] = sizes.tensor_sizes(artifact)
        return seen

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        if "lost" in seen.facts:
            verdict.problems.append(f"listed, and no files of the artifact's own: {', '.join(seen.facts['lost'])}")
            return
        precision = next(p for p in known.manifest.precisions if p.name == cell["precision"])
        sizes.judge_files(seen.facts["files"], seen.facts["found"], verdict)
        sizes.judge_size(seen.facts, precision, verdict)
        closeness.judge_logits(seen, known, TRAINED, "convert", precision, verdict)
        judge_words(seen.facts["words"], known.tokenizer(TRAINED), known, verdict)


@check
class Deterministic(OfConvert):
    """convert.deterministic: the same request gives the same bytes, where that is declared.

    The same source is converted twice, in two workers with different hash seeds, and every file's SHA-256 is
    compared. A plugin that does not declare `deterministic` is only told what was found. A failure usually is a
    dictionary or set that is written in its order, a time, or a path in the file's metadata.
    """

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        return upsets.twice(bench, usual_job(bench))

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        upsets.judge_twice(seen, known, verdict)


@check
class Source(OfConvert):
    """convert.source: the source is left as it was, also when the conversion fails.

    Content, times and permissions of every file of a copy are compared before and after: a conversion that succeeds,
    one with a precision that does not exist, and one that is cancelled. A failure means that a plugin spoils
    what people downloaded, or what another plugin reads at the same time.
    """

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        kinds = [
            k
            for task in ("text", "tensor")
            if jobs.makes(manifest, "convert", task)
            for k in jobs.sources_of(manifest, task)
        ]
        return [{"source": kind} for kind in kinds]

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        task = jobs.task_of(cell["source"])
        precision = precision_for(bench.manifest, task)
        job = jobs.convert_job(bench, sources.source(bench, cell["source"]), precision, task=task)
        return upsets.untouched(bench, job)

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        upsets.judge_untouched(seen, verdict)


@check
class Outside(OfConvert):
    """convert.outside: nothing is written outside the folder that was given.

    The hook is called in a fresh interpreter with empty folders for home, temporary files, working directory and
    EDGECORE_HOME. An audit hook lists what Python opens for writing, wherever it lies, and refuses connections; the
    folders are compared for what native code does. Temporary files that are gone afterwards are allowed. A failure
    usually is a cache, a log in the working directory, or telemetry.
    """

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        job, out = usual_job(bench), bench.folder("outside")
        before = jobs.tree(job.source)
        found = direct.observe_directly(bench, called(bench, job, out), out=out, source=job.source)
        return upsets.outside_facts(found, before, jobs.tree(job.source), out)

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        upsets.judge_outside(seen, verdict)


def called(bench: Bench, job: jobs.Job, out: Path) -> dict[str, Any]:
    """The conversion as a call of the hook itself."""
    task = usual_task(bench.manifest)
    arguments = {
        "source": str(job.source), "out": str(out), "precision": job.precision.name,
        "format": bench.format_for(job.precision.name, task), "options": bench.options("convert", task),
        "limits": asdict(bench.limits(task, job.source)),
    }  # fmt: skip
    return {"hook": "edgecore_convert", "arguments": arguments}


@check
class Progress(OfConvert):
    """convert.progress: progress is told, only grows, ends at its total, and is never silent for long.

    Every report is kept with its time. Within a stage the numbers never fall and never pass the total, the last one
    is the total, and no five seconds pass without one. A failure is a bar that jumps back or stands still, which
    people take for a hang; and a cancellation that nobody hears, because reports are where it is heard.
    """

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        text = jobs.makes(manifest, "convert", "text")
        return [{"model": TRAINED}, {"model": "real"}] if level == "full" and text else [{"model": TRAINED}]

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        if cell["model"] == "real":
            precision = precision_for(bench.manifest, "text")
            return upsets.reports(bench, jobs.convert_job(bench, bench.known.fixture("real"), precision))
        return upsets.reports(bench, usual_job(bench))

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        upsets.judge_reports(seen, verdict)


@check
class Cancel(OfConvert):
    """convert.cancel: a conversion that nobody waits for any more stops in time, and the next call works.

    The caller's progress function raises `Cancelled` at the first report; the call must end with it within five
    seconds, and the next conversion must give the same files as an undisturbed one. The same is asked of the hook
    itself in a fresh interpreter: after a report has raised, it must end with `Cancelled` and do no more work
    that it reports. A failure usually is an `except Exception` around a loop.
    """

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        job = usual_job(bench)
        seen = upsets.cancelled(bench, job)
        out = bench.folder("cancelled")
        call = {**called(bench, job, out), "cancel_at": 2}
        seen.facts["direct"] = upsets.cancelled_facts(direct.observe_directly(bench, call))
        return seen

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        upsets.judge_cancelled(seen, verdict)


@check
class Killed(OfConvert):
    """convert.killed: kill -9 in the middle leaves nothing outside the folder, and the next call works.

    A worker with empty folders for home, temporary files, working directory and EDGECORE_HOME is killed at its first
    report of progress. The caller must get `WorkerCrashed`; the source and the folders must be as they were; a new
    worker must give the same files as an undisturbed one. A failure usually is a lock or a temporary file that
    the next run trips over.
    """

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        return upsets.killed(bench, usual_job(bench))

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        upsets.judge_killed(seen, verdict)


@check
class DiskFull(OfConvert):
    """convert.disk_full: a full disk is an error that says so, never an artifact.

    The worker's largest file size is limited (RLIMIT_FSIZE, Linux) to half of what the largest file of the artifact
    needs, then to 4 KiB. Both calls must raise `DoesNotFit`; with the limit lifted the same worker must
    convert well. A failure is half a model that looks like a whole one, or a traceback where "the disk is
    full" would have told everything.
    """

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        return upsets.disk_full(bench, usual_job(bench))

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        upsets.judge_disk_full(seen, verdict)


@check
class Corrupt(OfConvert):
    """convert.corrupt: a damaged source is `CorruptModel`, whatever is damaged, and never an artifact.

    Copies of the fixture with one fault each: weights that end in the middle, a NaN, a matrix said to lie the other
    way, an index that leads nowhere, a damaged header, half a config, another kind of file, an empty one. Each must
    raise `CorruptModel` and leave a worker that answers. A failure is a crash that people report to the wrong project,
    or a model of garbage weeks later.
    """

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        kinds = [
            k
            for task in ("text", "tensor")
            if jobs.makes(manifest, "convert", task)
            for k in jobs.sources_of(manifest, task)
        ]
        return [{"source": kind, "fault": fault} for kind in kinds for fault in sources.FAULTS[kind]]

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        kind = cell["source"]
        task = jobs.task_of(kind)
        path = sources.damage(sources.source(bench, kind), kind, cell["fault"])
        job = jobs.convert_job(bench, path, precision_for(bench.manifest, task), task=task)
        backend = bench.backend()
        error = jobs.attempt(lambda: job.run(backend, bench.folder("corrupt"), bench.left), bench)
        return Observation({**error, "after": jobs.attempt(lambda: backend.probe(deadline=bench.left), bench)})

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        error = seen.facts.get("error", "")
        verdict.expect(
            error == "CorruptModel",
            f"{error or 'an artifact'}, where CorruptModel is due: {seen.facts.get('what', '')}",
        )
        verdict.expect(not seen.facts["after"], f"afterwards the worker does not answer: {seen.facts['after']}")


@check
class Refused(OfConvert):
    """convert.refused: what convert cannot do is refused with the typed error, before any work.

    A precision that does not exist is `UnsupportedPrecision`; a format that does not exist, and a model of a family
    that is none, are `UnsupportedModel`; a context longer than the model was trained for is `DoesNotFit`; a source
    that is not there is `ModelNotFound`. A failure is a hook that trusts its caller: the core's command line refuses
    most of this before, but it is not the only caller.
    """

    def applies(self, manifest: Manifest) -> bool:
        return jobs.makes(manifest, "convert", "text")

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        return [{"case": case} for case in refusals.REFUSALS]

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        out = bench.folder("refused")
        error = jobs.attempt(lambda: refusals.refusal(bench, cell["case"], out), bench)
        return Observation({**error})

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        error, due = seen.facts.get("error", ""), refusals.REFUSALS[cell["case"]]
        verdict.expect(error in due, f"{error or 'an artifact'}, where {due[0]} is due: {seen.facts.get('what', '')}")
