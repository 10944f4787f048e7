"""A tokenizer from a Hugging Face folder: tokenizer.json does the work, the files beside it say what is special."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from edgecore.checkpoint.chat_source import folder_template, optional_json
from edgecore.checkpoint.fields import Fields
from edgecore.checkpoint.mapping import read_text
from edgecore.checkpoint.pretokenizers import name_of
from edgecore.checkpoint.safetensors_file import parse_json
from edgecore.checkpoint.tokenizer import Tokenizer, TokenType, Vocabulary, end_ids
from edgecore.contract.errors import CorruptModel, ModelNotFound, UnsupportedModel

_LARGEST = 200_000_000
"""Bytes of a tokenizer.json; the largest known have 33 million."""
_ROLES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def tokenizer_from_folder(folder: Path, config: Mapping[str, Any], vocab_size: int) -> Tokenizer:
    """Raises `ModelNotFound` without tokenizer.json, `UnsupportedModel` for other kinds than BPE, `CorruptModel`."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ModelNotFound(f"{folder}: has no tokenizer.json")
    text = read_text(file, _LARGEST)
    spec = Fields(file, parse_json(file, text))
    model = spec.section("model") or spec
    if model.text("type", "BPE") != "BPE":
        raise UnsupportedModel(f"{file}: field 'model.type': {model.text('type')!r}", supported="BPE")
    settings = optional_json(folder / "tokenizer_config.json")
    try:
        engine = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise CorruptModel(f"{file}: {error}") from None
    engine.no_truncation()
    engine.no_padding()
    tokens, types = _tokens(file, spec, model, engine, vocab_size)
    special = _special(folder, config, settings, engine, len(tokens))
    spm = model.flag("byte_fallback", False)
    before, after = _around(engine)
    merges = tuple(m if isinstance(m, str) else " ".join(m) for m in model.values.get("merges", ()))
    return Tokenizer(
        Vocabulary(
            model="llama" if spm else "gpt2",
            pre="default" if spm else name_of(spec.values.get("pre_tokenizer"), model.flag("ignore_merges", False)),
            tokens=tokens,
            types=types,
            merges=() if spm else merges,
            scores=_scores(tokens, merges) if spm else (),
            special=special,
            eos_ids=end_ids(tokens, types, _declared_ends(folder, config, special)),
            add_bos=settings.flag("add_bos_token", bool(before)) and "bos" in special,
            add_eos=settings.flag("add_eos_token", bool(after)) and "eos" in special,
            add_space_prefix=spm and _prefixes_space(spec),
            chat_template=folder_template(folder),
        ),
        engine,
    )


def _tokens(
    file: Path, spec: Fields, model: Fields, engine: tokenizers.Tokenizer, vocab_size: int
) -> tuple[tuple[str, ...], tuple[TokenType, ...]]:
    """Tokens and types by id. Ids without a token, up to the embedding table's size, are named as llama.cpp does."""
    by_id = {i: token for token, i in engine.get_vocab(with_added_tokens=True).items()}
    if by_id and max(by_id) >= vocab_size:
        raise CorruptModel(f"{file}: token id {max(by_id)} in a model that has {vocab_size} of them")
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


def _special(
    folder: Path, config: Mapping[str, Any], settings: Fields, engine: tokenizers.Tokenizer, count: int
) -> dict[str, int]:
    """Ids by role: tokenizer_config.json names tokens, else special_tokens_map.json, else config.json gives ids."""
    sources = (settings, optional_json(folder / "special_tokens_map.json"))
    special: dict[str, int] = {}
    for role, key in _ROLES.items():
        for source in sources:
            value = source.values.get(key)
            text = value.get("content") if isinstance(value, Mapping) else value
            found = engine.token_to_id(text) if isinstance(text, str) else None
            if found is not None:
                special.setdefault(role, found)
        for token in _ids(config.get(key + "_id"))[:1]:
            if token < count:
                special.setdefault(role, token)
    return special


def _declared_ends(folder: Path, config: Mapping[str, Any], special: Mapping[str, int]) -> set[int]:
    generation = optional_json(folder / "generation_config.json").values.get("eos_token_id")
    eos = [special["eos"]] if "eos" in special else []
    return {*_ids(generation), *_ids(config.get("eos_token_id")), *eos}


def _ids(value: Any) -> list[int]:
    """One id, a list of ids or null, as Hugging Face's configs have it."""
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0]


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
