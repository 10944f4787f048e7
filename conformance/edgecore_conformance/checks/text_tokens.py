"""Text to tokens and back, and conversations to prompts: the same as the neutral tokenizer's, always and everywhere.

Ids are compared one by one: a tokenizer that is nearly right makes a model that is nearly right, and nobody sees why.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint.tokenizer import Tokenizer, TokenType
from edgecore.contract.errors import EdgecoreError
from edgecore.contract.manifest import Manifest
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, check
from edgecore_conformance.checks.text_common import Inputs, TextCheck, family_cells, opened, variant_cells
from edgecore_conformance.checks.text_lines import lines
from edgecore_conformance.known import Known
from edgecore_conformance.observation import Judgement, Observation, error_of

SHOWN = 5
"""Differences that a message names."""
OTHERWISE = ("mistral-first",)
"""Variants of families that come with another kind of tokenizer than the family's own checkpoint."""
Ids = list[int]


class OfTokens(TextCheck):
    """A check of tokenizers: one row a family and variant, and level full has the real model's too."""

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        real: list[Cell] = [{"fixture": "real"}] if level == "full" else []
        return [*family_cells(manifest, device), *variant_cells(manifest, device, *OTHERWISE), *real]


@check
class TextTokenizer(OfTokens):
    """text.tokenizer: text becomes the same ids as by the model's own tokenizer.

    Some 400 lines, in forty languages, with code, emoji, odd and leading whitespace, numbers, special tokens spelt out,
    and lines that the seed composes, are tokenized with and without the tokens that the model wants around a text, and
    with special tokens in the text taken as plain text and as special. Every id must be the neutral tokenizer's. The
    tokens that end a generation must be the model's.

    Differences at whitespace point to a missing pre-tokenizer or prefix space; at special tokens, to text that users
    write being read as control tokens, which is also how prompts are injected.

    Mistral's checkpoint has the tokenizer of its first releases, which puts a space before the text behind every
    special token; its variant has that of later ones, which puts one before the first text alone. What cannot be said
    in a backend's format may be refused by convert (`UnsupportedModel`), or said in a note that it does not make of the
    family's own checkpoint: `unsupported`. Other ids without a word are a failure. So it is in the other checks of
    tokens.
    """

    def inputs(self, known: Known, cell: Cell) -> Inputs:
        return {"lines": digest(self._lines(known, cell))}

    def _lines(self, known: Known, cell: Cell) -> list[tuple[str, bool, bool]]:
        tokenizer = known.tokenizer(self.fixture(known.manifest, cell))
        special = [t for t, kind in zip(tokenizer.tokens, tokenizer.types, strict=True) if kind is TokenType.CONTROL][
            :8
        ]
        composed = 100 if known.level == "quick" else 1500
        asked = []
        for line in lines(known.draw("lines"), special, composed):
            asked.append((line, True, False))
            if "<" in line or "[" in line:
                asked += [(line, False, True), (line, True, True), (line, False, False)]
        return [*asked, ("", True, False), ("", False, False)]

    def look(self, bench: Bench, cell: Cell, asked: Inputs) -> Observation:
        with opened(bench, self.fixture(bench.manifest, cell)) as session:
            found = [session.tokenize(*line) for line in self._lines(bench.known, cell)]
            ends = sorted(session.eos_ids)
        return Observation({"eos_ids": ends}, packed(found))

    def weigh(self, asked: Inputs, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        tokenizer = known.tokenizer(self.fixture(known.manifest, cell))
        wrong = []
        questions, found = self._lines(known, cell), unpacked(seen.arrays)
        verdict.expect(len(found) == len(questions), f"{len(found)} lines were answered of {len(questions)}")
        for (line, add, parse), ids in zip(questions, found, strict=False):
            due = tokenizer.encode(line, add_special=add, parse_special=parse)
            if ids != due:
                wrong.append(f"{line[:60]!r} (add_special {add}, parse_special {parse}): {_differ(ids, due)}")
        verdict.figure(f"of {len(questions)} lines, other ids", len(wrong), 0, "<=", "lines", "they must be equal")
        verdict.problems += wrong[:SHOWN]
        ends = sorted(tokenizer.eos_ids)
        verdict.expect(
            seen.facts["eos_ids"] == ends,
            f"tokens that end a generation are {seen.facts['eos_ids']}, and should be {ends}",
        )


@check
class TextDetokenize(OfTokens):
    """text.detokenize: ids become the same text and bytes as by the model's own tokenizer.

    The bytes of single tokens, control tokens and halves of characters among them; the text of tokenized lines; and the
    text of ids in no order at all are compared with the neutral tokenizer's. Bytes that are not UTF-8 may become one
    U+FFFD or several, and nothing else.

    What is wrong here is wrong in every answer: spaces that vanish at the beginning, byte tokens that are shown as
    `<0xE2>`, control tokens that appear as text.
    """

    def inputs(self, known: Known, cell: Cell) -> Inputs:
        tokenizer = known.tokenizer(self.fixture(known.manifest, cell))
        draw, count = known.draw("detokenize"), tokenizer.vocab_size
        odd = [i for i, kind in enumerate(tokenizer.types) if kind is not TokenType.NORMAL][:300]
        single = sorted({*odd, *range(min(count, 280)), *draw.choices(range(count), k=120)})
        some = draw.sample(lines(known.draw("lines"), [], 40), 60)
        sequences = [tokenizer.encode(line, add_special=False) for line in some]
        sequences += [draw.choices(range(count), k=draw.randrange(1, 14)) for _ in range(40)]
        return {"single": single, "sequences": [*sequences, []]}

    def look(self, bench: Bench, cell: Cell, asked: Inputs) -> Observation:
        with opened(bench, self.fixture(bench.manifest, cell)) as session:
            pieces = [session.token_bytes(token).hex() for token in asked["single"]]
            texts = [session.detokenize(ids) for ids in asked["sequences"]]
        return Observation({"bytes": pieces, "texts": texts})

    def weigh(self, asked: Inputs, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        tokenizer = known.tokenizer(self.fixture(known.manifest, cell))
        wrong = []
        for token, got in zip(asked["single"], seen.facts["bytes"], strict=True):
            due = tokenizer.token_bytes(token)
            if bytes.fromhex(got) != due:
                wrong.append(f"token {token} adds {bytes.fromhex(got)!r}, and should add {due!r}")
        for ids, text in zip(asked["sequences"], seen.facts["texts"], strict=True):
            due_text = tokenizer.decode(ids)
            if _merged(text) != _merged(due_text):
                wrong.append(f"{ids[:8]}... becomes {text[:60]!r}, and should become {due_text[:60]!r}")
        count = len(asked["single"]) + len(asked["sequences"])
        verdict.figure(f"of {count} tokens and sequences, other text", len(wrong), 0, "<=", "", "they must be equal")
        verdict.problems += wrong[:SHOWN]


CONVERSATIONS: tuple[list[Mapping[str, str]], ...] = (
    [{"role": "user", "content": "Hi"}],
    [
        {"role": "system", "content": "  Be brief.\n"},
        {"role": "user", "content": "What is 2 < 3 & \"x\"?\n\n\tSay it — plainly 🙂"},
    ],
    [
        {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "  Yes.\n"},
        {"role": "user", "content": "{{ 7 * 7 }} {% raw %} <|im_end|> </s> [/INST]  "},
        {"role": "assistant", "content": "No. é"}, {"role": "user", "content": "नमस्ते שלום"},
    ],
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}],
    [{"role": "user", "content": ""}],
)  # fmt: skip


