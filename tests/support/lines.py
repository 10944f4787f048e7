"""Two thousand hard lines for tokenizers, the same everywhere: what people write, and what breaks splitting rules.

    from support.lines import lines
    for line in lines(special=("<|im_end|>",)): ...

The texts are the conformance suite's, read as data: it need not be installed. Only `Random.random` is used, whose
sequence Python guarantees, and no table of Unicode, which grows with each release.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from random import Random

LEAST = 2000
_DATA = Path(__file__).parents[2] / "conformance" / "edgecore_conformance" / "fixtures" / "data"
_TEXTS = tomllib.loads((_DATA / "hard-lines.toml").read_text(encoding="utf-8"))
SENTENCES, CODE, EMOJI, SPACES, DIGITS, SPELLED = (
    tuple(_TEXTS[name]) for name in ("sentences", "code", "emoji", "spaces", "digits", "spelled")
)
MARKS: str = _TEXTS["marks"]
CONTROLS: str = _TEXTS["controls"]
BLOCKS: list[tuple[int, int]] = [(first, last) for first, last in _TEXTS["blocks"]]


def lines(special: Sequence[str] = ()) -> list[str]:
    """At least `LEAST` texts, all different, none empty; `special` are the tokenizer's own, to stand among them."""
    made = Lines()
    tokens = (*SPELLED, *special)
    found = [*SENTENCES, *CODE, *EMOJI, *SPACES, *DIGITS, *SPELLED, *MARKS, *CONTROLS]
    found += [gap + word for gap in SPACES for word in ("a", "A.", "7", "é", "你", "'s", "!")]
    found += [word + gap for gap in SPACES for word in ("a", "7", "!")]
    found += [
        unit * n
        for unit in (" ", "\n", "\t", "a", "=", "-", "7", "▁", "\r\n", "ا", "🙂")
        for n in (2, 3, 5, 16, 17, 31, 33, 70)
    ]
    found += [before + token + after for token in tokens for before, after in ((" ", " "), ("a", "b"), ("\n", "\n\n"))]
    found += [tokens[n] + tokens[n - 1] for n in range(len(tokens))]
    for _ in range(500):
        words = [made.word() for _ in range(1 + made.below(8))]
        found.append("".join(word + made.of(SPACES[:12] if made.below(3) else SPACES) for word in words))
    for _ in range(300):
        low, high = made.of(BLOCKS)
        found.append("".join(chr(low + made.below(high - low + 1)) for _ in range(1 + made.below(12))))
    for _ in range(300):
        found.append(
            "".join(
                made.of(made.of((EMOJI, DIGITS, SPACES, MARKS, SPELLED, "aZ'._é你ا"))) for _ in range(2 + made.below(9))
            )
        )
    for _ in range(150):
        found.append(
            "".join(made.of("0123456789٣१１") for _ in range(1 + made.below(20))) + made.of(("", " ", ".5", "km"))
        )
    for _ in range(150):
        found.append("".join(made.of("'\"`.,;:!?-_=+*/\\|()[]{}<>@#$%^&~ \n") for _ in range(1 + made.below(16))))
    for _ in range(200):
        found.append(made.word() + made.of(tokens) + made.of(SPACES) + made.word() + made.of(tokens))
    found = list(dict.fromkeys(filter(None, found)))
    assert len(found) >= LEAST, len(found)
    return found


class Lines:
    """Choices from one seeded sequence."""

    def __init__(self) -> None:
        self._next = Random(20261121).random

    def below(self, count: int) -> int:
        return int(self._next() * count)

    def of(self, items: Sequence[str] | Sequence[tuple[int, int]] | Sequence[Sequence[str]]) -> object:
        return items[self.below(len(items))]

    def word(self) -> str:
        """A word or a part of one, a number, an emoji, a piece of code."""
        kind = self.below(8)
        if kind == 0:
            return str(self.of(DIGITS))
        if kind == 1:
            return str(self.of(EMOJI))
        source = str(self.of(CODE if kind == 2 else SENTENCES))
        words = source.split(" ")
        word = words[self.below(len(words))]
        if kind == 3 and word:
            return word[self.below(len(word)) :] + str(self.of(MARKS))
        return word.upper() if kind == 4 else word
