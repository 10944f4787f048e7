"""Generation, where the answer is known beforehand: a scripted Llama says it, whatever the runtime's arithmetic."""

from __future__ import annotations

from typing import Any

from edgecore.contract.manifest import Manifest
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, check
from edgecore_conformance.checks.text_common import (
    Inputs,
    TextCheck,
    answered,
    finish_of,
    opened,
    sampling,
    stated,
    subject,
    text_of,
    tokens_of,
    weigh_greedy,
)
from edgecore_conformance.known import SCRIPTED, TRAINED, Known
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.scripted import said

GREEDY = {"temperature": 0.0}
UNLIMITED = "without a limit"


class Scripted(TextCheck):
    """A check whose cases are generations of the scripted model: `{name: {prompt, how}}`."""

    def applies(self, manifest: Manifest) -> bool:
        return super().applies(manifest) and subject(manifest) == TRAINED

    def fixture(self, manifest: Manifest, cell: Cell) -> str:
        return SCRIPTED

    def cases(self, known: Known) -> dict[str, Inputs]:
        raise NotImplementedError

    def inputs(self, known: Known, cell: Cell) -> Inputs:
        return {"cases": self.cases(known)}

    def look(self, bench: Bench, cell: Cell, asked: Inputs) -> Observation:
        answers = {}
        with opened(bench, SCRIPTED) as session:
            for name, case in asked["cases"].items():
                answers[name] = generated(session, case)
            facts = stated(session, bench)
        return Observation({"answers": answers, **facts})


def generated(session: Any, case: Inputs) -> dict[str, Any]:
    """The answer to a case; greedy where it says nothing else."""
    how = {name: case[name] for name in ("max_tokens", "stop", "reuse_cache") if name in case}
    return answered(session, case["prompt"], sampling=sampling(case.get("sampling", GREEDY)), **how)


def prompt_into(known: Known, purpose: str, last: int) -> list[int]:
    """A short prompt that ends with `last`."""
    draw = known.draw(f"prompt {purpose}")
    return [*draw.choices(known.script.prompts, k=draw.randrange(1, 7)), last]


def expect_answer(
    verdict: Judgement, what: str, answer: Inputs, tokens: list[int], text: str | None, finish: str
) -> None:
    """Holds one answer to what it had to be."""
    if answer["error"]:
        verdict.problems.append(f"{what}: {answer['error']['error']}: {answer['error']['what']}")
        return
    made = tokens_of(answer)
    verdict.expect(
        made == tokens, f"{what}: {len(made)} tokens {made[-6:]} came, and {len(tokens)} were due, {tokens[-6:]}"
    )
    if text is not None:
        got = text_of(answer)
        verdict.expect(got == text, f"{what}: the text is {got!r}, and should be {text!r}")
    got = finish_of(answer)
    verdict.expect(got == finish, f"{what}: finish is {got!r}, and should be {finish!r}")


