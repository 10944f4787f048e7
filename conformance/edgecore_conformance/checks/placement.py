"""Placement: where the work ran, by a source that the plugin alone did not write.

The suite watches the worker itself (`watching`): CPU time and waiting for a CPU, loaded libraries, open device files,
the drivers' counters. What the plugin says is held against it. A right answer that nobody can place is `unplaced`,
one that was computed elsewhere `fell_back`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from edgecore.contract.artifacts import Artifact
from edgecore.contract.errors import EdgecoreError
from edgecore.contract.manifest import Manifest
from edgecore.contract.measurement import Workload
from edgecore.contract.placement import Placement, PlacementSource
from edgecore.contract.sessions import TensorSession, TextSession
from edgecore.workers import Backend
from edgecore_conformance import tensor_models, watching
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, Check, check, has_task
from edgecore_conformance.known import TRAINED, Known
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.outcomes import Outcome

SECONDS = 0.4
"""How long the worker is watched while it works."""
BUSY = 0.6
"""Threads that want a CPU, on average, from which on the CPU is what computes."""
IDLE = 0.5
"""And below which it is not."""
SLACK = 0.5
"""Threads beyond those that were asked for: messages, and a clock of ten milliseconds."""
UNKNOWN = "no-such-device"
IMAGES = 16
"""A batch of the classifier."""
PROMPT, STEPS = 128, 8
"""Tokens that a worker reads at once, and one by one."""


class PlacementCheck(Check):
    """One row a task of the plugin."""

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        return [{"task": task} for task in dict.fromkeys(f.task for f in manifest.formats) if has_task(task)(manifest)]


def artifact_for(bench: Bench, task: str) -> Artifact:
    return bench.artifact(TRAINED) if task == "text" else tensor_models.classifier(bench)[0]


def prompt_of(known: Known) -> int:
    """Tokens of the prompt that is read, of those that fit beside the steps."""
    return min(PROMPT, known.context(TRAINED) - STEPS)


def worker_for(bench: Bench, session: TextSession | TensorSession, purpose: str) -> Callable[[], None]:
    """Some tens of milliseconds of the session's own work, each time it is called."""
    if isinstance(session, TextSession):
        tokens = bench.known.tokens(TRAINED, purpose, prompt_of(bench.known))

        def text() -> None:
            context = session.context()
            context.reset()
            context.prefill(tokens)
            for token in tokens[:STEPS]:
                context.step(token)

        return text
    _, feeds = tensor_models.classifier_feeds(IMAGES)
    size = session.inputs[0].shape[0]
    fed = {name: array[:size] if isinstance(size, int) and size > 0 else array for name, array in feeds.items()}

    def tensor() -> None:
        session(fed)

    return tensor


def watched(pid: int, work: Callable[[], None], seconds: float = SECONDS, *, nvidia: bool = True) -> dict[str, Any]:
    """What was seen of a worker while it worked for so long, after a first call that does not count."""
    work()
    before = watching.glance(pid)
    calls = 0
    while calls < 2 or time.perf_counter() - before.when < seconds:
        work()
        calls += 1
    after = watching.glance(pid)
    seen = watching.between(before, after)
    if nvidia and (counters := _nvidia(pid, work)):
        seen = replace(seen, nvidia=counters)
    return {**seen.facts(), "calls": calls}


def _nvidia(pid: int, work: Callable[[], None]) -> Mapping[str, float]:
    """nvidia-smi's counters are levels: read from another thread while the work goes on."""
    import shutil
    import threading

    if shutil.which("nvidia-smi") is None:
        return {}
    found: list[Mapping[str, float]] = []
    reader = threading.Thread(target=lambda: found.append(watching.nvidia_smi(watching.family(pid))))
    reader.start()
    while reader.is_alive():
        work()
    return found[0] if found else {}


def stated(placement: Placement) -> dict[str, Any]:
    """As JSON has it."""

    def shares(given: Mapping[str, float]) -> dict[str, Any]:
        return {str(unit): float(share) if share == share else "nan" for unit, share in given.items()}

    return {
        "source": str(getattr(placement.source, "value", placement.source)),
        "operators": shares(placement.operators),
        "time": shares(placement.time),
        "detail": placement.detail,
    }


