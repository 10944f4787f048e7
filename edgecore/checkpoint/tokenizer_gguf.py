"""A tokenizer from GGUF metadata: the tables are llama.cpp's, the engine is the `tokenizers` library."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgecore.checkpoint.fields import Fields
from edgecore.checkpoint.gguf_file import GgufArray
from edgecore.checkpoint.pretokenizers import PRE_TOKENIZERS
from edgecore.checkpoint.tokenizer import Tokenizer, TokenType, Vocabulary, end_ids
from edgecore.checkpoint.tokenizer_engine import Stripping, byte_level, finite, sentencepiece
from edgecore.checkpoint.tokenizer_kind import gguf_kind

_ROLES = {
    "bos": "bos_token_id", "eos": "eos_token_id", "unknown": "unknown_token_id", "separator": "seperator_token_id",
    "padding": "padding_token_id", "mask": "mask_token_id",
}  # fmt: skip
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_PHI3_PLAIN = frozenset({"<unk>", "<s>", "<|endoftext|>"})
"""Of Phi-3's special tokens these leave the white space behind them alone; a GGUF file cannot say so."""


def tokenizer_from_gguf(file: Path, metadata: Mapping[str, Any], vocab_size: int | None = None) -> Tokenizer:
    """`vocab_size` is the model's, which may have room for more tokens than there are.

    Raises `UnsupportedModel` for other kinds than byte-level and SentencePiece-style BPE, `CorruptModel`."""
    model, pre = gguf_kind(file, metadata)
    fields = Fields(file, metadata, "tokenizer.ggml.")
    spm = model != "gpt2"
    scored = model == "llama"
    tokens = _tokens(fields)
    types = _types(fields, len(tokens))
    scores = tuple(map(float, _array(fields, "scores", (float, int), len(tokens)))) if scored else ()
    scores = finite(scores, lambda why: fields.wrong("scores", why))
    if vocab_size is not None:
        if len(tokens) > vocab_size:
            raise fields.wrong("tokens", f"{len(tokens)} of them in a model that has {vocab_size}")
        room = range(len(tokens), vocab_size)
        tokens += tuple(f"[PAD{i}]" for i in room)
        types += (TokenType.UNUSED,) * len(room)
        scores += (-1e6,) * len(room) if scored else ()
        _refuse_twice(fields, tokens)
    # Ids outside the vocabulary stand for none: llama2.c's converter writes 2^32 - 1 so.
    special = {role: _id(fields, key) for role, key in _ROLES.items() if fields.has(key)}
    special = {role: token for role, token in special.items() if token < len(tokens)}
    if scored:
        special = {r: i for r, i in {"unknown": 0, "bos": 1, "eos": 2}.items() if i < len(tokens)} | special
    if scored and not fields.has("token_type"):
        types = _types_by_text(tokens, special)
    declared = {_id(fields, key) for key in _ENDS if fields.has(key)} | {special.get("eos", -1)}
    vocabulary = Vocabulary(
        model=model,
        pre=pre,
        tokens=tokens,
        types=types,
        merges=() if scored else tuple(_array(fields, "merges", (str,), None)),
        scores=scores,
        special=special,
        eos_ids=end_ids(tokens, types, {t for t in declared if 0 <= t < len(tokens)}),
        add_bos=fields.flag("add_bos_token", spm or PRE_TOKENIZERS[pre].add_bos),
        add_eos=fields.flag("add_eos_token", False),
        add_space_prefix=spm and fields.flag("add_space_prefix", scored),
        chat_template=Fields(file, metadata).text("tokenizer.chat_template", None),
    )
    make = sentencepiece if spm else byte_level
    if scored and Fields(file, metadata).text("general.architecture", "") == "phi3":
        stripping = {i: Stripping(rstrip=token not in _PHI3_PLAIN) for i, token in enumerate(tokens)}
        return Tokenizer(vocabulary, sentencepiece(vocabulary, _no_tokenizer(fields), stripping))
    return Tokenizer(vocabulary, make(vocabulary, _no_tokenizer(fields)))


def _no_tokenizer(fields: Fields) -> Any:
    return lambda why: fields.wrong("tokens", f"no tokenizer can be made of them: {why}")


def _tokens(fields: Fields) -> tuple[str, ...]:
    tokens = tuple(text or f"[EMPTY_{i}]" for i, text in enumerate(_array(fields, "tokens", (str,), None)))
    if not tokens:
        raise fields.wrong("tokens", "has no items")
    _refuse_twice(fields, tokens)
    return tokens


def _refuse_twice(fields: Fields, tokens: Sequence[str]) -> None:
    if len(set(tokens)) != len(tokens):
        seen: set[str] = set()
        twice = next(t for t in tokens if t in seen or seen.add(t))  # type: ignore[func-returns-value]
        raise fields.wrong("tokens", f"{twice[:80]!r} stands twice")


def _types(fields: Fields, count: int) -> tuple[TokenType, ...]:
    if not fields.has("token_type"):
        return (TokenType.NORMAL,) * count
    known = {int(t): t for t in TokenType}
    return tuple(known.get(number, TokenType.UNUSED) for number in _array(fields, "token_type", (int,), count))


def _types_by_text(tokens: Sequence[str], special: Mapping[str, int]) -> tuple[TokenType, ...]:
    """What llama.cpp takes tokens for where the file does not say: bytes by their text, special ones by their role."""
    types = [TokenType.BYTE if _BYTE.fullmatch(token) else TokenType.NORMAL for token in tokens]
    for role, token in special.items():
        types[token] = TokenType.UNKNOWN if role == "unknown" else TokenType.CONTROL
    return tuple(types)


def _id(fields: Fields, key: str) -> int:
    return fields.integer(key, least=0, most=(1 << 32) - 1)


def _array(fields: Fields, key: str, kind: tuple[type, ...], count: int | None) -> Sequence[Any]:
    """The items of a metadata array, which must be of `kind` and, where given, as many as `count`."""
    value = fields.values.get(fields.prefix + key)
    if not isinstance(value, GgufArray):
        raise fields.wrong(key, "is missing" if value is None else "is not an array")
    items = value.read()
    if items and not isinstance(items[0], kind):
        raise fields.wrong(key, f"holds {type(items[0]).__name__}, not {kind[0].__name__}")
    if count is not None and len(items) != count:
        raise fields.wrong(key, f"has {len(items)} items for {count} tokens")
    return items