@check
class TextGreedy(TextCheck):
    """text.greedy: at temperature 0 every token is the model's best one.

    Answers to several prompts, short and long, are held to the oracle: given the prompt and the answer so far, the
    token that was chosen must be the oracle's best, or so close behind it that the compute precision explains it. A
    seed must make no difference, nor top-k and top-p. The context must hold prompt and answer afterwards.

    A failure at the first token means that prefill and generation differ; later, that steps do, or that the loop feeds
    back another token than it showed.
    """

    def inputs(self, known: Known, cell: Cell) -> Inputs:
        fixture = self.fixture(known.manifest, cell)
        draw = known.draw("greedy")
        sizes = (min(n, known.context(fixture) - 24) for n in (1, 9, 40, draw.randrange(150, 260)))
        prompts = [known.tokens(fixture, f"greedy {n}", n) for n in sizes]
        hows = [GREEDY, {"temperature": 0.0, "seed": draw.randrange(1000)}, GREEDY, {"temperature": 0.0, "top_k": 1}]
        return {
            "cases": [{"prompt": p, "max_tokens": 24, "sampling": h} for p, h in zip(prompts, hows, strict=True)]
            + [{"prompt": prompts[1], "max_tokens": 24, "sampling": {"temperature": 0.0, "seed": 7, "top_p": 0.5}}]
        }

    def look(self, bench: Bench, cell: Cell, asked: Inputs) -> Observation:
        answers, held = [], []
        with opened(bench, self.fixture(bench.manifest, cell)) as session:
            for case in asked["cases"]:
                answers.append(generated(session, case))
                held.append(list(session.context().tokens))
            facts = stated(session, bench)
        return Observation({"answers": answers, "held": held, **facts})

    def weigh(self, asked: Inputs, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        fixture = self.fixture(known.manifest, cell)
        ends = known.tokenizer(fixture).eos_ids
        for number, case in enumerate(asked["cases"]):
            answer, held = seen.facts["answers"][number], seen.facts["held"][number]
            what = f"answer {number} to {len(case['prompt'])} tokens"
            if answer["error"]:
                verdict.problems.append(f"{what}: {answer['error']['error']}: {answer['error']['what']}")
                continue
            made = tokens_of(answer)
            weigh_greedy(verdict, what, known, fixture, case["prompt"], made, seen)
            ended = bool(made) and made[-1] in ends
            verdict.expect(
                finish_of(answer) == ("eos" if ended else "length"), f"{what}: finish is {finish_of(answer)!r}"
            )
            verdict.expect(ended or len(made) == 24, f"{what}: {len(made)} tokens, and 24 were asked for")
            whole = [*case["prompt"], *made]
            # The last token of an answer need not have been read yet.
            verdict.expect(
                held in (whole, whole[:-1]), f"{what}: afterwards the context does not hold prompt and answer"
            )
        verdict.expect(
            tokens_of(seen.facts["answers"][4]) == tokens_of(seen.facts["answers"][1]),
            "a seed, or top-p, changes the answer at temperature 0",
        )


@check
class TextLength(Scripted):
    """text.length: asked for N tokens, made N.

    Answers that would never end are asked for 1, 2, 7, 33 and more tokens, at temperature 0 and sampled; each must have
    exactly so many, finish with `length`, and show the text of all of them. Without a limit one goes on until the
    context is full, and ends with `DoesNotFit`.

    One too many or too few distorts every speed that is measured by counting tokens. A limit that nobody set, 16 or 128
    tokens by a runtime's default, looks like an answer that was over.
    """

    def cases(self, known: Known) -> dict[str, Inputs]:
        made = {}
        for count in (1, 2, 7, 33, min(known.draw("length").randrange(40, 90), known.context(SCRIPTED) - 8)):
            start = known.draw(f"length {count}").choice(known.script.loop)
            made[str(count)] = {"prompt": prompt_into(known, f"length {count}", start), "max_tokens": count}
        made["sampled"] = {**made["7"], "sampling": {"temperature": 0.8, "seed": 3}}
        made[UNLIMITED] = {"prompt": prompt_into(known, "length unlimited", known.script.loop[0])}
        return made

    def weigh(self, asked: Inputs, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        tokenizer = known.tokenizer(TRAINED)
        for name, case in asked["cases"].items():
            if name == UNLIMITED:
                self._unlimited(case["prompt"], seen, known, verdict)
                continue
            due = known.script.answer(case["prompt"][-1], case["max_tokens"])
            expect_answer(verdict, name, seen.facts["answers"][name], due, said(tokenizer, due), "length")

    def _unlimited(self, prompt: list[int], seen: Observation, known: Known, verdict: Judgement) -> None:
        answer = seen.facts["answers"][UNLIMITED]
        made, room = tokens_of(answer), seen.facts["context_length"] - len(prompt)
        # The token that the full cache predicts needs no room of its own.
        verdict.expect(len(made) in (room, room + 1), f"{UNLIMITED}: {len(made)} tokens came, and {room} fit")
        verdict.expect(made == known.script.answer(prompt[-1], len(made)), f"{UNLIMITED}: other tokens than were due")
        error = (answer["error"] or {}).get("error", "nothing")
        verdict.expect(error == "DoesNotFit", f"{UNLIMITED}: it raises {error}, not DoesNotFit")


@check
class TextEnd(Scripted):
    """text.end: a token that ends a generation ends it, and is reported.

    For every such token of the model (end of sequence, end of turn) there is an answer that comes to it after a few
    words, and one that begins with it. The finish must be `eos`, the token must be the last piece's, and nothing of
    it may be in the text; words that would follow must not come. In a prompt the same tokens end nothing.

    A model that talks on past its end, in both voices, is what users see of this fault.
    """

    def cases(self, known: Known) -> dict[str, Inputs]:
        made: dict[str, Inputs] = {}
        for number, chain in enumerate(known.script.ends):
            prompt = prompt_into(known, f"end {number}", chain[0])
            made[f"later {number}"] = {"prompt": prompt, "max_tokens": 20}
            made[f"at once {number}"] = {"prompt": [*prompt[:-1], chain[-2]], "max_tokens": 20}
            made[f"as the last that is allowed {number}"] = {"prompt": prompt, "max_tokens": len(chain) - 1}
            made[f"within the prompt {number}"] = {
                "prompt": [prompt[0], chain[-1], *prompt_into(known, f"past {number}", known.script.words[0])],
                "max_tokens": 5,
            }
        made["sampled"] = {**made["later 0"], "sampling": {"temperature": 0.9, "seed": 11}}
        made[UNLIMITED] = {"prompt": made["later 0"]["prompt"]}
        return made

    def weigh(self, asked: Inputs, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        tokenizer = known.tokenizer(TRAINED)
        ends = tokenizer.eos_ids
        for name, case in asked["cases"].items():
            due = known.script.answer(case["prompt"][-1], case.get("max_tokens", 20))
            at = next((i for i, token in enumerate(due) if token in ends), None)
            if at is None:
                expect_answer(verdict, name, seen.facts["answers"][name], due, said(tokenizer, due), "length")
                continue
            text = said(tokenizer, due[:at])
            expect_answer(verdict, name, seen.facts["answers"][name], due[: at + 1], text, "eos")


@check
class TextStreaming(Scripted):
    """text.streaming: pieces joined are the text, and no piece ends inside a character.

    Answers hold characters of two to four bytes, each byte a token of its own, and words between them. Read piece by
    piece they must be the text of their tokens; no piece may hold a half character or U+FFFD in its place, and a word
    must not wait for what follows it. Answers that are cut inside a character, by their length or their end, may show
    U+FFFD at the very end or nothing, and no byte of it elsewhere.

    Decoding each token on its own is the usual fault; in English it never shows.
    """

    def cases(self, known: Known) -> dict[str, Inputs]:
        chain = known.script.characters
        whole = {"prompt": prompt_into(known, "streaming", chain[0]), "max_tokens": len(chain) + 3}
        cut = known.draw("streaming").randrange(2, len(chain) - 1)
        return {
            "whole": whole,
            "sampled": {**whole, "sampling": {"temperature": 0.7, "seed": 5}},
            "cut by its length": {**whole, "max_tokens": cut},
            "cut by its end": {"prompt": prompt_into(known, "half", known.script.half[0]), "max_tokens": 9},
            "with a stop string in sight": {**whole, "stop": ["\U0001f643", "中é中"]},
        }

    def weigh(self, asked: Inputs, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        tokenizer = known.tokenizer(TRAINED)
        for name, case in asked["cases"].items():
            answer = seen.facts["answers"][name]
            due = known.script.answer(case["prompt"][-1], case["max_tokens"])
            at = next((i for i, token in enumerate(due) if token in tokenizer.eos_ids), None)
            words = due if at is None else due[:at]
            finish = "length" if at is None else "eos"
            expect_answer(verdict, name, answer, due if at is None else due[: at + 1], None, finish)
            text, got = said(tokenizer, words), text_of(answer)
            verdict.expect(
                got in (text, text.rstrip("\ufffd")), f"{name}: the pieces join to {got!r}, and the text is {text!r}"
            )
            if "stop" not in case and not answer["error"]:
                self._expect_prompt(name, answer, known, verdict)

    def _expect_prompt(self, name: str, answer: Inputs, known: Known, verdict: Judgement) -> None:
        """After each piece, all characters that are complete have been shown."""
        tokenizer, data, shown = known.tokenizer(TRAINED), b"", ""
        for token, text, finish in answer["pieces"]:
            data += tokenizer.token_bytes(token) if 0 <= token < tokenizer.vocab_size else b""
            shown += text
            complete = data.decode("utf-8", "ignore")
            if not finish and shown != complete:
                verdict.problems.append(f"{name}: {shown!r} was shown when {complete!r} was complete")
                return


@check
class TextStop(Scripted):
    """text.stop: an answer ends exactly before a stop string, wherever tokens begin and end.

    The answer is known, so stop strings can be cut from it: within a token, across two borders, at its very
    beginning, a character of several tokens, one of several, two of which the earlier counts. The text must end
    exactly before, finish must be `stop`, and no token may come after the one that completes the string. Strings that
    begin and never complete must hold nothing back in the end. One that stands in the prompt stops nothing.

    Stop strings that are looked for token by token miss every string that lies across a border, or show its beginning.
    """

    def cases(self, known: Known) -> dict[str, Inputs]:
        tokenizer, words, characters = known.tokenizer(TRAINED), known.script.words, known.script.characters
        prompt, into = prompt_into(known, "stop", words[0]), prompt_into(known, "stop at", characters[0])
        text, draw = said(tokenizer, words[1:]), known.draw("stop")
        sizes = [len(tokenizer.token_bytes(t)) for t in words[1:]]
        ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]

        def across(first: int, last: int) -> str:
            """From within token `first` to within token `last`."""
            a = (ends[first - 1] if first else 0) + draw.randrange(1, sizes[first])
            return text[a : ends[last] - draw.randrange(1, sizes[last])]

        one, two, far = across(3, 4), across(6, 8), across(10, 11)
        limit = len(words) + 4
        never = text[ends[4] - 1 : ends[5]] + "\u2603"
        chars = said(tokenizer, characters[1:])
        wide = next(i for i, c in enumerate(chars) if len(c.encode()) == 4)
        return {
            "across one border": {"prompt": prompt, "max_tokens": limit, "stop": [one]},
            "across two borders": {"prompt": prompt, "max_tokens": limit, "stop": [two]},
            "a whole token": {"prompt": prompt, "max_tokens": limit, "stop": [text[ends[4] : ends[5]]]},
            "within a token": {"prompt": prompt, "max_tokens": limit, "stop": [text[ends[5] + 1 : ends[6] - 1] or one]},
            "at the beginning": {"prompt": prompt, "max_tokens": limit, "stop": [text[: ends[0] + 1]]},
            "the earlier of several": {"prompt": prompt, "max_tokens": limit, "stop": [far, two, "\u2603", one]},
            "one that holds another": {"prompt": prompt, "max_tokens": limit, "stop": [two + "\u2603", two[:-1]]},
            "sampled": {
                "prompt": prompt, "max_tokens": limit, "stop": [two], "sampling": {"temperature": 0.8, "seed": 2},
            },
            "a character of four tokens": {"prompt": into, "max_tokens": limit, "stop": [chars[wide]]},
            "from a character into a word": {"prompt": into, "max_tokens": limit, "stop": [chars[wide : wide + 2]]},
            "never completed": {"prompt": prompt, "max_tokens": 9, "stop": [never, text[ends[7] - 2 : ends[9]]]},
            "begun when the answer is cut": {
                "prompt": prompt, "max_tokens": 6, "stop": [never[:-1] + text[ends[5] :][:3]],
            },
            "begun when the answer ends": {
                "prompt": prompt_into(known, "stop end", known.script.ends[0][0]), "max_tokens": 9,
                "stop": [said(tokenizer, known.script.ends[0][1:-1])[-2:] + "\u2603"],
            },
            "only in the prompt": {
                "prompt": [words[3], words[4], *prompt_into(known, "stop in", words[9])], "max_tokens": 4,
                "stop": [said(tokenizer, words[3:5])],
            },
        }  # fmt: skip

    def weigh(self, asked: Inputs, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        tokenizer = known.tokenizer(TRAINED)
        for name, case in asked["cases"].items():
            due = known.script.answer(case["prompt"][-1], case["max_tokens"])
            expect_answer(verdict, name, seen.facts["answers"][name], *stopped(tokenizer, due, case["stop"]))


def stopped(tokenizer: Any, due: list[int], stop: list[str]) -> tuple[list[int], str, str]:
    """(tokens, text, finish) of an answer that would be `due`, by the contract's definition."""
    data = b""
    for at, token in enumerate(due):
        if token in tokenizer.eos_ids:
            return due[: at + 1], data.decode("utf-8", "replace"), "eos"
        data += tokenizer.token_bytes(token)
        text = data.decode("utf-8", "ignore")
        found = [text.find(s) for s in stop if s in text]
        if found:
            return due[: at + 1], text[: min(found)], "stop"
    return due, data.decode("utf-8", "replace"), "length"
