"""A tokenizer from a folder that has tokenizer.model and no tokenizer.json: SentencePiece's pieces, and what the JSON
files beside it add to them.

Ids are sentencepiece's own. Tokens that only the JSON files know are cut out before it sees the text, as transformers
does; where the model begins a text with a space, it begins the text behind such a token with one too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgecore.checkpoint.chat_source import folder_template, optional_json
from edgecore.checkpoint.fields import Fields, short
from edgecore.checkpoint.sentencepiece_file import USER_DEFINED, Settings, read_sentencepiece
from edgecore.checkpoint.tokenizer import Tokenizer, TokenType, Vocabulary, end_ids
from edgecore.checkpoint.tokenizer_engine import Stripping, sentencepiece
from edgecore.checkpoint.tokenizer_special import declared_ends, special_ids, token_text
from edgecore.contract.errors import CorruptModel

ADDED_SCORE = -1000.0
"""As llama.cpp's converter has it."""


def tokenizer_from_sentencepiece(folder: Path, config: Mapping[str, Any], vocab_size: int) -> Tokenizer:
    """Raises `UnsupportedModel` for other kinds than BPE, and for text that is rewritten before it is split;
    `CorruptModel` naming file and field."""
    file = folder / "tokenizer.model"
    pieces, settings = read_sentencepiece(file)
    if len(pieces) > vocab_size:
        raise CorruptModel(f"{file}: field 'pieces': {len(pieces)} of them in a model that has {vocab_size}")
    tokens = [piece.text for piece in pieces]
    types = [TokenType(piece.kind) for piece in pieces]
    scores = [piece.score for piece in pieces]
    for i in range(len(tokens), vocab_size):
        tokens.append(f"[PAD{i}]")
        types.append(TokenType.UNUSED)
        scores.append(-10000.0)
    stripping: dict[int, Stripping] = {}
    for source, i, text, flags in _added(folder):
        if i >= vocab_size:
            continue  # as Gemma 3's text models have for images; llama.cpp's converter leaves them out too
        if i < len(pieces) and tokens[i] != text and TokenType(pieces[i].kind) is TokenType.BYTE:
            raise CorruptModel(f"{source}: token {short(text)}: has the id {i} of the byte {tokens[i]}")
        tokens[i], scores[i] = text, ADDED_SCORE
        if types[i] is not TokenType.UNKNOWN:
            types[i] = TokenType.CONTROL if flags.get("special") is True else TokenType.USER_DEFINED
        stripping[i] = Stripping(*(flags.get(name) is True for name in ("lstrip", "rstrip", "single_word")))
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if ids[token] != i)
        raise CorruptModel(f"{file}: field 'pieces': {short(twice)} stands twice")
    special = special_ids(folder, config, ids.get, vocab_size)
    for role, i in _own(settings).items():
        if 0 <= i < len(pieces):
            special.setdefault(role, i)
    if TokenType.UNKNOWN not in types:
        raise CorruptModel(f"{file}: field 'pieces': none of them stands for the unknown")
    special["unknown"] = types.index(TokenType.UNKNOWN)
    for text in _more_special(folder):
        if types[i := ids.get(text, special["unknown"])] in (TokenType.NORMAL, TokenType.USER_DEFINED):
            types[i] = TokenType.CONTROL
    options = optional_json(folder / "tokenizer_config.json")
    kinds = tuple(types)
    vocabulary = Vocabulary(
        model="llama",
        pre="default",
        tokens=tuple(tokens),
        types=kinds,
        scores=tuple(scores),
        special=special,
        eos_ids=end_ids(tokens, kinds, declared_ends(folder, config, special)),
        add_bos=options.flag("add_bos_token", True) and "bos" in special,
        add_eos=options.flag("add_eos_token", False) and "eos" in special,
        add_space_prefix=settings.add_dummy_prefix,
        chat_template=folder_template(folder),
    )

    def wrong(why: str) -> CorruptModel:
        return CorruptModel(f"{file}: field 'pieces': no tokenizer can be made of them: {why}")

    # SentencePiece looks for its own user-defined pieces behind the space that it puts first; the engine would put one
    # more behind each of them.
    own = settings.add_dummy_prefix and any(piece.kind == USER_DEFINED for piece in pieces)
    engine = sentencepiece(vocabulary, wrong, stripping, prepends=False if own else None)
    return Tokenizer(vocabulary, engine, "▁" if own else "")


def _own(settings: Settings) -> dict[str, int]:
    return {
        "unknown": settings.unknown_id, "bos": settings.bos_id, "eos": settings.eos_id, "padding": settings.padding_id,
    }  # fmt: skip


def _added(folder: Path) -> Iterator[tuple[Path, int, str, Mapping[str, Any]]]:
    """File, id, text and flags of each token that the JSON files add or rename, later ones over earlier ones."""
    plain = optional_json(folder / "added_tokens.json")
    for text, i in plain.values.items():
        yield plain.file, _id(plain, text, i), text, {}
    options = optional_json(folder / "tokenizer_config.json")
    decoder = options.section("added_tokens_decoder")
    for key, value in decoder.values.items() if decoder else ():
        content = token_text(value)
        if not content or not isinstance(value, Mapping):
            raise options.wrong("added_tokens_decoder", f"{short(key)}: {short(value)} has no content")
        number = int(key) if key.isascii() and key.isdigit() and len(key) < 10 else key
        yield options.file, _id(options, "added_tokens_decoder", number), content, value


def _id(fields: Fields, key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0 or not key:
        raise fields.wrong(short(key), f"{short(value)} is not a token id")
    return value


def _more_special(folder: Path) -> list[str]:
    """Texts of the tokens that are special by a list of their own."""
    found: list[str] = []
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        values = optional_json(folder / name).values.get("additional_special_tokens")
        found += [text for value in values if (text := token_text(value))] if isinstance(values, list) else []
    return found
