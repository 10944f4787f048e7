"""A tokenizer from a Hugging Face folder: tokenizer.json does the work, the files beside it say what is special."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from edgecore.checkpoint.chat_source import folder_template, optional_json
from edgecore.checkpoint.fields import Fields, short
from edgecore.checkpoint.mapping import read_bytes
from edgecore.checkpoint.pretokenizers import name_of
from edgecore.checkpoint.safetensors_file import parse_json
from edgecore.checkpoint.tokenizer import Tokenizer, TokenType, Vocabulary, end_ids, guarded
from edgecore.checkpoint.tokenizer_kind import LARGEST, check_tokenizer_json, other_kind, tokenizer_file
from edgecore.checkpoint.tokenizer_special import declared_ends, special_ids
from edgecore.contract.errors import CorruptModel


def tokenizer_from_folder(folder: Path, config: Mapping[str, Any], vocab_size: int) -> Tokenizer:
    """From tokenizer.json, else from tokenizer.model. Raises `ModelNotFound` without either, `UnsupportedModel` for
    other kinds than BPE, `CorruptModel` naming file and field."""
    file = tokenizer_file(folder)
    if file.name == "tokenizer.model":
        from edgecore.checkpoint.tokenizer_sentencepiece import tokenizer_from_sentencepiece

        return tokenizer_from_sentencepiece(folder, config, vocab_size)
    data = read_bytes(file, LARGEST)
    check_tokenizer_json(file, data)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorruptModel(f"{file}: is not UTF-8 ({error})") from None
    spec = Fields(file, parse_json(file, text))
    model = spec.section("model")
    if model is None:
        raise spec.wrong("model", "is missing")
    if (kind := model.text("type", "BPE")) != "BPE":
        raise other_kind(file, kind)
    if not _checked(spec, model, vocab_size):
        text = _without_surplus(spec, vocab_size)
    settings = optional_json(folder / "tokenizer_config.json")
    engine = guarded(lambda: tokenizers.Tokenizer.from_str(text), lambda why: CorruptModel(f"{file}: {why}"))
    engine.no_truncation()
    engine.no_padding()
    tokens, types = _tokens(file, model, engine, vocab_size)
    special = special_ids(folder, config, engine.token_to_id, len(tokens))
    spm = model.flag("byte_fallback", False)
    before, after = guarded(lambda: _around(engine), lambda why: CorruptModel(f"{file}: {why}"))
    merges = tuple(m if isinstance(m, str) else " ".join(m) for m in model.values.get("merges", ()))
    return Tokenizer(
        Vocabulary(
            model="llama" if spm else "gpt2",
            pre="default" if spm else _pre(spec, model),
            tokens=tokens,
            types=types,
            merges=() if spm else merges,
            scores=_scores(tokens, merges) if spm else (),
            special=special,
            eos_ids=end_ids(tokens, types, declared_ends(folder, config, special)),
            add_bos=settings.flag("add_bos_token", bool(before)) and "bos" in special,
            add_eos=settings.flag("add_eos_token", bool(after)) and "eos" in special,
            add_space_prefix=spm and _prefixes_space(spec),
            chat_template=folder_template(folder),
        ),
        engine,
    )


def _pre(spec: Fields, model: Fields) -> str:
    values = spec.values
    return name_of(values.get("pre_tokenizer"), model.flag("ignore_merges", False), values.get("normalizer"))


def _checked(spec: Fields, model: Fields, vocab_size: int) -> bool:
    """Refuses what the library takes without a word, or panics at: ids out of range or given twice.

    False when there are added tokens that the model has no room for, as Gemma 3's text models have for images: they
    must be taken out, as llama.cpp's converter does. Of a byte-level tokenizer they are refused: it is the wrong one.
    """
    vocab = model.values.get("vocab")
    if not isinstance(vocab, Mapping):
        raise spec.wrong("model.vocab", "is missing" if vocab is None else "is not an object")
    for token, i in vocab.items():
        if isinstance(i, bool) or not isinstance(i, int) or i < 0:
            raise spec.wrong("model.vocab", f"{short(token)} has the id {short(i)}")
    owners = {i: token for token, i in vocab.items()}
    if len(owners) != len(vocab):
        token, i = next((token, i) for token, i in vocab.items() if owners[i] != token)
        raise spec.wrong("model.vocab", f"{short(token)} and {short(owners[i])} both have the id {i}")
    if owners and max(owners) >= vocab_size:
        raise spec.wrong("model.vocab", _no_room(max(owners), vocab_size))
    fits = True
    added = spec.values.get("added_tokens") or []
    if not isinstance(added, list):
        raise spec.wrong("added_tokens", "is not a list")
    for n, entry in enumerate(added):
        text = entry.get("content") if isinstance(entry, Mapping) else None
        i = entry.get("id") if isinstance(entry, Mapping) else None
        if not isinstance(text, str) or not text:
            raise spec.wrong("added_tokens", f"item {n} has no content")
        if isinstance(i, bool) or not isinstance(i, int) or i < 0:
            raise spec.wrong("added_tokens", f"{short(text)} has the id {short(i)}")
        if i >= vocab_size and (text in vocab or not model.flag("byte_fallback", False)):
            raise spec.wrong("added_tokens", _no_room(i, vocab_size))
        if owners.setdefault(i, text) != text:
            raise spec.wrong("added_tokens", f"{short(text)} has the id {i} of {short(owners[i])}")
        if vocab.get(text, i) != i:
            raise spec.wrong("added_tokens", f"{short(text)} has the id {i}, in the vocabulary {vocab[text]}")
        fits &= i < vocab_size
    return fits


def _no_room(i: int, vocab_size: int) -> str:
    return f"token id {i} in a model that has {vocab_size} of them"


def _without_surplus(spec: Fields, vocab_size: int) -> str:
    kept = [entry for entry in spec.values["added_tokens"] if entry["id"] < vocab_size]
    return json.dumps({**spec.values, "added_tokens": kept}, ensure_ascii=False)


def _tokens(
    file: Path, model: Fields, engine: tokenizers.Tokenizer, vocab_size: int
) -> tuple[tuple[str, ...], tuple[TokenType, ...]]:
    """Tokens and types by id. Ids without a token, up to the embedding table's size, are named as llama.cpp does."""
    by_id = {i: token for token, i in engine.get_vocab(with_added_tokens=True).items()}
    if by_id and max(by_id) >= vocab_size:
        raise CorruptModel(f"{file}: {_no_room(max(by_id), vocab_size)}")
    fallback = model.flag("byte_fallback", False)
    unknown = model.text("unk_token", None)
    types = [TokenType.UNUSED if i not in by_id else TokenType.NORMAL for i in range(vocab_size)]
    if fallback:
        for byte in range(256):
            if (i := engine.token_to_id(f"<0x{byte:02X}>")) is not None:
                types[i] = TokenType.BYTE
    for i, added in engine.get_added_tokens_decoder().items():
        types[i] = TokenType.CONTROL if added.special else TokenType.USER_DEFINED
        if added.content == unknown and fallback:
            types[i] = TokenType.UNKNOWN
    return tuple(by_id.get(i, f"[PAD{i}]") for i in range(vocab_size)), tuple(types)


