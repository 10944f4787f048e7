"""Limits: what does not fit and what makes no sense is an error with a type, before anything was changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgecore.checkpoint import open_checkpoint
from edgecore.contract.errors import DeviceUnavailable, EdgecoreError, Timeout, WorkerCrashed
from edgecore.contract.sampling import GREEDY as GREEDY_SAMPLING
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, check
from edgecore_conformance.checks.text_common import (
    Inputs,
    TextCheck,
    allowance,
    answered,
    expected_rows,
    finish_of,
    opened,
    stated,
    tokens_of,
    tried,
    weigh_greedy,
    weigh_rows,
)
from edgecore_conformance.known import Known
from edgecore_conformance.observation import Judgement, Observation, error_of

CONTEXT = 64
"""Tokens that the session of `text.context` is opened for."""
FITTING = {
    "full": CONTEXT, "the last again": CONTEXT, "after a refusal": CONTEXT - 4, "stepped to the limit": CONTEXT,
    "five": 5, "after refused answers": 6,
}  # fmt: skip
"""Calls of `text.context` that fit, with the tokens that the context holds after them."""


@check
class TextContextLimit(TextCheck):
    """text.context: the context's limit is an error, never a silent cut.

    A session is opened for a context of 64 tokens. Exactly 64 fit: by prefill, by steps, as prompt and answer together.
    One more raises `DoesNotFit`, by each of these ways, before any work: what was in the cache is still there, says so,
    and answers as the oracle does. A generation without a maximum that reaches the limit ends with the same error after
    the last token that fits; a text to score that is longer is refused, or scored whole.

    Dropping the oldest tokens, shifting the window or stopping in silence all give answers to a prompt that nobody
    asked.
    """

    def inputs(self, known: Known, cell: Cell) -> Inputs:
        text = known.tokens(self.fixture(known.manifest, cell), "context", CONTEXT + 8)
        return {"context": CONTEXT, "text": text}

    def look(self, bench: Bench, cell: Cell, asked: Inputs) -> Observation:
        text = asked["text"]
        errors: dict[str, Mapping[str, str]] = {}
        unfit: dict[str, Mapping[str, str]] = {}
        held: dict[str, list[int]] = {}
        rows: dict[str, Any] = {}

        def fit(name: str, call: Callable[[], Any]) -> None:
            """A call that fits: its logits, or the error that it should not have raised."""
            unfit[name] = tried(lambda: rows.update({name: call()}))

        with opened(bench, self.fixture(bench.manifest, cell), context_length=CONTEXT) as session:
            context = session.context()
            context.reset()
            fit("full", lambda: context.prefill(text[:CONTEXT]))
            errors["step after the last"] = tried(context.step, text[CONTEXT])
            held["step after the last"] = list(context.tokens)
            errors["prefill after the last"] = tried(context.prefill, text[CONTEXT : CONTEXT + 3])
            fit("the last again", lambda: [context.rewind(1), context.step(text[CONTEXT - 1])][1])
            context.reset()
            errors["prefill of one too many"] = tried(context.prefill, text[: CONTEXT + 1])
            held["prefill of one too many"] = list(context.tokens)
            fit("after a refusal", lambda: context.prefill(text[: CONTEXT - 4]))
            errors["five where four fit"] = tried(context.prefill, text[CONTEXT - 4 : CONTEXT + 1])
            held["five where four fit"] = list(context.tokens)
            fit("stepped to the limit", lambda: [context.step(t) for t in text[CONTEXT - 4 : CONTEXT]][-1])
            context.reset()
            fit("five", lambda: context.prefill(text[:5]))
            refused = answered(session, text[: CONTEXT - 4], max_tokens=5, sampling=GREEDY_SAMPLING)
            errors["answer of one too many"] = refused["error"] or {}
            held["answer of one too many"] = list(context.tokens)
            errors["prompt of one too many"] = (
                answered(session, text[: CONTEXT + 1], max_tokens=1, sampling=GREEDY_SAMPLING)["error"] or {}
            )
            fit("after refused answers", lambda: context.step(text[5]))
            fits = answered(session, text[: CONTEXT - 4], max_tokens=4, sampling=GREEDY_SAMPLING)
            endless = answered(session, text[: CONTEXT - 4], limit=CONTEXT, sampling=GREEDY_SAMPLING)
            scored: list[int] = []
            refusal: Mapping[str, str] = {}
            if bench.manifest.can("logits"):
                refusal = tried(lambda: scored.extend(map(len, session.score(text))))
            facts = {
                **stated(session, bench), "errors": errors, "unfit": unfit, "held": held, "fits": fits,
                "endless": endless, "overlong": refused, "scored": sum(scored), "score": refusal,
            }  # fmt: skip
        return Observation(facts, {"logits": np.stack(list(rows.values()))} if rows else {})

    def weigh(self, asked: Inputs, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        fixture, text, facts = self.fixture(known.manifest, cell), asked["text"], seen.facts
        given = facts["context_length"]
        verdict.expect(given == CONTEXT, f"a context of {CONTEXT} tokens was asked for, and {given} were given")
        for name, error in facts["errors"].items():
            expect_error(verdict, name, error, "DoesNotFit")
        for name, error in facts["unfit"].items():
            verdict.expect(not error, f"{name}: it fits, and raises {error.get('error')}: {error.get('what')}")
        before = {
            "step after the last": text[:CONTEXT], "prefill of one too many": [],
            "five where four fit": text[: CONTEXT - 4], "answer of one too many": text[:5],
        }  # fmt: skip
        for name, tokens in before.items():
            verdict.expect(
                facts["held"][name] == tokens, f"{name}: the cache held {len(tokens)} tokens, and is not as before"
            )
        verdict.expect(not facts["overlong"]["pieces"], "an answer that does not fit is begun before it is refused")
        due = [text[:count] for name, count in FITTING.items() if not facts["unfit"][name]]
        if due:
            bound, origin = allowance(known, seen, fixture, text[:CONTEXT])
            reference = np.stack(expected_rows(known, fixture, due))
            weigh_rows(verdict, "logits at the limit", reference, seen.arrays["logits"], bound, origin)
        prompt, ends = text[: CONTEXT - 4], known.tokenizer(fixture).eos_ids
        fits, endless = facts["fits"], facts["endless"]
        if fits["error"]:
            verdict.problems.append(f"an answer that just fits is refused: {fits['error']}")
        else:
            made = tokens_of(fits)
            weigh_greedy(verdict, "the answer that just fits", known, fixture, prompt, made, seen)
            ended = bool(made) and made[-1] in ends
            verdict.expect(ended or len(made) == 4, f"the answer that just fits has {len(made)} tokens of 4")
        made = tokens_of(endless)
        if finish_of(endless) != "eos":
            expect_error(verdict, "an answer that reaches the limit", endless["error"] or {}, "DoesNotFit")
            # The token that the full cache predicts needs no room of its own.
            verdict.expect(len(made) in (4, 5), f"the answer that reaches the limit has {len(made)} tokens; 4 fit")
        if known.manifest.can("logits") and facts["score"]:
            expect_error(verdict, "a text to score that is too long", facts["score"], "DoesNotFit")
        elif known.manifest.can("logits"):
            scored = facts["scored"]
            verdict.expect(scored == len(text), f"score answers {scored} rows of {len(text)}, and no error")


def expect_error(verdict: Judgement, what: str, error: Mapping[str, str], *kinds: str) -> None:
    """Holds a call to the types of error that it may raise."""
    got = error.get("error", "nothing")
    verdict.expect(
        got in kinds, f"{what}: it raises {got}, not {' or '.join(kinds)}; {error.get('what', '')}".rstrip("; ")
    )


@check
class TextContextLength(TextCheck):
    """text.context_length: the context that is asked for is the context that is given, or an error.

    Sessions are opened for several lengths, for the length that the model was trained for, and for one more. Each
    must state the length that was asked for, or raise `DoesNotFit`; the longest that was trained for, or that the model
    was converted for, must be given. Without a length the session states what it has chosen, no more than was trained
    for. Where it gives more than it was converted for, a longer text is read, and answered as by the oracle.

    A runtime that rounds the length, or takes its own, cuts prompts that should fit or computes positions that nobody
    trained.
    """

    def inputs(self, known: Known, cell: Cell) -> Inputs:
        with open_checkpoint(known.fixture(self.fixture(known.manifest, cell))) as model:
            trained = model.decoder.context_length
        draw, most = known.draw("context lengths"), known.context(self.fixture(known.manifest, cell))
        drawn = [draw.randrange(30, min(90, most)), draw.randrange(100, min(trained, 400))]
        text = known.tokens(self.fixture(known.manifest, cell), "context lengths", min(trained, most + 40))
        return {"asked": [None, *drawn, trained, trained + 1], "converted for": most, "text": text}

    def look(self, bench: Bench, cell: Cell, asked: Inputs) -> Observation:
        fixture, found, rows, most = self.fixture(bench.manifest, cell), list[Any](), [], asked["converted for"]
        for length in asked["asked"]:
            try:
                with bench.text_session(fixture, context_length=length, threads=1) as session:
                    found.append({"given": session.context_length, "says": session.conditions.get("context", "")})
                    if most < session.context_length <= asked["asked"][-2]:
                        found[-1]["read"] = asked["text"][: session.context_length]
                        rows.append(session.context().prefill(found[-1]["read"]))
                        found[-1] |= stated(session, bench)
            except (DeviceUnavailable, Timeout, WorkerCrashed):
                raise
            except EdgecoreError as error:
                bench.stage = "open"
                found.append(error_of(error))
        return Observation({"found": found}, {"beyond": np.stack(rows)} if rows else {})

    def weigh(self, asked: Inputs, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        trained, most = asked["asked"][-2], asked["converted for"]
        self._beyond(asked, seen, cell, known, verdict)
        for length, found in zip(asked["asked"], seen.facts["found"], strict=True):
            if "error" in found:
                must = length is None or length <= most
                verdict.expect(not must, f"a context of {length or 'no stated'} tokens is refused: {found['what']}")
                expect_error(verdict, f"a context of {length}", found, "DoesNotFit", "BadRequest")
                continue
            due = length or found["given"]
            verdict.expect(found["given"] == due, f"{length} tokens were asked for, and {found['given']} were given")
            verdict.expect(
                0 < found["given"] <= max(trained, length or 0), f"{found['given']} tokens of {trained} trained"
            )
            verdict.expect(
                found["says"] in ("", str(found["given"])), f"conditions say {found['says']!r}, context_length {due}"
            )

    def _beyond(self, asked: Inputs, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        """What was read in contexts that are longer than was asked of convert."""
        fixture, read = self.fixture(known.manifest, cell), [f for f in seen.facts["found"] if "read" in f]
        for number, one in enumerate(read):
            verdict.expect(one["read"] == asked["text"][: one["given"]], "another text was read than the seed draws")
            bound, origin = allowance(known, Observation(one), fixture, asked["text"])
            reference = known.logits(fixture, asked["text"])[len(one["read"]) - 1 :][:1]
            what, answer = f"in a context of {one['given']}", seen.arrays["beyond"][number : number + 1]
            weigh_rows(verdict, what, reference, answer, bound, origin)


@check
class TextRequests(TextCheck):
    """text.requests: requests that make no sense raise BadRequest, and change nothing.

    Empty prompts, ids outside the vocabulary (below, just above, far above), rewinding more than there is, text with
    half surrogates: each by every method that takes it. After all of them the cache is as before and answers as the
    oracle.

    Passed on to native code unchecked, such ids read memory that is not theirs, and an assertion takes the process
    down.
    """

    def inputs(self, known: Known, cell: Cell) -> Inputs:
        fixture = self.fixture(known.manifest, cell)
        text = known.tokens(fixture, "requests", 24)
        vocabulary = known.logits(fixture, text).shape[1]
        return {"text": text, "ids": [-1, vocabulary, vocabulary + 7, 2**31 - 1, 2**31, -(2**31), 2**40]}

    def look(self, bench: Bench, cell: Cell, asked: Inputs) -> Observation:
        text, errors = asked["text"], {}
        with opened(bench, self.fixture(bench.manifest, cell)) as session:
            context = session.context()
            context.reset()
            rows = [context.prefill(text[:16])]
            for token in asked["ids"]:
                errors[f"prefill, id {token}"] = tried(context.prefill, [text[0], token])
                errors[f"step, id {token}"] = tried(context.step, token)
                errors[f"token_bytes, id {token}"] = tried(session.token_bytes, token)
                errors[f"detokenize, id {token}"] = tried(session.detokenize, [text[0], token])
            errors["prefill of nothing"] = tried(context.prefill, [])
            errors["rewind of more than there is"] = tried(context.rewind, 17)
            errors["rewind of less than nothing"] = tried(context.rewind, -1)
            for half in ("\ud800", "a\udfffb"):
                errors[f"tokenize, {half!a}"] = tried(session.tokenize, half)
            errors["generate from nothing"] = tried(session.generate, [], max_tokens=2)
            held = list(context.tokens)
            rows.append(context.step(text[16]))
            for token in asked["ids"]:
                errors[f"generate, id {token}"] = tried(session.generate, [text[0], token], max_tokens=2)
                if bench.manifest.can("logits"):
                    errors[f"score, id {token}"] = tried(session.score, [text[0], token])
            if bench.manifest.can("logits"):
                errors["score of nothing"] = tried(session.score, [])
            context.reset()
            rows.append(context.prefill(text))
            facts = {**stated(session, bench), "errors": errors, "held": held}
        return Observation(facts, {"logits": np.stack(rows)})

    def weigh(self, asked: Inputs, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        fixture, text = self.fixture(known.manifest, cell), asked["text"]
        for name, error in seen.facts["errors"].items():
            if name == "score of nothing" and not error:
                continue  # no rows for no tokens is an answer
            expect_error(verdict, name, error, "BadRequest")
        verdict.expect(seen.facts["held"] == text[:16], "after refused requests the cache is not as before")
        bound, origin = allowance(known, seen, fixture, text)
        reference = np.stack(expected_rows(known, fixture, [text[:16], text[:17], text]))
        weigh_rows(verdict, "logits after refused requests", reference, seen.arrays["logits"], bound, origin)


@check
class TextClosed(TextCheck):
    """text.closed: a closed session answers nothing more, and may be closed again.

    Every method of a session is called after `close`, a generation that was under way is read on, and the session is
    closed a second time. Each call must raise `BadRequest`, the second close nothing; the worker must live on, and a
    new session must answer.

    Freed memory that is still read does not always crash: this check is run in a worker, and a crash is its outcome.
    """

    def inputs(self, known: Known, cell: Cell) -> Inputs:
        return {"text": known.tokens(self.fixture(known.manifest, cell), "closed", 20)}

    def look(self, bench: Bench, cell: Cell, asked: Inputs) -> Observation:
        fixture, text = self.fixture(bench.manifest, cell), asked["text"]
        with opened(bench, fixture) as session:
            stream = session.generate(text, max_tokens=40, sampling=GREEDY_SAMPLING)
            next(stream)
            session.close()
            under_way = tried(lambda: stream)
            context = session.context()
            errors = {
                "tokenize": tried(session.tokenize, "a"), "detokenize": tried(session.detokenize, text),
                "prefill": tried(context.prefill, text), "step": tried(context.step, text[0]),
                "reset": tried(context.reset), "rewind": tried(context.rewind, 0),
                "generate": tried(session.generate, text, max_tokens=1), "score": tried(session.score, text),
                "apply_chat": tried(session.apply_chat, [{"role": "user", "content": "a"}]),
            }  # fmt: skip
            again = tried(session.close)
        with opened(bench, fixture) as session:
            rows = np.stack([session.context().prefill(text)])
            facts = {**stated(session, bench), "errors": errors, "again": again, "under_way": under_way}
        return Observation(facts, {"logits": rows})

    def weigh(self, asked: Inputs, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        fixture, text = self.fixture(known.manifest, cell), asked["text"]
        for name, error in seen.facts["errors"].items():
            expect_error(verdict, f"{name} after close", error, "BadRequest")
        verdict.expect(not seen.facts["again"], f"closing twice raises {seen.facts['again']}")
        # It may have been computed to its end, or so far ahead, when the session was closed.
        if seen.facts["under_way"]:
            expect_error(verdict, "a generation under way, after close", seen.facts["under_way"], "BadRequest")
        bound, origin = allowance(known, seen, fixture, text)
        weigh_rows(verdict, "a new session", known.logits(fixture, text)[-1:], seen.arrays["logits"], bound, origin)