@check
class Claim(PlacementCheck):
    """placement.claim: what a session says of its placement makes sense, before and after work.

    Shares lie between 0 and 1 and sum to 1; a source that is not `none` comes with shares, and `none` without;
    `outside` is for whoever stands outside, not for a plugin. The units are devices that the manifest declares. Most
    of the work must be said to be on the device that was asked for: else the row reads *fell back*, by the plugin's
    own account."""

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        with bench.session(artifact_for(bench, cell["task"]), threads=1) as session:
            before = stated(session.placement)
            worker_for(bench, session, self.name())()
            return Observation({"before": before, "after": stated(session.placement)})

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        sources = {s.value for s in PlacementSource}
        for when in ("before", "after"):
            claim = seen.facts[when]
            verdict.expect(
                claim["source"] in sources, f"{when}: source {claim['source']!r} is none of {sorted(sources)}"
            )
            verdict.expect(claim["source"] != "outside", f"{when}: a plugin cannot see itself from outside")
            given = {name: claim[name] for name in ("operators", "time") if claim[name]}
            if claim["source"] == "none":
                verdict.expect(not given, f"{when}: shares {given} without a source")
            else:
                verdict.expect(bool(given), f"{when}: source {claim['source']} without shares")
                verdict.expect(bool(claim["detail"]), f"{when}: source {claim['source']} without what it said")
            for name, shares in given.items():
                if not all(isinstance(v, float | int) and 0 <= v <= 1 for v in shares.values()):
                    verdict.problems.append(f"{when}: {name}: {shares} are no shares")
                    continue
                verdict.figure(f"{when}: distance of {name} from 1 in sum", abs(sum(shares.values()) - 1), 0.01)
                foreign = sorted(set(shares) - {d.name for d in known.manifest.devices})
                verdict.expect(not foreign, f"{when}: {', '.join(foreign)} is no device of the manifest")
        shares = seen.facts["after"]["time"] or seen.facts["after"]["operators"]
        if shares and not verdict.problems:
            share = float(shares.get(known.device, 0.0))
            verdict.figure(f"share on {known.device}, by the plugin's account", share)
            if share < 0.5:
                verdict.claimed = Outcome.FELL_BACK


@check
class Where(PlacementCheck):
    """placement.where: the work runs on the device that was asked for, as seen from outside.

    A session and a benchmark of the plugin work for a while under the suite's eyes. On `cpu`, threads of the worker
    must want a CPU most of that time (used and waited-for seconds, so that a busy machine changes nothing), and no
    accelerator's counter may move. On any other device a counter of its driver must show work for this process. Where
    none does: if the CPU was as busy as if it did all the work, the row reads *fell back*, whatever the plugin says;
    else *unplaced*. A library that is merely loaded is no evidence.

    An emulated device computes on the CPU, as its manifest says. That it was the emulator takes two witnesses: the
    worker has a library of the accelerator loaded, and the runtime's own account has most of the work on the device.
    Where the account names another unit, the row reads *fell back*; where there is none, or no such library, nobody
    but the plugin knows, and it reads *unplaced*."""

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        artifact = artifact_for(bench, cell["task"])
        facts: dict[str, Any] = {}
        with bench.fresh() as backend:
            with bench.session(artifact, backend=backend, threads=1) as session:
                facts["session"] = watched(backend.pid, worker_for(bench, session, self.name()))
                facts["stated"] = stated(session.placement)
            seconds = facts["session"]["wall"] / facts["session"]["calls"]
            facts["benchmark"] = watched(backend.pid, _benchmark(bench, backend, artifact, seconds))
        return Observation(facts)

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        for path in ("session", "benchmark"):
            self._judge(path, seen.facts[path], known, verdict)
        if known.emulated:
            self._emulated(seen.facts, known, verdict)

    def _emulated(self, facts: Mapping[str, Any], known: Known, verdict: Judgement) -> None:
        shares = facts["stated"]["time"] or facts["stated"]["operators"]
        share = float(shares.get(known.device, 0.0)) if shares else None
        if share is not None:
            verdict.figure(f"share on {known.device}, by the runtime's account", share)
        if share is not None and not share >= 0.5:
            verdict.claimed = Outcome.FELL_BACK
        elif share is None or not all(facts[path]["libraries"] for path in ("session", "benchmark")):
            verdict.claimed = verdict.claimed or Outcome.UNPLACED

    def _judge(self, path: str, facts: Mapping[str, Any], known: Known, verdict: Judgement) -> None:
        wanted = watching.demand(facts)
        elsewhere = watching.accelerated(facts)
        on_cpu = known.device == "cpu" or known.emulated
        if wanted is not None:
            verdict.figure(f"{path}: threads that wanted a CPU", wanted, unit="on average")
        if facts["libraries"]:
            verdict.figure(f"{path}: loaded libraries of accelerators ({', '.join(facts['libraries'])})", 1)
        if on_cpu:
            if elsewhere:
                verdict.claimed = Outcome.FELL_BACK
                verdict.figure(f"{path}: an accelerator worked: {elsewhere}", 1)
            elif wanted is None:
                verdict.claimed = verdict.claimed or Outcome.UNPLACED
            else:
                verdict.figure(f"{path}: CPU time for the work", wanted, BUSY, ">=", "threads", "one was asked for")
        elif elsewhere:
            verdict.figure(f"{path}: {elsewhere}", 1)
        elif wanted is not None and wanted >= IDLE:
            verdict.figure(f"{path}: the CPU computed, and no counter of {known.device} moved", wanted)
            verdict.claimed = Outcome.FELL_BACK
        else:
            verdict.claimed = verdict.claimed or Outcome.UNPLACED


