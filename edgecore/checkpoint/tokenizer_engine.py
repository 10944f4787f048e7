"""Engines of the `tokenizers` library from tables: GGUF metadata and tokenizer.model encode by the same code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, TypeVar

import tokenizers
from tokenizers import AddedToken, models, normalizers

from edgecore.checkpoint.pretokenizers import PRE_TOKENIZERS
from edgecore.checkpoint.tokenizer import TokenType, Vocabulary, guarded
from edgecore.contract.errors import EdgecoreError

MOST_MERGES = 2_000_000
"""Pairs that a scored vocabulary may mean; Gemma's 262,144 tokens, the most of the known ones, mean 580,000."""
MOST_CUTS = 128
"""Places where a token is tried as the sum of two others; the longest tokens known are runs of 128 spaces."""
NEVER_MADE = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.BYTE, TokenType.UNUSED)
"""Kinds that no merge makes, nor is part of: text that spells them is plain text."""
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Stripping:
    """What an added token takes with it, where its file says so."""

    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


def byte_level(vocabulary: Vocabulary, wrong: Callable[[str], EdgecoreError]) -> tokenizers.Tokenizer:
    """GPT-2's kind. `wrong` makes the error of tables that are no tokenizer."""
    rules = PRE_TOKENIZERS[vocabulary.pre]

    def make() -> tokenizers.Tokenizer:
        engine = tokenizers.Tokenizer(models.BPE(*_listed_merges(vocabulary), ignore_merges=rules.ignore_merges))
        if rules.nfc:
            engine.normalizer = normalizers.NFC()
        engine.pre_tokenizer = rules.build()
        _add_special(engine, vocabulary, {}, normalized=False)
        return engine

    return guarded(make, wrong)


def sentencepiece(
    vocabulary: Vocabulary,
    wrong: Callable[[str], EdgecoreError],
    stripping: Mapping[int, Stripping] | None = None,
    prepends: bool | None = None,
) -> tokenizers.Tokenizer:
    """SentencePiece's BPE: `▁` for the space, bytes for what is no token. Merges are those listed, else all pairs whose
    sum is a token, the best score first. `prepends` false leaves the space before a text to the caller."""
    prepends = vocabulary.add_space_prefix if prepends is None else prepends
    unknown = vocabulary.special.get("unknown")

    def make() -> tokenizers.Tokenizer:
        ids, merges = _listed_merges(vocabulary) if vocabulary.merges else _scored_merges(vocabulary)
        engine = tokenizers.Tokenizer(
            models.BPE(
                ids,
                merges,
                unk_token=None if unknown is None else vocabulary.tokens[unknown],
                fuse_unk=True,
                byte_fallback=TokenType.BYTE in vocabulary.types,
            )
        )
        prefix = [normalizers.Prepend("▁")] if prepends else []
        engine.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
        _add_special(engine, vocabulary, stripping or {}, normalized=not prepends)
        return engine

    return guarded(make, wrong)


def _listed_merges(vocabulary: Vocabulary) -> tuple[dict[str, int], list[tuple[str, str]]]:
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    merges = [(m[: (at := m.find(" ", 1))], m[at + 1 :]) for m in vocabulary.merges]
    return ids, [(a, b) for a, b in merges if a in ids and b in ids and a + b in ids]


def _scored_merges(vocabulary: Vocabulary) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Equal scores in the order in which transformers puts them."""
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    usable = {
        token: i for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind not in NEVER_MADE
    }  # fmt: skip
    scores = vocabulary.scores
    budget = min(MOST_MERGES, 16 * len(ids) + 4096)
    found = []
    id_of = usable.get
    for token, i in usable.items():
        for cut in range(1, min(len(token), MOST_CUTS) if len(token) <= 4 * MOST_CUTS else 0):
            if (left := id_of(token[:cut])) is not None and (right := id_of(token[cut:])) is not None:
                found.append((-scores[i], i, left, right))
        if len(found) > budget:
            raise ValueError(f"they are sums of each other in more than {budget} ways")
    found.sort()
    names = vocabulary.tokens
    return ids, [(names[left], names[right]) for _, _, left, right in found]


def _add_special(
    engine: tokenizers.Tokenizer, vocabulary: Vocabulary, stripping: Mapping[int, Stripping], normalized: bool
) -> None:
    """Control and user-defined tokens are found before anything else looks at the text.

    `normalized`: user-defined ones are looked for in the text with its spaces already replaced, as SentencePiece does:
    there `▁` in the text counts as a space.
    """
    control, user = [], []
    for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        if kind not in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED):
            continue
        flags: Any = stripping.get(i, Stripping())
        kept = {"lstrip": flags.lstrip, "rstrip": flags.rstrip, "single_word": flags.single_word}
        if kind is TokenType.USER_DEFINED:
            user.append(AddedToken(token, special=False, normalized=normalized, **kept))
        else:
            control.append(AddedToken(token, special=True, normalized=False, **kept))
    engine.add_special_tokens(control)
    engine.add_tokens(user)


def finite(scores: tuple[float, ...], wrong: Callable[[str], EdgecoreError]) -> tuple[float, ...]:
    """`scores`, once none of them is NaN or infinite: an order by them would be none."""
    for i, score in enumerate(scores):
        if not isfinite(score):
            raise wrong(f"item {i} is {score}")
    return scores