def _around(engine: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """Ids that the post-processor puts before and after a text."""
    plain = engine.encode("a", add_special_tokens=False).ids
    whole = engine.encode("a", add_special_tokens=True).ids
    surplus = len(whole) - len(plain)
    before = next((n for n in range(surplus + 1) if whole[n : n + len(plain)] == plain), 0)
    return whole[:before], whole[before + len(plain) :]


def _scores(tokens: tuple[str, ...], merges: tuple[str, ...]) -> tuple[float, ...]:
    """Scores that make llama.cpp merge in the order of the merges; tokenizer.json has lost the original ones."""
    rank: dict[str, int] = {}
    for n, merge in enumerate(merges):
        rank.setdefault(merge.replace(" ", "", 1), n)
    return tuple(-float(rank[token]) if token in rank else -1e6 for token in tokens)


def _prefixes_space(spec: Fields) -> bool:
    """Whether a normalizer or pre-tokenizer puts a space before the text."""
    return any(
        part.get("type") == "Prepend" or (part.get("type") == "Metaspace" and part.get("prepend_scheme") != "never")
        for key in ("normalizer", "pre_tokenizer")
        for part in _parts(spec.values.get(key))
    )


def _parts(part: Any) -> list[Mapping[str, Any]]:
    if not isinstance(part, Mapping):
        return []
    inner = [*part.get("normalizers", ()), *part.get("pretokenizers", ())]
    return [part, *(p for p in inner if isinstance(p, Mapping))]
