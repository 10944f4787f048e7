"""Group *robustness*: what goes wrong is an answer, in time, and nothing of it stays behind."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from edgecore.contract.artifacts import Artifact
from edgecore.contract.manifest import Manifest
from edgecore.contract.sampling import GREEDY
from edgecore.contract.sessions import TextSession
from edgecore.workers import Backend
from edgecore.workers.limits import anonymous_bytes
from edgecore_conformance import watching
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, Check, check, has_task
from edgecore_conformance.checks import host, interrupt, jobs, upsets
from edgecore_conformance.checks.quantize_upsets import damaged
from edgecore_conformance.checks.upsets import IN_TIME
from edgecore_conformance.known import TRAINED, Known
from edgecore_conformance.observation import Judgement, Observation

PROMPT = 8
"""Tokens of the prompt of every small generation here."""
PARTS = (host, interrupt)
"""Where the other checks of this group stand."""


class OfText(Check):
    """Applies to plugins that make text artifacts; speaks of claims about text."""

    def applies(self, manifest: Manifest) -> bool:
        return has_task("text")(manifest) and bool(manifest.formats_of("text"))

    def proves(self, manifest: Manifest, cell: Cell) -> Mapping[str, str]:
        return {"task": "text", **super().proves(manifest, cell)}


def greedy(bench: Bench, backend: Backend | None = None, count: int = 8) -> list[int]:
    """A short answer, the same every time."""
    with bench.session(bench.artifact(TRAINED), backend=backend, threads=1) as session:
        assert isinstance(session, TextSession)
        prompt = bench.known.tokens(TRAINED, "robustness", PROMPT)
        return [p.token for p in session.generate(prompt, max_tokens=count, sampling=GREEDY) if p.token >= 0]


@check
class Crash(OfText):
    """robustness.crash: a worker that dies is an answer with its signal, and the next one works.

    A worker is killed while it is idle, and another while it streams an answer. Each waiting call must raise
    `WorkerCrashed` at once, later calls too; a new worker must give the same greedy answer as before. This is also the
    suite's own footing: a crash in one check leaves its row, and the run goes on.
    """

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        artifact = bench.artifact(TRAINED)
        seen = Observation({"before": greedy(bench)})
        with bench.fresh() as backend:
            pid = backend.pid
            upsets.end_process(pid)
            seen.facts["idle"] = [jobs.attempt(lambda: backend.probe(deadline=bench.left), bench) for _ in range(2)]
            seen.facts["gone"] = upsets.gone(pid)
        with bench.fresh() as backend:
            opened = backend.open(
                artifact, device=bench.device, threads=1, options=bench.options("run"), deadline=bench.left
            )
            assert isinstance(opened, TextSession)
            pieces = opened.generate(bench.known.tokens(TRAINED, "robustness", PROMPT), sampling=GREEDY)

            def read() -> None:
                next(pieces)
                upsets.end_process(backend.pid)
                for _ in pieces:
                    pass

            begun = time.monotonic()
            seen.facts["streaming"] = jobs.attempt(read, bench)
            seen.facts["seconds"] = time.monotonic() - begun
            seen.facts["later"] = jobs.attempt(lambda: opened.tokenize("x"), bench)
        with bench.fresh() as backend:
            seen.facts["after"] = greedy(bench, backend)
        return seen

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        facts = seen.facts
        # The stream may have been computed ahead to its end before the signal: then it is read, and nothing is raised.
        for what, error in (("idle", facts["idle"][0]), ("idle, again", facts["idle"][1]), ("later", facts["later"])):
            verdict.expect(error.get("error") == "WorkerCrashed", f"{what}: {error}, where WorkerCrashed is due")
        verdict.expect(
            facts["streaming"].get("error", "WorkerCrashed") == "WorkerCrashed", f"streaming: {facts['streaming']}"
        )
        verdict.figure("until the stream ended", facts["seconds"], IN_TIME + 5, "<=", "s", "a death is noticed at once")
        verdict.expect(facts["gone"], "the killed worker lives on")
        verdict.expect(bool(facts["before"]) and facts["before"] == facts["after"], "a new worker answers otherwise")


@check
class Deadline(OfText):
    """robustness.deadline: a call that has no time left raises `Timeout`, and what it left can be used or is gone.

    Convert is called with a deadline of a millisecond, and so is a generation in an open session. Both must raise
    `Timeout` within five seconds; afterwards the worker answers, or it was ended and says so. A failure is a call
    that nobody can stop: native code that neither reports progress nor lets other threads run.
    """

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        seen = Observation()
        artifact = bench.artifact(TRAINED)
        for what in ("convert", "generate") if jobs.makes(bench.manifest, "convert") else ("generate",):
            with bench.fresh() as backend:
                backend.probe(deadline=bench.left)
                call = _slow_convert(bench, backend) if what == "convert" else _slow_generate(bench, backend, artifact)
                begun = time.monotonic()
                error = jobs.attempt(call, bench)
                seconds = time.monotonic() - begun
                after = jobs.attempt(lambda b=backend: b.probe(deadline=bench.left), bench)  # type: ignore[misc]
                pid, living = backend.pid, upsets.alive(backend.pid)
            seen.facts[what] = {**error, "seconds": seconds, "after": after, "living": living, "gone": upsets.gone(pid)}
        return seen

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        for what, facts in seen.facts.items():
            verdict.expect(
                facts.get("error") == "Timeout", f"{what}: {facts.get('error') or 'an answer'}, where Timeout is due"
            )
            verdict.figure(
                f"{what}: until Timeout", facts["seconds"], IN_TIME, "<=", "s", "2 s of grace, and a busy machine"
            )
            verdict.expect(
                bool(facts["living"]) != bool(facts["after"]), f"{what}: the worker lives and does not answer"
            )
            verdict.expect(facts["gone"], f"{what}: the worker lives on after it was closed")


def _slow_convert(bench: Bench, backend: Backend) -> Any:
    from edgecore_conformance.checks.convert import precision_for

    kind = bench.known.fixture(TRAINED)
    job = jobs.convert_job(bench, kind, precision_for(bench.manifest, "text"))
    return lambda: job.run(backend, bench.folder("deadline"), 0.001)


def _slow_generate(bench: Bench, backend: Backend, artifact: Artifact) -> Any:
    opened = backend.open(artifact, device=bench.device, threads=1, options=bench.options("run"), deadline=bench.left)
    assert isinstance(opened, TextSession)
    opened.deadline = 1e-4  # type: ignore[attr-defined]
    most = min(320, bench.known.context(TRAINED))
    prompt = bench.known.tokens(TRAINED, "robustness", most * 4 // 5)
    return lambda: list(opened.generate(prompt, max_tokens=most // 5, sampling=GREEDY))


@check
class MemoryLimit(OfText):
    """robustness.memory_limit: a worker that holds more than it may is ended, and the call says that it does not fit.

    A worker may hold 8 MiB of anonymous memory, which none with a runtime can keep to, and opens the
    artifact: `DoesNotFit`, and the process is gone. With 16 GiB the same works. A failure is a machine that swaps
    until somebody pulls the plug.
    """

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        artifact = bench.artifact(TRAINED)
        pids: list[int] = []

        def use(limit: int) -> None:
            with bench.fresh(memory_limit=limit) as backend:
                pids.append(backend.pid)
                for _ in range(20):  # the limit is watched, twenty times a second
                    backend.probe(deadline=bench.left)
                    with bench.session(artifact, backend=backend, threads=1) as opened:
                        if isinstance(opened, TextSession):
                            opened.context().prefill(bench.known.tokens(TRAINED, "robustness", PROMPT))
                    if limit > 1 << 30:
                        break
                    time.sleep(0.05)

        return Observation(
            {
                "small": jobs.attempt(lambda: use(8 << 20), bench),
                "large": jobs.attempt(lambda: use(16 << 30), bench),
                "gone": all(upsets.gone(pid) for pid in pids),
            }
        )

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        error = seen.facts["small"]
        verdict.expect(
            error.get("error") == "DoesNotFit", f"with 8 MiB: {error or 'an answer'}, where DoesNotFit is due"
        )
        verdict.expect(not seen.facts["large"], f"with 16 GiB: {seen.facts['large']}")
        verdict.expect(seen.facts["gone"], "a worker lives on")


@check
class Rounds(OfText):
    """robustness.rounds: opening and closing again and again costs nothing that stays.

    Ten rounds in one worker (a hundred at level full): open, read a prompt, answer, close; and open in vain, for a
    longer context than the model was trained for and with a model file that ends early. Anonymous memory, open files,
    threads and processes are counted after each. Between the third round and the last, memory may grow by a tenth of
    what an open session holds a round, at least half a MiB; the others not at all by more than two. The artifact must
    be as it was: it is sealed, may lie where nobody can write, and what lies beside its files is no part of it. A
    failure is a close that forgets something: the process of a server dies of it in the third week.
    """

    seconds = 300.0

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        artifact, rounds = bench.artifact(TRAINED), 100 if bench.known.level == "full" else 10
        prompt = bench.known.tokens(TRAINED, "robustness", PROMPT)
        after: list[list[int]] = []
        held: list[int] = []
        answers: list[list[int]] = []
        where, before = jobs.places(bench.folder("rounds")), jobs.tree(artifact.path)
        vain = [(artifact, artifact.context_length + 1), (damaged(bench, artifact), None)]
        errors: list[list[str]] = []
        with jobs.elsewhere(where):
            context = bench.fresh()
            backend = context.__enter__()
        with ExitStack() as stack:
            stack.push(context.__exit__)
            for _ in range(rounds):
                with bench.session(artifact, backend=backend, threads=1) as opened:
                    assert isinstance(opened, TextSession)
                    answers.append([p.token for p in opened.generate(prompt, max_tokens=2, sampling=GREEDY)])
                    held.append(anonymous_bytes(backend.pid))
                errors.append([_in_vain(bench, backend, bad, length) for bad, length in vain])
                backend.probe(deadline=bench.left)  # what closing left to do is done
                after.append([anonymous_bytes(backend.pid), *watching.held(backend.pid)])
        left = {name: sorted(tree) for name, tree in jobs.trees(where).items()}
        changed = jobs.changes(before, jobs.tree(artifact.path))
        facts = {"after": after, "held": held, "answers": answers, "left": left, "errors": errors}
        return Observation({**facts, "artifact": changed})

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        after, held = seen.facts["after"], seen.facts["held"]
        due = 100 if known.level == "full" else 10
        verdict.expect(len(after) == due, f"{len(after)} rounds, where {due} are due")
        verdict.expect(all(a == seen.facts["answers"][0] for a in seen.facts["answers"]), "rounds answer differently")
        for place, files in seen.facts["left"].items():
            # Less than one a round: a cache of all rounds together, not a leak.
            verdict.expect(len(files) < due, f"left in {place}: {len(files)} files, {', '.join(files[:5])}")
        verdict.expect(not seen.facts["artifact"], f"the artifact: {', '.join(seen.facts['artifact'])}")
        untyped = [half for _, half in seen.facts["errors"] if half in jobs.UNTYPED]
        verdict.expect(not untyped, f"half a model: {untyped[:1]}, where an error of the contract is due")
        memory = [a[0] for a in after]
        session = max(0, statistics.median(held) - statistics.median(memory))
        early, late = statistics.median(memory[2:5]), statistics.median(memory[-3:])
        rounds = max(1, len(after) - 5)
        allowed = max(1 << 19, session / 10)
        verdict.figure(
            "growth a round", (late - early) / rounds / 1e6, allowed / 1e6, "<=", "MB", "a tenth of a session"
        )
        verdict.figure("an open session holds", session / 1e6, unit="MB")
        for number, what in enumerate(watching.HELD, 1):
            if after[0][number] >= 0:
                verdict.figure(
                    f"growth of {what}", after[-1][number] - after[2][number], 2, "<=", "", "none, but noise"
                )


def _in_vain(bench: Bench, backend: Backend, artifact: Artifact, context_length: int | None) -> str:
    """The error of an open that cannot succeed, by name; empty where it did."""

    def opened() -> None:
        with bench.session(artifact, backend=backend, context_length=context_length, threads=1) as session:
            if isinstance(session, TextSession):
                session.context().prefill(bench.known.tokens(TRAINED, "robustness", PROMPT))

    return jobs.attempt(opened, bench).get("error", "")


@check
class Misuse(OfText):
    """robustness.misuse: a call that makes no sense is an error that says so, and the session goes on.

    Tokens outside the vocabulary, a rewind further than there is, calls after close, an artifact whose model file is
    missing or ends early. Each must raise one of the contract's errors, not a fault of the plugin and not a crash, and
    afterwards the worker must open the whole artifact and answer as before. A failure is memory read where no model is,
    or a server that one bad request takes down.
    """

    CASES = ("negative token", "token beyond", "rewind", "after close", "no model", "half a model")

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        return [{"case": case.replace(" ", "-")} for case in self.CASES]

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        artifact, backend = bench.artifact(TRAINED), bench.backend()
        case = cell["case"].replace("-", " ")
        answers = [greedy(bench, backend)]
        error = jobs.attempt(lambda: misused(bench, artifact, case), bench)
        after = jobs.attempt(lambda: answers.append(greedy(bench, backend)), bench)
        bench.stage = "run"
        if after:
            bench.forget()
        return Observation({**error, "after": after, "answers": answers})

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        error = seen.facts.get("error", "")
        verdict.expect(
            error not in jobs.UNTYPED,
            f"{error or 'an answer'}, where an error of the contract is due: {seen.facts.get('what', '')}",
        )
        verdict.expect(not seen.facts["after"], f"afterwards the worker does not answer: {seen.facts['after']}")
        answers = seen.facts["answers"]
        verdict.expect(answers[0] == answers[-1], f"afterwards it answers {answers[-1]}, and before {answers[0]}")


def misused(bench: Bench, artifact: Artifact, case: str) -> object:
    """Do it. Raises what the backend raises."""
    if case in ("no model", "half a model"):
        bad = damaged(bench, artifact)
        if case == "no model":
            for file in sorted(f for f in bad.path.rglob("*") if f.is_file()):
                file.unlink()
        with bench.session(bad, threads=1) as opened:
            assert isinstance(opened, TextSession)
            return opened.context().prefill(bench.known.tokens(TRAINED, "robustness", PROMPT))
    with bench.session(artifact, threads=1) as session:
        assert isinstance(session, TextSession)
        context = session.context()
        match case:
            case "negative token":
                return context.prefill([-1])
            case "token beyond":
                return context.prefill([session.vocab_size])
            case "rewind":
                context.prefill(bench.known.tokens(TRAINED, "robustness", PROMPT))
                return context.rewind(PROMPT + 1)
        session.close()
        return context.prefill([1])