def _benchmark(bench: Bench, backend: Backend, artifact: Artifact, seconds: float) -> Callable[[], None]:
    """Calls of benchmark that take some tenths of a second; `seconds` is what a session took for a repetition."""
    prompt: tuple[int, ...] = ()
    if artifact.task == "text":
        prompt = tuple(bench.known.tokens(TRAINED, "placement.where", prompt_of(bench.known)))
    feeds = ""
    if artifact.task == "tensor":
        file = bench.folder("feeds") / "feeds.npz"
        images = 1 if bench.fixed_shapes else IMAGES
        np.savez(file, **tensor_models.classifier_feeds(images)[1])  # type: ignore[arg-type]
        feeds = str(file)
    repetitions = max(1, min(100, round(0.1 / max(seconds, 1e-4))))
    steps, context = (STEPS, min(256, bench.known.context(TRAINED))) if prompt else (1, None)
    workload = Workload(
        prompt, steps, repetitions=repetitions, warmup=0, threads=1, context_length=context, feeds=feeds
    )

    def run() -> None:
        backend.benchmark(
            artifact=artifact,
            device=bench.device,
            workload=workload,
            options=bench.options("run", artifact.task),
            deadline=bench.left,
        )

    return run


@check
class Threads(PlacementCheck):
    """placement.threads: no more threads compute than were asked for.

    A session is opened with one thread, and (in level full) another in a new worker with two. The threads of the
    worker that want a CPU are counted while it works, on average: more than was asked for and half a thread is too
    many. They are counted with those that wait, so a busy machine hides nothing. Fewer are no fault: not every
    operator divides. An emulator takes as many as it likes: the device has none of a CPU's."""

    def unfit(self, known: Known) -> str:
        return f"{known.device} is emulated: threads of this CPU are not the device's" if known.emulated else ""

    def asked(self, known: Known) -> tuple[int, ...]:
        return (1, 2) if known.level == "full" else (1,)

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        artifact = artifact_for(bench, cell["task"])
        facts: dict[str, Any] = {}
        for threads in self.asked(bench.known):
            with bench.fresh() as backend, bench.session(artifact, backend=backend, threads=threads) as session:
                work = worker_for(bench, session, self.name())
                facts[str(threads)] = [watched(backend.pid, work, SECONDS / 2, nvidia=False) for _ in range(2)]
        return Observation(facts)

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        for threads in self.asked(known):
            found = [d for facts in seen.facts[str(threads)] if (d := watching.demand(facts)) is not None]
            if not found:
                verdict.problems.append("the CPU time of the worker could not be read")
                continue
            verdict.figure(
                f"{threads} asked for: threads that wanted a CPU", min(found), threads + SLACK, "<=", "on average",
                f"as asked, and {SLACK:g}; the better of two times {SECONDS / 2:g} s",
            )  # fmt: skip


