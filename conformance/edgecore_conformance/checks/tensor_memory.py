"""Run, tensor: what an answer must not depend on: how feeds lie in memory, what ran before, who else runs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecore.contract.sessions import TensorSession
from edgecore.workers.limits import anonymous_bytes
from edgecore_conformance import tensor_models as models
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, check
from edgecore_conformance.checks.tensor_base import TensorCheck, answer_of, judge_values, keep_answer, static_batch
from edgecore_conformance.known import Known
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.tensor_models import Arrays
from edgecore_conformance.watching import HELD, held

FED = 2500
"""Rows of a feed: a third of a megabyte."""
ROUNDS, CALLS, OPENS = 6, 10, 5
MIB, GROWTH_MIB = 1 << 20, 1.5


@check
class Layout(TensorCheck):
    """tensor.feeds_layout: how a feed lies in memory does not matter, and feeds are not written to.

    The same values are fed read-only, with strides, transposed, reversed and in the other byte order where numpy calls
    the type the same; and an array large enough to travel through shared memory. The caller's arrays are compared
    with copies afterwards.
    """

    labels = ("plain", "read-only", "strided", "transposed", "reversed")

    def watched(self, session: TensorSession, bench: Bench, seen: Observation) -> None:
        batch = static_batch(session, 5)
        plain = models.feeds(bench.known, f"{self.name()} same", batch)
        for label in self.labels:
            fed = {name: laid_out(array, label) for name, array in plain.items()}
            keep_answer(seen, label, session(fed), batch)
            untouched = all(np.array_equal(fed[name], plain[name]) for name in plain)
            seen.facts.setdefault("untouched", {})[label] = untouched
        if all(isinstance(s.shape[0], str) for s in session.inputs):
            self.call(session, bench, seen, "large", 2000)

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        for label in self.labels:
            self.right(seen, label, known, verdict, drawn="same")
            verdict.expect(seen.facts["untouched"][label], f"{label}: the caller's feeds were changed")
        if "large" in seen.facts["calls"]:
            self.right(seen, "large", known, verdict)


def laid_out(array: NDArray[Any], label: str) -> NDArray[Any]:
    """The same values, otherwise in memory."""
    match label:
        case "read-only":
            made = array.copy()
            made.setflags(write=False)
            return made
        case "strided":
            wide = np.full((array.shape[0], 2 * array.shape[1]), np.nan, array.dtype)
            wide[:, ::2] = array
            return wide[:, ::2]
        case "transposed":
            return np.ascontiguousarray(array.T).T
        case "reversed":
            return np.ascontiguousarray(array[::-1])[::-1]
    return array.copy()


@check
class Kept(TensorCheck):
    """tensor.outputs_kept: outputs are the caller's to keep.

    What a call answered is compared again after other calls and after the session is closed. It must not have changed,
    and must be the caller's to write to: answers that lie in a runtime's buffer change with the next call.
    """

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        seen = Observation({"precision": models.finest(bench.manifest, bench.device)})
        held: dict[str, Mapping[str, NDArray[Any]]] = {}
        with bench.session(models.drawn_artifact(bench, self.name()), threads=1) as session:
            assert isinstance(session, TensorSession)
            batch = static_batch(session, 4)
            for label in ("first", "second", "third"):
                held[label] = session(models.feeds(bench.known, f"{self.name()} {label}", batch))
            if isinstance(static := session.inputs[0].shape[0], str):
                held["large"] = session(models.feeds(bench.known, f"{self.name()} large", 3000))
                held["larger"] = session(models.feeds(bench.known, f"{self.name()} larger", 3001))
            del static
        for label, answer in held.items():
            keep_answer(seen, label, answer, len(next(iter(answer.values()), ())))
            seen.facts.setdefault("writable", {})[label] = all(a.flags.writeable for a in answer.values())
        return seen

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        for label in seen.facts["calls"]:
            self.right(seen, label, known, verdict)
            verdict.expect(seen.facts["writable"][label], f"{label}: the answer is read-only")


@check
class History(TensorCheck):
    """tensor.history: an answer depends on its feeds, and on nothing that ran before.

    One session is called with A, B, A with one value changed at its very end, and A again; another is opened in
    between, on another model, and a third on the same. All answers must be right, and both answers to A equal bit by
    bit where the backend declares itself deterministic. Failures usually mean cached answers, state in a graph, or
    buffers that two sessions share."""

    def watched(self, session: TensorSession, bench: Bench, seen: Observation) -> None:
        batch = static_batch(session, 4)

        def fed(which: str) -> Arrays:
            return history_feeds(bench.known, self.name(), which, batch)

        for label in ("a", "b", "changed"):
            keep_answer(seen, label, session(fed(label)), batch)
        with ExitStack() as stack:
            other = stack.enter_context(bench.session(models.drawn_artifact(bench, f"{self.name()} other"), threads=1))
            same = stack.enter_context(bench.session(models.drawn_artifact(bench, self.name()), threads=1))
            assert isinstance(other, TensorSession)
            assert isinstance(same, TensorSession)
            keep_answer(seen, "other model", other(fed("a")), batch)
            keep_answer(seen, "a again", session(fed("a")), batch)
            keep_answer(seen, "second session", same(fed("b")), batch)
            keep_answer(seen, "b between", session(fed("b")), batch)
        keep_answer(seen, "after closing", session(fed("a")), batch)

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        fed = {"a again": "a", "second session": "b", "b between": "b", "after closing": "a", "other model": "a"}
        for label, about in seen.facts["calls"].items():
            feeds = history_feeds(known, self.name(), fed.get(label, label), about["batch"])
            name = f"{self.name()} other" if label == "other model" else self.name()
            judge_values(seen, label, models.graph(known, name).expected(feeds), known, verdict)
        if known.manifest.can("deterministic"):
            first = models.digest(answer_of(seen, "a"))
            for label in ("a again", "after closing"):
                same = models.digest(answer_of(seen, label)) == first
                verdict.expect(same, f"{label}: not bit by bit what it was, and the backend declares deterministic")


@check
class Memory(TensorCheck):
    """tensor.memory: memory does not grow with calls, and comes back after close.

    In a worker of its own, one session answers feeds of a third of a megabyte, round after round; then sessions on the
    same model are opened, called and closed. The worker's anonymous memory is read from outside. After the first round
    of each, no round may add more than a megabyte and a half, but for one: an allocator's single step. Open files,
    threads and processes stay as many as they were.

    A plugin that keeps what it was fed, or an inference request for every call, ends a server in its third week.
    """

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        artifact = models.drawn_artifact(bench, self.name())
        seen = Observation({"precision": models.finest(bench.manifest, bench.device), "calls": [], "opens": []})
        with bench.fresh() as backend:
            with bench.session(artifact, backend=backend, threads=1) as session:
                assert isinstance(session, TensorSession)
                feeds = models.feeds(bench.known, self.name(), static_batch(session, FED))
                for _ in range(ROUNDS):
                    for _ in range(CALLS):
                        session(feeds)
                    seen.facts["calls"].append([anonymous_bytes(backend.pid), *held(backend.pid)])
            for _ in range(ROUNDS):
                for _ in range(OPENS):
                    with bench.session(artifact, backend=backend, threads=1) as session:
                        assert isinstance(session, TensorSession)
                        session(feeds)
                seen.facts["opens"].append([anonymous_bytes(backend.pid), *held(backend.pid)])
        return seen

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        for what, times in (("calls", CALLS), ("opens", OPENS)):
            readings = seen.facts[what]
            if len(readings) != ROUNDS:
                verdict.problems.append(f"{len(readings)} rounds of {what}, where {ROUNDS} are due")
                continue
            added = sorted(later[0] - former[0] for former, later in pairwise(readings[1:]))
            verdict.figure(
                f"growth of {times} {what}", added[-2] / MIB, GROWTH_MIB, "<=", "MiB",
                "the second most of four rounds",
            )  # fmt: skip
            for number, name in enumerate(HELD, 1):
                grown = readings[-1][number] - readings[1][number]
                verdict.figure(f"growth of {name}, {what}", grown, 2, "<=", "", "none, but noise")


def history_feeds(known: Known, check_name: str, which: str, batch: int) -> Arrays:
    """`a`, `b`, and `changed`: a with another last value in each feed."""
    feeds = models.feeds(known, f"{check_name} {'b' if which == 'b' else 'a'}", batch)
    if which == "changed":
        for array in feeds.values():
            array[-1, -1] += 3
    return feeds
