"""Sequences of calls on a context, as data: a check says what is called, the oracle says what must come back.

An operation is `[who, "prefill", [ids]]`, `[who, "step", [id]]`, `[who, "rewind", n]` or `[who, "reset", 0]`; `who`
is the session's number. After each the ids in the cache are noted; logits are kept of those that `kept` names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgecore.contract.sessions import TextSession
from edgecore_conformance.checks.text_common import Rows, allowance, border, expected_rows, weigh_rows
from edgecore_conformance.known import Known
from edgecore_conformance.observation import Judgement, Observation

Operation = list[Any]


def stepping(who: int, tokens: Sequence[int]) -> list[Operation]:
    """One token after the other."""
    return [[who, "step", [t]] for t in tokens]


def chunked(who: int, tokens: Sequence[int], sizes: Sequence[int]) -> list[Operation]:
    """`tokens` in portions; what the sizes do not cover comes last."""
    made: list[Operation] = []
    at = 0
    for size in (*sizes, len(tokens)):
        if at < len(tokens):
            made.append([who, "prefill", list(tokens[at : at + size])])
            at += size
    return made


def perform(sessions: Sequence[TextSession], operations: Sequence[Operation], kept: Sequence[int] = ()) -> Observation:
    """Does them. `kept` are numbers of operations; all that answer logits by default."""
    contexts = [s.context() for s in sessions]
    for context in contexts:
        context.reset()
    wanted = set(kept) if kept else set(range(len(operations)))
    lengths: list[Any] = []
    last: list[int] = []
    found: dict[int, list[Rows]] = {}
    for number, (who, call, argument) in enumerate(operations):
        context = contexts[who]
        logits = None
        match call:
            case "prefill":
                logits = context.prefill(argument)
            case "step":
                logits = context.step(argument[0])
            case "rewind":
                context.rewind(argument)
            case "reset":
                context.reset()
        if number in wanted:
            held = list(context.tokens)
            lengths.append([number, context.position, held])
            if logits is not None:
                last.append(number)
                found.setdefault(who, []).append(np.array(logits, copy=True))
    return Observation({"held": lengths, "answered": last}, {f"logits{who}": stacked(f) for who, f in found.items()})


def stacked(rows: Sequence[Rows]) -> Rows:
    """One array; an empty one of rows that differ in shape or type, which no answer of a session may."""
    if len({(r.shape, r.dtype.str) for r in rows}) != 1:
        return np.zeros((0, 0), np.float32)
    return np.stack(rows)


def simulated(operations: Sequence[Operation]) -> list[tuple[int, ...]]:
    """Ids in the cache of the operation's session, after each."""
    caches: dict[int, list[int]] = {}
    after = []
    for who, call, argument in operations:
        cache = caches.setdefault(who, [])
        match call:
            case "prefill" | "step":
                cache.extend(argument)
            case "rewind":
                del cache[len(cache) - argument :]
            case "reset":
                cache.clear()
        after.append(tuple(cache))
    return after


def weigh(
    operations: Sequence[Operation], seen: Observation, fixtures: Sequence[str], known: Known, verdict: Judgement,
    kept: Sequence[int] = (), what: str = "logits",
) -> None:  # fmt: skip
    """Holds what was seen to the oracle and to the operations' own meaning. Sessions have the context that the backend
    chooses, so of a model with two sets of rotary factors only what is longer than their border has one answer."""
    after = simulated(operations)
    wanted = sorted(set(kept) if kept else set(range(len(operations))))
    answering = [n for n in wanted if operations[n][1] in ("prefill", "step")]
    for number, position, held in seen.facts["held"]:
        expected = after[number]
        verdict.expect(
            tuple(held) == expected and position == len(expected),
            f"after operation {number} ({operations[number][1]}) the context says that it holds {len(held)} tokens at "
            f"position {position}; they are not the {len(expected)} that were given",
        )
    verdict.expect([h[0] for h in seen.facts["held"]] == wanted, "operations are missing from what was seen")
    if seen.facts["answered"] != answering:
        verdict.problems.append("not every prefill and step answered logits")
        return
    for who, fixture in enumerate(fixtures):
        mine = [n for n in answering if operations[n][0] == who]
        least = border(known, fixture)
        decided = [at for at, n in enumerate(mine) if len(after[n]) > least]
        if not decided:
            continue
        logits = seen.arrays[f"logits{who}"]
        if len(logits) == len(mine):
            logits, mine = logits[decided], [mine[at] for at in decided]
        sequences = [after[n] for n in mine]
        reference = np.stack(expected_rows(known, fixture, sequences))
        bound, origin = allowance(known, seen, fixture, max(sequences, key=len))
        name = what if len(fixtures) == 1 else f"{what}, session {who}"
        kl = weigh_rows(verdict, name, reference, logits, bound, origin)
        if len(kl) and kl.max() > bound:
            worst = mine[int(kl.argmax())]
            verdict.figure(f"{name}: operation that is furthest off", worst, unit=operations[worst][1])