@check
class UnknownDevice(PlacementCheck):
    """placement.unknown_device: a device that there is not is `DeviceUnavailable`, naming those that there are.

    Asked of run and of benchmark. Opening on another device in its place is a silent fallback, the worst that can
    happen to a measurement. The next call, on the right device, must work.
    """

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        artifact = artifact_for(bench, cell["task"])
        said = {
            name: refusal(bench, artifact, device)
            for name, device in (("unknown", UNKNOWN), ("empty", ""), ("other case", bench.device.upper() + "9"))
        }
        with bench.session(artifact, threads=1) as session:
            worker_for(bench, session, self.name())()
        return Observation({"said": said})

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        for name, verbs in seen.facts["said"].items():
            for verb, said in verbs.items():
                judge_refusal(f"{name}, {verb}", said, verdict)
                if said.get("error") == "DeviceUnavailable":
                    named = known.device in said.get("supported", "") or known.device in said.get("what", "")
                    verdict.expect(named, f"{name}, {verb}: the error does not name {known.device!r}, which exists")


@check
class UnavailableDevice(PlacementCheck):
    """placement.unavailable_device: a declared device that is not here is reported so, and opening on it raises.

    Probe must speak of every declared device. One that it calls unavailable must give a reason, and run and benchmark
    on it must raise `DeviceUnavailable`; one that it calls available, beside the device of this run, is not tried
    here. Not applicable where every declared device is available."""

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        probe = bench.backend().probe(deadline=bench.left)
        devices = {d.name: {"available": bool(d.available), "reason": d.reason} for d in probe.devices}
        missing = [d.name for d in bench.manifest.devices if not devices.get(d.name, {}).get("available", True)]
        artifact = artifact_for(bench, cell["task"]) if missing else None
        said = {name: refusal(bench, artifact, name) for name in missing if artifact is not None}
        return Observation({"devices": devices, "said": said})

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        devices = seen.facts["devices"]
        for device in known.manifest.devices:
            verdict.expect(device.name in devices, f"probe does not speak of {device.name!r}")
        for name, verbs in seen.facts["said"].items():
            verdict.expect(bool(devices[name]["reason"]), f"{name} is unavailable, and probe gives no reason")
            for verb, said in verbs.items():
                judge_refusal(f"{name}, {verb}", said, verdict)
        if not seen.facts["said"]:
            verdict.claimed = Outcome.NOT_APPLICABLE


def refusal(bench: Bench, artifact: Artifact, device: str) -> dict[str, dict[str, str]]:
    """What run and benchmark say to a device."""
    said: dict[str, dict[str, str]] = {}
    prompt = tuple(bench.known.tokens(TRAINED, "placement.refusal", 8)) if artifact.task == "text" else ()
    options = bench.options("run", artifact.task)
    try:
        session = bench.backend().open(artifact, device=device, threads=1, options=options, deadline=bench.left)
        said["run"] = {"answered": f"a session, which says it runs on {stated(session.placement)['operators']}"}
        with suppress(EdgecoreError):
            session.close()
    except EdgecoreError as error:
        said["run"] = error.to_wire()
    workload = Workload(prompt, 1, repetitions=1, warmup=0, threads=1)
    try:
        bench.backend().benchmark(
            artifact=artifact, device=device, workload=workload, options=options, deadline=bench.left
        )
        said["benchmark"] = {"answered": "samples"}
    except EdgecoreError as error:
        said["benchmark"] = error.to_wire()
    return said


def judge_refusal(where: str, said: Mapping[str, str], verdict: Judgement) -> None:
    got = said.get("error") or said.get("answered", "nothing")
    verdict.expect(
        said.get("error") == "DeviceUnavailable",
        f"{where}: DeviceUnavailable was due, came {got}: {said.get('what', '')}".rstrip(": "),
    )