@check
class TextChat(OfTokens):
    """text.chat: a conversation becomes the prompt that the model's own template makes.

    Conversations of one turn and of several, with and without a system message, with text that looks like a template or
    like control tokens, are applied and tokenized; prompts and ids must be those of the model's own template in the
    neutral tokenizer. So must the ids that `encode_chat` makes, in which control tokens that a message spells are text.
    A model without a template must raise `CannotDo`, and a template's refusal is `BadRequest`.

    A template of the runtime's own choosing gives plausible answers of a worse model. Ids that begin twice (the
    template has the token for it, and the tokenizer adds another), or messages that may command, show in `encode_chat`.
    """

    def inputs(self, known: Known, cell: Cell) -> Inputs:
        word = known.text("chat", 40)
        return {"conversations": [*map(list, CONVERSATIONS), [{"role": "user", "content": word}]]}

    def look(self, bench: Bench, cell: Cell, asked: Inputs) -> Observation:
        found: list[Any] = []
        with opened(bench, self.fixture(bench.manifest, cell)) as session:
            for messages in asked["conversations"]:
                try:
                    prompt = session.apply_chat(messages)
                    ids = session.tokenize(prompt, False, True)
                    found.append({"prompt": prompt, "ids": ids, "encoded": session.encode_chat(messages)})
                except EdgecoreError as error:
                    found.append(error_of(error))
        return Observation({"found": found})

    def weigh(self, asked: Inputs, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        tokenizer = known.tokenizer(self.fixture(known.manifest, cell))
        for number, (messages, got) in enumerate(zip(asked["conversations"], seen.facts["found"], strict=True)):
            due = _applied(tokenizer, messages)
            if "error" in due:
                verdict.expect(
                    got.get("error") == due["error"],
                    f"conversation {number}: it raises {got.get('error', 'nothing')}, not {due['error']}",
                )
            elif got != due:
                if got.get("prompt") != due["prompt"]:
                    said = f"the prompt: {_words(got)!r}, and should be {_words(due)!r}"
                else:
                    which = next(name for name in ("ids", "encoded") if got[name] != due[name])
                    said = f"{which}: {_differ(got[which], due[which])}"
                verdict.problems.append(f"conversation {number}: {said}")


def _applied(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    try:
        prompt, encoded = tokenizer.apply_chat(messages), tokenizer.encode_chat(messages)
    except EdgecoreError as error:
        return dict(error_of(error))
    return {
        "prompt": prompt, "ids": tokenizer.encode(prompt, add_special=False, parse_special=True), "encoded": encoded,
    }  # fmt: skip


def _words(found: Mapping[str, Any]) -> str:
    return str(found.get("prompt", found.get("error")))[:200]


def _differ(got: Ids, due: Ids) -> str:
    at = next((i for i, (a, b) in enumerate(zip(got, due, strict=False)) if a != b), min(len(got), len(due)))
    return f"from token {at} on {got[at : at + 6]} of {len(got)}, and should be {due[at : at + 6]} of {len(due)}"


def _merged(text: str) -> str:
    return re.sub("\ufffd+", "\ufffd", text)


def digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()


def packed(sequences: Sequence[Sequence[int]]) -> dict[str, NDArray[Any]]:
    """Sequences of different lengths as two arrays."""
    ends = np.cumsum([0, *map(len, sequences)]).astype(np.int32)
    return {"ids": np.array([i for s in sequences for i in s], np.int64), "ends": ends}


def unpacked(arrays: Mapping[str, NDArray[Any]]) -> list[Ids]:
    return [arrays["ids"][a:b].tolist() for a, b in pairwise(arrays["ends"].tolist())]
