"""A tokenizer from GGUF metadata: the tables are llama.cpp's, the engine is the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, models, normalizers

from edgecore.checkpoint.fields import Fields
from edgecore.checkpoint.gguf_file import GgufArray
from edgecore.checkpoint.pretokenizers import PRE_TOKENIZERS, SYNONYMS
from edgecore.checkpoint.tokenizer import Tokenizer, TokenType, Vocabulary, end_ids
from edgecore.contract.errors import UnsupportedModel

_ROLES = {
    "bos": "bos_token_id", "eos": "eos_token_id", "unknown": "unknown_token_id", "padding": "padding_token_id",
}  # fmt: skip
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


def tokenizer_from_gguf(file: Path, metadata: Mapping[str, Any], vocab_size: int | None = None) -> Tokenizer:
    """`vocab_size` is the model's, which may have room for more tokens than there are.

    Raises `UnsupportedModel` for other kinds than byte-level and SentencePiece-style BPE, `CorruptModel`."""
    fields = Fields(file, metadata, "tokenizer.ggml.")
    model = fields.text("model")
    if model not in ("gpt2", "llama"):
        raise UnsupportedModel(
            f"{file}: field 'tokenizer.ggml.model': {model!r}",
            supported="gpt2 (byte-level BPE), llama (SentencePiece BPE)",
        )
    pre = fields.text("pre", "default")
    pre = SYNONYMS.get(pre, pre)
    if model == "gpt2" and pre not in PRE_TOKENIZERS:
        raise UnsupportedModel(
            f"{file}: field 'tokenizer.ggml.pre': {pre!r}", supported=", ".join([*PRE_TOKENIZERS, *SYNONYMS])
        )
    spm = model == "llama"
    tokens = _tokens(fields)
    types = _types(fields, len(tokens))
    scores = tuple(map(float, _array(fields, "scores", (float, int), len(tokens)))) if spm else ()
    if vocab_size is not None:
        if len(tokens) > vocab_size:
            raise fields.wrong("tokens", f"{len(tokens)} of them in a model that has {vocab_size}")
        room = range(len(tokens), vocab_size)
        tokens += tuple(f"[PAD{i}]" for i in room)
        types += (TokenType.UNUSED,) * len(room)
        scores += (-1e6,) * len(room) if spm else ()
    special = {role: fields.integer(key, least=0) for role, key in _ROLES.items() if fields.has(key)}
    special = {role: token for role, token in special.items() if token < len(tokens)}
    if spm:
        special = {"unknown": 0, "bos": 1, "eos": 2} | special
    declared = {fields.integer(key, least=0) for key in _ENDS if fields.has(key)} | {special.get("eos", -1)}
    vocabulary = Vocabulary(
        model=model,
        pre=pre,
        tokens=tokens,
        types=types,
        merges=() if spm else tuple(_array(fields, "merges", (str,), None)),
        scores=scores,
        special=special,
        eos_ids=end_ids(tokens, types, {t for t in declared if 0 <= t < len(tokens)}),
        add_bos=fields.flag("add_bos_token", spm or PRE_TOKENIZERS[pre].add_bos),
        add_eos=fields.flag("add_eos_token", False),
        add_space_prefix=spm and fields.flag("add_space_prefix", True),
        chat_template=Fields(file, metadata).text("tokenizer.chat_template", None),
    )
    try:
        engine = _sentencepiece(vocabulary) if spm else _byte_level(vocabulary)
        _add_special(engine, vocabulary)
    except Exception as error:  # the library raises nothing narrower
        raise fields.wrong("tokens", f"no tokenizer can be made of them: {error}") from None
    return Tokenizer(vocabulary, engine)


def _tokens(fields: Fields) -> tuple[str, ...]:
    tokens = tuple(text or f"[EMPTY_{i}]" for i, text in enumerate(_array(fields, "tokens", (str,), None)))
    if not tokens:
        raise fields.wrong("tokens", "has no items")
    if len(set(tokens)) != len(tokens):
        seen: set[str] = set()
        twice = next(t for t in tokens if t in seen or seen.add(t))  # type: ignore[func-returns-value]
        raise fields.wrong("tokens", f"{twice!r} stands twice")
    return tokens


def _types(fields: Fields, count: int) -> tuple[TokenType, ...]:
    if not fields.has("token_type"):
        return (TokenType.NORMAL,) * count
    known = {int(t): t for t in TokenType}
    return tuple(known.get(number, TokenType.UNUSED) for number in _array(fields, "token_type", (int,), count))


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


def _byte_level(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    rules = PRE_TOKENIZERS[vocabulary.pre]
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    merges = [(m[: (at := m.find(" ", 1))], m[at + 1 :]) for m in vocabulary.merges]
    known = [(a, b) for a, b in merges if a in ids and b in ids and a + b in ids]
    engine = tokenizers.Tokenizer(models.BPE(ids, known, ignore_merges=rules.ignore_merges))
    engine.pre_tokenizer = rules.build()
    return engine


def _sentencepiece(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    unknown = vocabulary.tokens[vocabulary.special["unknown"]]
    fallback = TokenType.BYTE in vocabulary.types
    engine = tokenizers.Tokenizer(
        models.BPE(ids, list(_merges(vocabulary, ids)), unk_token=unknown, fuse_unk=True, byte_fallback=fallback)
    )
    escape = normalizers.Replace(" ", "▁")
    prefix = [normalizers.Prepend("▁")] if vocabulary.add_space_prefix else []
    engine.normalizer = normalizers.Sequence([*prefix, escape])
    return engine


def _merges(vocabulary: Vocabulary, ids: Mapping[str, int]) -> Iterable[tuple[str, str]]:
    """Every way to make a token of two others, the best score first; equal scores as transformers orders them."""
    found = []
    for token, score, kind in zip(vocabulary.tokens, vocabulary.scores, vocabulary.types, strict=True):
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.BYTE):
            continue
        for cut in range(1, min(len(token), 128)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                found.append((-score, ids[token], ids[left], ids[right], left, right))
    found.sort(key=lambda merge: merge[:4])
    return [(left, right) for *_, left, right in found]


def _add_special(engine: tokenizers.Tokenizer, vocabulary: Vocabulary) -> None:
    """Control and user-defined tokens are found in the raw text, before anything else looks at it."""
    control, user = [], []
    for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True):
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN):
            control.append(AddedToken(token, special=True, normalized=False))
        elif kind is TokenType.USER_DEFINED:
            user.append(AddedToken(token, special=False, normalized=False))
    engine.add_special_tokens(control)
    engine.add_tokens(user)
