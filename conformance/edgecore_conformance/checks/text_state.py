"""State: what a session may remember, and what it must forget: other sessions, earlier requests, closed ones."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

from edgecore.contract.sampling import GREEDY as GREEDY_SAMPLING
from edgecore.contract.sessions import TextSession
from edgecore.workers import Backend
from edgecore_conformance import fixtures
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, check
from edgecore_conformance.checks import text_ops as ops
from edgecore_conformance.checks.text_common import (
    Inputs,
    TextCheck,
    allowance,
    border,
    opened,
    sampling,
    stated,
    text_families,
    tokens_of,
    weigh_greedy,
    weigh_rows,
)
from edgecore_conformance.checks.text_generate import GREEDY, Scripted, expect_answer, generated, prompt_into
from edgecore_conformance.known import SCRIPTED, TRAINED, Known
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.scripted import said

CANCEL_SECONDS = 5.0
"""In which a session answers again after a generation was closed."""
MIB = 1 << 20
CYCLES = 4
"""Times that the same sizes are gone through."""
GROWTH_MIB = 0.75
"""Anonymous memory that a round may leave behind: allocators wander, sessions are larger."""


@check
class TextSessions(TextCheck):
    """text.sessions: sessions that are open at once do not mix.

    Two sessions of one artifact and one of another model are read and stepped in turn, then rewound and reset one by
    one; every answer must be the oracle's for that session's own tokens. A third session of the same artifact is
    closed, and two generations stream piece by piece in turn.

    A cache, a batch or a buffer that belongs to the module instead of the session is found here, and a model that
    several sessions share and the first to close frees.
    """

    def sources(self, known: Known, cell: Cell) -> list[str]:
        mine = self.fixture(known.manifest, cell)
        claimed = [f for f in text_families(known.manifest, known.device) if f in fixtures.families()]
        others = [f for f in claimed if f != mine and not border(known, f)]
        return [mine, mine, known.draw("other model").choice(others) if others else mine]

    def inputs(self, known: Known, cell: Cell) -> Inputs:
        text = [known.tokens(f, f"sessions {n}", 40) for n, f in enumerate(self.sources(known, cell))]
        operations: list[ops.Operation] = [[n, "prefill", text[n][: 9 + n]] for n in range(3)]
        for at in range(12, 18):
            operations += [[n, "step", [text[n][at]]] for n in (0, 1, 2)]
        operations += [
            [1, "rewind", 5], [0, "prefill", text[0][18:30]], [1, "step", [text[1][20]]], [2, "reset", 0],
            [0, "step", [text[0][30]]], [2, "prefill", text[2][:7]], [1, "prefill", text[1][21:40]],
            [0, "reset", 0], [1, "step", [text[1][0]]], [0, "prefill", text[0][5:16]], [2, "step", [text[2][8]]],
        ]  # fmt: skip
        return {"operations": operations, "prompts": [text[0][:11], text[1][:14]], "sources": self.sources(known, cell)}

    def look(self, bench: Bench, cell: Cell, asked: Inputs) -> Observation:
        with ExitStack() as stack:
            sessions = [stack.enter_context(opened(bench, fixture)) for fixture in asked["sources"]]
            with opened(bench, asked["sources"][0]) as early:
                early.context().prefill(asked["prompts"][0])
                seen = ops.perform(sessions, asked["operations"])
            streams = [
                s.generate(p, max_tokens=12, sampling=GREEDY_SAMPLING)
                for s, p in zip(sessions, asked["prompts"], strict=False)
            ]
            made: list[list[int]] = [[], []]
            going = {0, 1}
            while going:
                for number in sorted(going):
                    piece = next(streams[number], None)
                    if piece is None:
                        going.discard(number)
                    elif piece.token >= 0:
                        made[number].append(piece.token)
            seen.facts |= {**stated(sessions[0], bench), "made": made}
        return seen

    def weigh(self, asked: Inputs, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        sources = self.sources(known, cell)
        ops.weigh(asked["operations"], seen, sources, known, verdict)
        for number, prompt in enumerate(asked["prompts"]):
            made = seen.facts["made"][number]
            weigh_greedy(verdict, f"stream {number}", known, sources[number], prompt, made, seen)


@check
class TextOrder(TextCheck):
    """text.order: results do not depend on what ran before.

    The same requests (a prompt's logits, a greedy answer, a sampled one with its seed) are put to a worker that has
    done nothing yet, again after prompts of other lengths, sampled answers, stop strings and scores, then to a new
    session in the same worker, and to the worker that has run all other checks. Logits and greedy tokens are held to
    the oracle's each time, and a seed must give the same tokens each time.

    What differs comes from a cache that outlives its request, a generator that goes on where it stopped, or a buffer
    that is not cleared.
    """

    def inputs(self, known: Known, cell: Cell) -> Inputs:
        fixture = self.fixture(known.manifest, cell)
        sizes = (min(n, known.context(fixture) - 9) for n in (3, 300, 57))
        others = [known.tokens(fixture, f"order other {n}", n) for n in sizes]
        return {
            "prompt": known.tokens(fixture, "order", 31),
            "others": others,
            "seed": known.draw("order").randrange(9999),
        }

    def look(self, bench: Bench, cell: Cell, asked: Inputs) -> Observation:
        fixture = self.fixture(bench.manifest, cell)
        artifact = bench.artifact(fixture)
        found: list[Any] = []
        rows = []

        def request(session: TextSession) -> None:
            context = session.context()
            context.reset()
            rows.append(context.prefill(asked["prompt"]))
            how = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": asked["seed"]}
            case = {"prompt": asked["prompt"], "max_tokens": 14}
            found.append([generated(session, case), generated(session, {**case, "sampling": how})])

        def others(session: TextSession) -> None:
            for number, prompt in enumerate(asked["others"]):
                how = {"temperature": 1.3, "seed": number}
                generated(session, {"prompt": prompt, "max_tokens": 9, "sampling": how, "stop": ["e", "a b"]})
                if bench.manifest.can("logits"):
                    for _ in session.score(prompt):
                        pass
            session.context().prefill(asked["others"][0])

        def anew(backend: Backend | None) -> Any:
            return bench.session(artifact, backend=backend, threads=1)

        with bench.fresh() as backend:
            with anew(backend) as session:
                request(session)
                others(session)
                request(session)
            with anew(backend) as session:
                others(session)
            with anew(backend) as session:
                request(session)
        with anew(None) as session:
            request(session)
            facts = {**stated(session, bench), "found": found}
        return Observation(facts, {"logits": np.stack(rows)})

    def weigh(self, asked: Inputs, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        fixture, prompt = self.fixture(known.manifest, cell), asked["prompt"]
        names = ("in a worker that was new", "after other requests", "in a new session", "in the shared worker")
        bound, origin = allowance(known, seen, fixture, prompt)
        reference = np.repeat(known.logits(fixture, prompt)[-1:], len(names), axis=0)
        weigh_rows(verdict, "logits of the same prompt", reference, seen.arrays["logits"], bound, origin)
        first = tokens_of(seen.facts["found"][0][1])
        for name, (greedy, drawn) in zip(names, seen.facts["found"], strict=True):
            verdict.expect(not greedy["error"] and not drawn["error"], f"{name}: {greedy['error'] or drawn['error']}")
            weigh_greedy(verdict, name, known, fixture, prompt, tokens_of(greedy), seen)
            made = tokens_of(drawn)
            verdict.expect(made == first, f"{name}: seed {asked['seed']} draws {made[:6]}..., and drew {first[:6]}...")


@check
class TextReuse(TextCheck):
    """text.reuse: an answer that reuses the cache is the answer that would be computed anew.

    Prompts that share a beginning with what the context holds, all of it, or nothing, are continued with `reuse_cache`,
    greedily; every token is held to the oracle's, as is an answer without it afterwards.

    Sharing that is taken by length instead of by tokens continues another conversation.
    """

    def inputs(self, known: Known, cell: Cell) -> Inputs:
        fixture = self.fixture(known.manifest, cell)
        one, two = (known.tokens(fixture, f"reuse {n}", 60) for n in range(2))
        changed = list(one[:45])
        changed[3] = next(t for t in two if t != one[3])
        prompts = [one[:20], one[:40], changed, changed[:30], changed[:30], two[:45], [*two[:10], *one[:10]], one[:20]]
        reuse = [True] * (len(prompts) - 1) + [False]
        return {
            "cases": [
                {"prompt": p, "max_tokens": 8, "reuse_cache": r, "sampling": GREEDY}
                for p, r in zip(prompts, reuse, strict=True)
            ]
        }

    def look(self, bench: Bench, cell: Cell, asked: Inputs) -> Observation:
        with opened(bench, self.fixture(bench.manifest, cell)) as session:
            answers = [generated(session, case) for case in asked["cases"]]
            facts = stated(session, bench)
        return Observation({"answers": answers, **facts})

    def weigh(self, asked: Inputs, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        fixture = self.fixture(known.manifest, cell)
        for number, (case, answer) in enumerate(zip(asked["cases"], seen.facts["answers"], strict=True)):
            what = f"answer {number} to {len(case['prompt'])} tokens"
            verdict.expect(not answer["error"], f"{what}: {answer['error']}")
            weigh_greedy(verdict, what, known, fixture, case["prompt"], tokens_of(answer), seen)


@check
class TextCancel(Scripted):
    """text.cancel: a generation that is closed ends in time, and the session goes on.

    An answer of hundreds of tokens is closed after its third piece, three times. The next call must be answered
    within five seconds, and in less than half of the time that the whole answer takes and half a second; the context
    must hold the prompt and what was read; the next answer must be right.

    An answer that is computed to its end before its first piece is shown cannot be cancelled; neither can one whose
    loop nobody asks.
    """

    def cases(self, known: Known) -> dict[str, Inputs]:
        prompt = prompt_into(known, "cancel", known.script.loop[2])
        most = min(450, known.context(SCRIPTED) - len(prompt))
        return {"whole": {"prompt": prompt, "max_tokens": most}, "after": {"prompt": prompt, "max_tokens": 9}}

    def look(self, bench: Bench, cell: Cell, asked: Inputs) -> Observation:
        case = asked["cases"]["whole"]
        took, held, read = [], [], []
        with opened(bench, SCRIPTED) as session:
            for _ in range(3):
                begin = time.monotonic()
                stream = session.generate(case["prompt"], max_tokens=case["max_tokens"], sampling=sampling(GREEDY))
                read.append([next(stream).token for _ in range(3)])
                stream.close()  # type: ignore[attr-defined]
                held.append(list(session.context().tokens))
                took.append(round(time.monotonic() - begin, 4))
            whole = generated(session, case)
            after = generated(session, asked["cases"]["after"])
            facts = stated(session, bench)
        answers = {"whole": whole, "after": after}
        return Observation({"answers": answers, "took": took, "held": held, "read": read, **facts})

    def weigh(self, asked: Inputs, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        tokenizer, case = known.tokenizer(TRAINED), asked["cases"]["whole"]
        for name, asking in asked["cases"].items():
            due = known.script.answer(asking["prompt"][-1], asking["max_tokens"])
            expect_answer(verdict, name, seen.facts["answers"][name], due, said(tokenizer, due), "length")
        whole = float(seen.facts["answers"]["whole"]["seconds"])
        took = min(seen.facts["took"])
        verdict.figure(
            "seconds until the next call is answered", took, CANCEL_SECONDS, "<=", "s", "stated by the check"
        )
        verdict.figure(
            "the same beside a whole answer", took, whole / 2 + 0.5, "<=", "s", f"half of {whole:g} s, and 0.5 s"
        )
        for held, read in zip(seen.facts["held"], seen.facts["read"], strict=True):
            due = [*case["prompt"], *known.script.answer(case["prompt"][-1], 3)]
            verdict.expect(read == due[-3:], f"the first three tokens are {read}, and should be {due[-3:]}")
            verdict.expect(
                held in (due, due[:-1]),
                f"after it was closed the context holds {len(held)} tokens, not the {len(due)} seen",
            )


@check
class TextMemory(TextCheck):
    """text.memory: memory comes back after close, and does not grow with requests.

    In a worker of its own, sessions are opened, given prompts of three different sizes in turn, and closed; then one
    session answers prompts of three sizes in turn, and beside each one that is closed after its first piece. Each is
    gone through four times. The worker's anonymous memory, read from outside, may not grow by more than 0.75 MiB a
    round from the second time to the fourth.

    A session that is kept alive, a KV cache that nobody frees or logits that are collected grow by their size each
    round.
    """

    def inputs(self, known: Known, cell: Cell) -> Inputs:
        draw, most = known.draw("memory"), known.context(self.fixture(known.manifest, cell))
        sizes = [draw.randrange(20, 60), 400, draw.randrange(80, 300)]
        more = [400, draw.randrange(20, 60), draw.randrange(80, 300)]
        return {"sizes": CYCLES * [min(n, most) for n in sizes], "requests": CYCLES * [min(n, most) for n in more]}

    def look(self, bench: Bench, cell: Cell, asked: Inputs) -> Observation:
        fixture = self.fixture(bench.manifest, cell)
        artifact = bench.artifact(fixture)
        text = bench.known.tokens(fixture, "memory", 450)
        at_work, closed, requests = [], [], []
        with bench.fresh() as backend:
            before = anonymous(backend.pid)
            for size in asked["sizes"]:
                with bench.session(artifact, backend=backend, threads=1) as session:
                    assert isinstance(session, TextSession)
                    work(session, text[:size])
                    at_work.append(anonymous(backend.pid))
                closed.append(anonymous(backend.pid))
            with bench.session(artifact, backend=backend, threads=1) as session:
                assert isinstance(session, TextSession)
                for size in asked["requests"]:
                    work(session, text[:size])
                    cut(session, text[:20])
                    requests.append(anonymous(backend.pid))
        return Observation({"before": before, "at_work": at_work, "closed": closed, "requests": requests})

    def weigh(self, asked: Inputs, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        closed, requests = seen.facts["closed"], seen.facts["requests"]
        rounds = growth(closed)
        verdict.figure("growth of a round of open, work, close", rounds, GROWTH_MIB, "<=", "MiB", "stated by the check")
        verdict.figure("growth of a request", growth(requests), GROWTH_MIB, "<=", "MiB", "stated by the check")
        size = median(a - b for a, b in zip(seen.facts["at_work"], closed, strict=True)) / MIB
        verdict.figure("given back by closing", size, unit="MiB")


def growth(readings: list[int]) -> float:
    """MiB that a round leaves behind: each reading beside the one with the same size a cycle before, and of these the
    least but one. A leak is in all of them; an allocator's steps, of any height, are in one cycle's or two. The
    first cycle is not looked at: allocators keep what the largest prompt took."""
    size = len(readings) // CYCLES
    later = [(b - a) / size / MIB for a, b in zip(readings[size:], readings[2 * size :], strict=False)]
    return sorted(later)[1]


def work(session: TextSession, prompt: list[int]) -> None:
    """A prompt and a short answer."""
    context = session.context()
    context.reset()
    context.prefill(prompt)
    for _ in session.generate(prompt[:20], max_tokens=6, sampling=sampling({"temperature": 1.0, "seed": 1})):
        pass


def cut(session: TextSession, prompt: list[int]) -> None:
    """An answer that is closed after its first piece. Not just before a session is closed: how far a worker had gone on
    by then, and with it what an allocator keeps, is another each time."""
    stream = session.generate(prompt, max_tokens=40, sampling=GREEDY_SAMPLING)
    next(stream)
    stream.close()  # type: ignore[attr-defined]


def anonymous(pid: int) -> int:
    """Bytes of a process that are no file's; all that are resident where the system does not tell them apart."""
    if sys.platform.startswith("linux"):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("RssAnon:"):
                return 1024 * int(line.split()[1])
    return int(psutil.Process(pid).memory_info().rss)
