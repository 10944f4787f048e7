"""Logits: the oracle's, whichever way they are asked for, and whatever was in the cache before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np

from edgecore.contract.manifest import Manifest
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, check
from edgecore_conformance.checks import text_ops as ops
from edgecore_conformance.checks.text_common import (
    Inputs,
    TextCheck,
    allowance,
    border,
    divergences,
    family_cells,
    opened,
    stated,
    subject,
    tried,
    variant_cells,
    weigh_rows,
)
from edgecore_conformance.known import Known
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.outcomes import Outcome

STEPS = 48
"""Tokens at the end of a text that are stepped through one by one, of a short one a quarter."""
OTHERWISE = ("mistral-window", "bitnet-packed")
"""Variants of families that are computed otherwise than the family's own checkpoint."""
CACHES = ("gemma3", "phi3")
"""Families whose caches are of a kind of their own: with windows narrower than the context; with keys that are turned
otherwise when a text grows beyond the border between two sets of rotary factors."""
KEPT = 64
"""Positions of `score` whose logits are kept."""


@check
class TextLogits(TextCheck):
    """text.logits: logits are the oracle's, for every family that is claimed.

    A text is read at once by `score`, where the backend has that capability, and as generation reads it: its beginning
    by `prefill`, its last 48 tokens (of a short one the last quarter) by `step`. Both are held to the numpy forward
    pass over the same checkpoint, by mean KL divergence within the kernels' bound of the compute precision that the
    session states (four times that for the few positions that were stepped to), and no single position may be far off.
    Families have random checkpoints, whose weights are drawn so large that a fault shows: a rotary position that is off
    by one between prefill and step, heads in another order, a norm or a bias left out, a window or a long-context
    scaling that is not applied. A text is long enough to leave every window.

    Where a model has two sets of rotary factors (longrope), one text lies within the first set's range, in a context
    that does too, and one beyond it, in a longer context: the model chooses by the length of the text, runtimes often
    by that of the context, and here both must come to the same. So backends must be able to open a shorter context than
    was trained for, and to use the set that belongs to it.

    Of some families there is a variant, with what the first release of Mistral and the published BitNet do: a window in
    every layer; packed ternary weights, squared ReLU and 8-bit activations (whose rounding multiplies every error, so
    the bound is that of 8-bit kernels, and leaving it out is not seen). A backend that claims the family answers it
    right, or refuses it (`UnsupportedModel`, by convert or when it is opened), or says in a note of convert, one that
    it does not make of the family's own checkpoint, that it answers otherwise. The latter two are `unsupported`; other
    numbers without a word are a failure.

    A failure of `score` alone means that evidence and generation come from different code; a failure in one family
    means that its description is not followed; in all of them, that precision is not what the session states.
    """

    needs_logits: ClassVar[bool] = True

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        real: list[Cell] = [{"fixture": "real"}] if level == "full" else []
        return [*family_cells(manifest, device), *variant_cells(manifest, device, *OTHERWISE), *real]

    def inputs(self, known: Known, cell: Cell) -> Inputs:
        fixture = self.fixture(known.manifest, cell)
        context = known.context(fixture)
        most = {"real": 160}.get(fixture, 200 if "family" in cell else 320 if known.level == "quick" else 500)
        lengths = [min(most, context)]
        if first := border(known, fixture):
            lengths = [min(most, first), min(first + most, context)]
        texts = [known.tokens(fixture, f"logits {n}", n) for n in lengths]
        return {"texts": texts, "contexts": lengths if len(lengths) > 1 else [known.max_context]}

    def look(self, bench: Bench, cell: Cell, asked: Inputs) -> Observation:
        seen = Observation()
        for number, (text, context) in enumerate(zip(asked["texts"], asked["contexts"], strict=True)):
            # The plugin's own number of threads once, here; families on one (`opened`).
            threads = 1 if "family" in cell else None
            fixture = self.fixture(bench.manifest, cell)
            with bench.text_session(fixture, context_length=context, threads=threads) as session:
                seen.facts |= stated(session, bench)
                held = session.context()
                held.reset()
                steps = stepped(text)
                rows = [held.prefill(text[:-steps]), *(held.step(t) for t in text[-steps:])]
                seen.arrays[f"path{number}"] = np.stack(rows)
                if bench.manifest.can("logits"):
                    kept, scored = set(positions(len(text))), 0
                    some = []
                    for chunk in session.score(text):
                        some += [np.array(r) for at, r in enumerate(chunk, scored) if at in kept]
                        scored += len(chunk)
                    seen.facts[f"scored{number}"] = scored
                    seen.arrays[f"score{number}"] = np.stack(some) if some else np.zeros((0, 0), np.float32)
        return seen

    def weigh(self, asked: Inputs, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        fixture = self.fixture(known.manifest, cell)
        for number, text in enumerate(asked["texts"]):
            reference = known.logits(fixture, text)
            of = "" if len(asked["texts"]) == 1 else f" of {len(text)} tokens"
            verdict.expect(
                seen.facts["vocab_size"] == reference.shape[1],
                f"the session says that the vocabulary has {seen.facts['vocab_size']} tokens, not {reference.shape[1]}",
            )
            bound, origin = allowance(known, seen, fixture, text)
            rows = reference[len(text) - stepped(text) - 1 :]
            weigh_rows(verdict, f"prefill and step{of}", rows, seen.arrays[f"path{number}"], bound, origin)
            if known.manifest.can("logits"):
                scored = seen.facts.get(f"scored{number}")
                verdict.expect(scored == len(text), f"score answers {scored} rows for {len(text)} tokens")
                bound, origin = allowance(known, seen, fixture, text, scored=True)
                kept = reference[positions(len(text))]
                weigh_rows(verdict, f"score{of}", kept, seen.arrays[f"score{number}"], bound, origin)


def stepped(text: Sequence[int]) -> int:
    return min(STEPS, len(text) // 4)


def positions(count: int) -> list[int]:
    """Which of `count` positions are kept: the first, the last, and others evenly."""
    return sorted({round(i * (count - 1) / (KEPT - 1)) for i in range(KEPT)})


@check
class TextScore(TextCheck):
    """text.score: score answers one row for every token, whatever was read before, or says that it cannot.

    Three texts of different length are scored after something else was left in the context; every row is held to the
    oracle, and the context must be empty afterwards. A backend that declares the capability `logits` absent is asked
    anyway, and must raise `CannotDo`: then the outcome is `unsupported`.

    Rows that are missing at a chunk's border, or that follow the tokens left over in the cache, mean that score does
    not reset; quality figures made with it are then worthless.
    """

    def inputs(self, known: Known, cell: Cell) -> Inputs:
        fixture = self.fixture(known.manifest, cell)
        return {
            "before": known.tokens(fixture, "score before", 17),
            "texts": [known.tokens(fixture, f"score {n}", min(n, known.context(fixture))) for n in (1, 33, 130)],
        }

    def look(self, bench: Bench, cell: Cell, asked: Inputs) -> Observation:
        seen = Observation()
        with opened(bench, self.fixture(bench.manifest, cell)) as session:
            seen.facts |= stated(session, bench)
            if not bench.manifest.can("logits"):
                seen.facts["refusal"] = dict(tried(session.score, asked["texts"][1]))
                return seen
            context = session.context()
            context.reset()
            seen.facts["left"] = []
            for number, text in enumerate(asked["texts"]):
                context.prefill(asked["before"])
                chunks = [np.array(c) for c in session.score(text)]
                seen.facts["left"].append(context.position)
                seen.facts[f"rows{number}"] = sum(map(len, chunks))
                whole = np.concatenate(chunks) if chunks else np.zeros((0, 0), np.float32)
                seen.arrays[f"score{number}"] = whole[score_rows(len(text))] if len(whole) == len(text) else whole[:1]
                context.reset()
        return seen

    def weigh(self, asked: Inputs, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        if not known.manifest.can("logits"):
            error = seen.facts.get("refusal", {}).get("error", "nothing")
            verdict.expect(error == "CannotDo", f"logits are declared absent, and score raises {error}, not CannotDo")
            verdict.claimed = Outcome.UNSUPPORTED
            return
        fixture = self.fixture(known.manifest, cell)
        for number, text in enumerate(asked["texts"]):
            got = seen.facts[f"rows{number}"]
            verdict.expect(got == len(text), f"score answers {got} rows for {len(text)} tokens")
            if got == len(text):
                bound, origin = allowance(known, seen, fixture, text)
                rows = known.logits(fixture, text)[score_rows(len(text))]
                weigh_rows(verdict, f"{len(text)} tokens", rows, seen.arrays[f"score{number}"], bound, origin)
        left = seen.facts["left"]
        verdict.expect(not any(left), f"after score the context holds {left} tokens; it should have been reset")


def score_rows(count: int) -> list[int]:
    """Positions that are kept of a text: the ends, and every fifth."""
    return sorted({0, count - 1, *range(0, count, 5)})


def caching_cells(manifest: Manifest, device: str, level: str) -> list[Cell]:
    """Rows of what is about the cache: in quick of the subject, and of families with caches of their own kind; the
    other families' caches are the subject's."""
    cells = family_cells(manifest, device)
    return cells if level == "full" else [cells[0], *(c for c in cells[1:] if c["family"] in CACHES)]


class Operations(TextCheck):
    """A check whose observation is a sequence of calls on contexts (text_ops.py)."""

    needs_logits: ClassVar[bool] = True

    def sources(self, known: Known, cell: Cell) -> list[str]:
        """A fixture for each session."""
        return [self.fixture(known.manifest, cell)]

    def look(self, bench: Bench, cell: Cell, asked: Inputs) -> Observation:
        with opened(bench, self.fixture(bench.manifest, cell)) as session:
            seen = ops.perform([session], asked["operations"], asked["kept"])
            seen.facts |= stated(session, bench)
        return seen

    def weigh(self, asked: Inputs, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        ops.weigh(asked["operations"], seen, self.sources(known, cell), known, verdict, asked["kept"])


@check
class TextPrefill(Operations):
    """text.prefill: a prompt read whole, in chunks or token by token gives the same logits.

    One text is given to the context at once, in drawn portions, and one token after the other, a longer one in portions
    and steps beyond the 256 positions at which caches often grow; after each of these
    calls the context must say what it holds, and the logits are held to the oracle's.

    Runtimes have one code for many tokens and another for one, and positions, masks and caches are where they part. A
    failure of the portions alone is usually a mask or a position that begins anew with each call. In the row of Phi-3
    the longer text grows beyond the border between the model's two sets of rotary factors, and logits are compared from
    there on, where the whole text takes the second: keys that were turned by the first must be turned anew.
    """

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        return caching_cells(manifest, device, level)

    def inputs(self, known: Known, cell: Cell) -> Inputs:
        fixture = self.fixture(known.manifest, cell)
        most = known.context(fixture)
        text = known.tokens(fixture, "prefill", min(88, most))
        sizes = [known.draw(f"prefill portion {n}").choice((1, 2, 3, 5, 8, 13, 21, 31, 32, 33)) for n in range(6)]
        long = known.tokens(fixture, "prefill long", min(304, most))
        first = known.draw("prefill long").randrange(200, 250) * len(long) // 304
        more = ops.chunked(0, long[:-4], [first, 1, 17, 33])
        whole: list[ops.Operation] = [[0, "prefill", text]]
        parts = ops.chunked(0, text, sizes)
        steps = ops.stepping(0, text)
        steps_after = [*more, *ops.stepping(0, long[-4:])]
        operations = [*whole, [0, "reset", 0], *parts, [0, "reset", 0], *steps_after, [0, "reset", 0], *steps]
        first = len(operations) - len(steps)
        kept = [*range(first), *(n for n in range(first, len(operations)) if (n - first) % 8 == 7)]
        return {"operations": operations, "kept": kept}


@check
class TextRewind(Operations):
    """text.rewind: what was rewound leaves no trace.

    Tokens are taken back, by one, by many, by all, by none, and others follow; logits must be those of the tokens that
    remain, and the context must say so. A chat that goes on from an earlier turn rests on this.

    A failure usually means that cached keys of forgotten tokens are still looked at, that positions were not taken back
    with them, or that a window's ring has already overwritten what comes back into sight. In the row of Phi-3 all this
    happens beyond the border between the model's two sets of rotary factors, but for one way back below it.
    """

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        return caching_cells(manifest, device, level)

    def inputs(self, known: Known, cell: Cell) -> Inputs:
        fixture = self.fixture(known.manifest, cell)
        size = 64 if known.context(fixture) > 128 else 32
        first, second, third = (known.tokens(fixture, f"rewind {n}", size) for n in range(3))
        back = known.draw("rewind").randrange(24, 40) * size // 64
        below = known.tokens(fixture, "rewind below", max(0, border(known, fixture) - 20))
        some, more = second[: size // 3 - 1], second[size // 3 - 2 : size * 5 // 8]
        operations: list[ops.Operation] = [[0, "prefill", below]] if below else []
        operations += [
            [0, "prefill", first], [0, "rewind", back], [0, "prefill", some], [0, "rewind", 1],
            [0, "step", third[:1]], [0, "rewind", 0], [0, "step", third[1:2]], [0, "rewind", 2],
            [0, "prefill", more], *ops.stepping(0, third[2:6]), [0, "rewind", 4], *ops.stepping(0, first[:3]),
            [0, "rewind", size - back + len(some) - 1 + len(more) + 3], [0, "prefill", third],
            *ops.stepping(0, second[:2]),
        ]  # fmt: skip
        return {"operations": operations, "kept": list(range(len(operations)))}


@check
class TextReset(Operations):
    """text.reset: after a reset nothing remains, however long the prompt before was.

    Short prompts follow on long ones that nearly fill the context, after `reset` and after a rewind of everything;
    their logits must be those of a context that was never used.

    A failure is a stale KV cache. Many show it only after a long prompt, where buffers have grown or wrapped around.
    """

    def inputs(self, known: Known, cell: Cell) -> Inputs:
        fixture = self.fixture(known.manifest, cell)
        most = min(known.context(fixture), 493) - 3
        long = [known.tokens(fixture, f"reset long {n}", n) for n in (most, most * 2 // 3)]
        short = [known.tokens(fixture, f"reset {n}", 12 + n) for n in range(4)]
        operations: list[ops.Operation] = [
            [0, "prefill", short[0]], [0, "reset", 0], [0, "prefill", long[0]], [0, "reset", 0],
            [0, "prefill", short[1]], *ops.stepping(0, short[0][:6]), [0, "reset", 0], [0, "prefill", long[1]],
            *ops.stepping(0, short[0][:3]), [0, "rewind", len(long[1]) + 3], [0, "prefill", short[2]],
            *ops.stepping(0, short[1][:6]), [0, "reset", 0], [0, "reset", 0], *ops.stepping(0, short[3]),
        ]  # fmt: skip
        return {"operations": operations, "kept": list(range(len(operations)))}


@check
class TextFresh(Operations):
    """text.fresh: an answer follows from every token of its prompt.

    Prompts that differ in one early token, in the last one, or in order alone are read one after the other, each from
    an empty context, and the first once more. Every answer is held to the oracle's for just these tokens; and it must
    be nearer to that one than to the answer to any of the other prompts.

    An answer that is remembered by a prompt's length, its end or its set of tokens is found here, because the seed
    draws the prompts: nobody can have them stored.
    """

    def inputs(self, known: Known, cell: Cell) -> Inputs:
        fixture = self.fixture(known.manifest, cell)
        text, other = (known.tokens(fixture, f"fresh {n}", 40) for n in range(2))
        early, last = list(text), list(text)
        early[1] = next(t for t in other if t != text[1])
        last[-1] = next(t for t in other if t != text[-1])
        turned = [*text[20:39], *text[:20], text[39]]
        operations: list[ops.Operation] = []
        for prompt in (text, early, last, turned, text):
            operations += [[0, "reset", 0], [0, "prefill", prompt], *ops.stepping(0, other[:1])]
        return {"operations": operations, "kept": list(range(len(operations)))}

    def weigh(self, asked: Inputs, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        super().weigh(asked, seen, cell, known, verdict)
        fixture = subject(known.manifest)
        prompts = [argument for _, call, argument in asked["operations"] if call == "prefill"]
        rows = np.stack([known.logits(fixture, p)[-1] for p in prompts])
        bound, origin = allowance(known, seen, fixture, prompts[0], scored=True)
        apart = divergences(np.repeat(rows[:1], 3, axis=0), rows[1:4])
        verdict.figure("how far the answers lie apart, at least", float(apart.min()), unit="nats", origin=origin)
        got = seen.arrays["logits0"][::2]
        if got.shape != rows.shape:
            return
        for mine in range(len(rows)):
            for other in range(len(rows)):
                between = float(divergences(rows[mine : mine + 1], rows[other : other + 1])[0])
                if between <= 4 * bound:  # nearer than what the kernels may lose: nothing can be said
                    continue
                near, far = (float(divergences(rows[n : n + 1], got[mine : mine + 1])[0]) for n in (mine, other))
                verdict.expect(near < far, f"the answer to prompt {mine} is nearer to that to prompt {other}")
