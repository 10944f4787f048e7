"""Lines for tokenizers that a seed composes of hard texts, so that no answer can be stored beforehand."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from random import Random

from edgecore_conformance.fixtures.language import DATA

_TEXTS = tomllib.loads((DATA / "hard-lines.toml").read_text(encoding="utf-8"))
SENTENCES, CODE, EMOJI, SPACES, DIGITS, SPELLED = (
    tuple(_TEXTS[name]) for name in ("sentences", "code", "emoji", "spaces", "digits", "spelled")
)
MARKS: str = _TEXTS["marks"]
CONTROLS: str = _TEXTS["controls"]
BLOCKS: list[tuple[int, int]] = [(first, last) for first, last in _TEXTS["blocks"]]


def lines(draw: Random, special: Sequence[str], composed: int) -> list[str]:
    """Texts, all different, none empty: the hard ones, and `composed` ones of the seed's own. `special` are the
    tokenizer's own special tokens."""
    tokens = (*SPELLED, *special)
    found = [*SENTENCES, *CODE, *EMOJI, *SPACES, *DIGITS, *special, *CONTROLS]
    found += [
        gap + word for gap in (" ", "  ", "\t", "\n", "\u00a0", "\u3000", "▁") for word in ("a", "7", "é", "你", "!")
    ]
    found += [word + gap for gap in (" ", "  ", "\n", "\r\n") for word in ("a", "7", "!")]
    found += [unit * n for unit in (" ", "\n", "a", "7", "🙂", "\r\n") for n in (2, 3, 17, 33)]
    found += [before + token + after for token in special for before, after in (("", "x"), (" ", " "), ("a", "b"))]
    found += [f"a {token}\nb" for token in SPELLED]
    found.append("\n".join(draw.sample(SENTENCES, len(SENTENCES))))  # more tokens than any buffer of a fixed size
    for _ in range(composed):
        words = [_word(draw, tokens) for _ in range(draw.randrange(1, 8))]
        found.append("".join(word + draw.choice(SPACES[:12] if draw.random() < 0.7 else SPACES) for word in words))
    for _ in range(composed // 2):
        low, high = draw.choice(BLOCKS)
        found.append("".join(chr(draw.randrange(low, high + 1)) for _ in range(draw.randrange(1, 12))))
    return list(dict.fromkeys(filter(None, found)))


def _word(draw: Random, tokens: Sequence[str]) -> str:
    """A word or a part of one, a number, an emoji, a piece of code, a special token."""
    kind = draw.randrange(9)
    if kind < 3:
        return str(draw.choice((DIGITS, EMOJI, tokens)[kind]))
    word = str(draw.choice(draw.choice(CODE if kind == 3 else SENTENCES).split(" ")))
    if kind == 4 and word:
        return word[draw.randrange(len(word)) :] + draw.choice(MARKS)
    return word.upper() if kind == 5 else word
