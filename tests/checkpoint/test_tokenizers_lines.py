"""Two thousand lines give the original's ids, whichever file the tokenizer was read from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer as Engine

from edgecore.checkpoint import Tokenizer, TokenType
from edgecore.checkpoint.gguf_file import read_gguf
from edgecore.checkpoint.tokenizer_gguf import tokenizer_from_gguf
from edgecore.checkpoint.tokenizer_hf import tokenizer_from_folder
from edgecore.checkpoint.tokenizer_sentencepiece import tokenizer_from_sentencepiece

from support.gguf_files import write_vocabulary
from support.lines import LEAST, lines
from support.originals import (
    BYTE_LEVEL,
    PHI3,
    SENTENCEPIECE,
    sentencepiece_model,
    settings_of,
    tokenizer_json,
)

JSON_KINDS = (*BYTE_LEVEL, "llama2", "gemma", "phi-3")


def tokenizer_of(kind: str, folder: Path) -> Tokenizer:
    """From a folder that has a tokenizer.json of that kind."""
    (folder / "tokenizer.json").write_text(tokenizer_json(kind))
    (folder / "tokenizer_config.json").write_text(settings_of(kind))
    return tokenizer_from_folder(folder, {}, 3000)


def special_of(tokenizer: Tokenizer) -> list[str]:
    pairs = zip(tokenizer.tokens, tokenizer.types, strict=True)
    return [token for token, kind in pairs if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)]


@pytest.mark.parametrize("kind", JSON_KINDS)
def test_tokenizer_json_gives_the_ids_of_the_tokenizers_library(kind: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(kind, tmp_path)
    original = Engine.from_str(tokenizer_json(kind))
    texts = lines(special_of(tokenizer)[:60])
    assert len(texts) >= LEAST
    for parse in (False, True):
        original.encode_special_tokens = not parse
        for text in texts:
            for add in (False, True):
                assert tokenizer.encode(text, add, parse) == original.encode(text, add_special_tokens=add).ids, text


@pytest.mark.parametrize("kind", [kind for kind in JSON_KINDS if kind != "gemma"])
def test_a_gguf_file_of_it_gives_the_same_ids(kind: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(kind, tmp_path)
    file = write_vocabulary(tokenizer.vocabulary, tmp_path / "model.gguf", "phi3" if kind == "phi-3" else "llama")
    copy = tokenizer_from_gguf(file, read_gguf(file)[0].metadata)
    assert copy.pre == (kind if kind in BYTE_LEVEL else "default")
    for text in lines(special_of(tokenizer)[:60]):
        for parse in (False, True):
            assert tokenizer.encode(text, True, parse) == copy.encode(text, True, parse), text
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == copy.decode(ids), text


@pytest.mark.parametrize("spaces", [" ", "▁"])
def test_a_gguf_file_of_gemma_gives_the_ids_of_the_sentencepiece_library(spaces: str, tmp_path: Path) -> None:
    """Not of its tokenizer.json, in which user-defined runs of spaces are merged, not found: 33 spaces are 16 and 17
    there, here 31 and 2. llama.cpp's converter writes such tokens with spaces; older ones did not."""
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model("gemma"))
    original = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model("gemma"))
    source = tokenizer_from_sentencepiece(tmp_path, {}, original.vocab_size())
    tokens = tuple(
        token.replace("▁", spaces) if kind is TokenType.USER_DEFINED else token
        for token, kind in zip(source.tokens, source.types, strict=True)
    )
    file = write_vocabulary(replace(source.vocabulary, tokens=tokens), tmp_path / "model.gguf")
    copy = tokenizer_from_gguf(file, read_gguf(file)[0].metadata)
    for text in lines(special_of(source)[:60]):
        ids = original.encode(text)
        assert copy.encode(text, add_special=False) == ids, text
        assert copy.decode(ids) == original.decode(ids), text


@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_tokenizer_model_gives_the_ids_of_the_sentencepiece_library(kind: str, tmp_path: Path) -> None:
    data = sentencepiece_model(kind)
    (tmp_path / "tokenizer.model").write_bytes(data)
    original = sentencepiece.SentencePieceProcessor(model_proto=data)
    tokenizer = tokenizer_from_sentencepiece(tmp_path, {}, original.vocab_size() + 8)
    assert [tokenizer.tokens[i] for i in range(original.vocab_size())] == [
        original.id_to_piece(i) for i in range(original.vocab_size())
    ]
    assert tokenizer.scores[: original.vocab_size()] == tuple(map(original.get_score, range(original.vocab_size())))
    assert tokenizer.special["unknown"] == original.unk_id()
    assert (tokenizer.bos_id, tokenizer.special["eos"]) == (original.bos_id(), original.eos_id())
    texts = lines(special_of(tokenizer)[:40])
    assert len(texts) >= LEAST
    for text in texts:
        ids = original.encode(text)
        assert tokenizer.encode(text, add_special=False) == ids, text
        assert tokenizer.encode(text) == [original.bos_id(), *ids], text
        if kind != "without-bytes":  # there the library writes what it does not know as " ⁇ "
            assert tokenizer.decode(ids) == original.decode(ids) == text.replace("▁", " "), text


def test_phi_3_from_tokenizer_model_is_phi_3_from_tokenizer_json(tmp_path: Path) -> None:
    """Its special tokens stand in the JSON files, and take the white space behind them along."""
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model("llama2"))
    added = {
        str(2000 + n): {"content": token, "special": True, "normalized": False, "rstrip": token != PHI3[0]}
        for n, token in enumerate(PHI3)
    }
    added["2"] = {"content": "</s>", "special": False, "normalized": False, "rstrip": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added, "eos_token": PHI3[0]}))
    tokenizer = tokenizer_from_sentencepiece(tmp_path, {}, 2064)
    original = Engine.from_str(tokenizer_json("phi-3"))
    assert tokenizer.special["eos"] == 2000
    for parse in (False, True):
        original.encode_special_tokens = not parse
        for text in lines(PHI3):
            assert tokenizer.encode(text, True, parse) == original.encode(text).ids, text


@pytest.mark.parametrize("source", ["folder", "gguf"])
@pytest.mark.parametrize("kind", [*JSON_KINDS, *SENTENCEPIECE])
def test_special_tokens_in_text_are_text_unless_asked(kind: str, source: str, tmp_path: Path) -> None:
    if kind in JSON_KINDS:
        tokenizer = tokenizer_of(kind, tmp_path)
    else:
        (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(kind))
        tokenizer = tokenizer_from_folder(tmp_path, {}, 3000)
    if source == "gguf":
        file = write_vocabulary(tokenizer.vocabulary, tmp_path / "model.gguf")
        tokenizer = tokenizer_from_gguf(file, read_gguf(file)[0].metadata)
    pairs = list(zip(tokenizer.tokens, tokenizer.types, strict=True))
    control = [(i, t) for i, (t, k) in enumerate(pairs) if k in (TokenType.CONTROL, TokenType.UNKNOWN)]
    assert control
    for number, token in control:
        for text in (token, f"a{token}b", f" {token}\n{token}"):
            plain = tokenizer.encode(text, add_special=False)
            assert number not in plain or kind == "without-bytes"
            if kind != "without-bytes":
                assert tokenizer.decode(plain) == text
        assert number in tokenizer.encode(f"a{token}b", add_special=False, parse_special=True)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("flag", ["none", "normalized", "lstrip", "rstrip", "single_word"])
@pytest.mark.parametrize("kind", ["qwen2", "llama2"])
def test_added_tokens_keep_their_flags(kind: str, flag: str, special: bool, tmp_path: Path) -> None:
    """Whatever its flags, a special one is text unless asked, and one that is not special is always found."""
    spec = json.loads(tokenizer_json(kind))
    number = 2500
    flags = {name: name == flag for name in ("normalized", "lstrip", "rstrip", "single_word")}
    spec["added_tokens"].append({"id": number, "content": "<|odd|>", "special": special, **flags})
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = tokenizer_from_folder(tmp_path, {}, 3000)
    original = Engine.from_str(json.dumps(spec))
    number = original.token_to_id("<|odd|>")
    for text in ("<|odd|>", "a <|odd|> b", "a<|odd|>b", "  <|odd|>\n\n<|odd|> ", "é<|odd|>"):
        for parse in (False, True):
            ids = tokenizer.encode(text, False, parse)
            original.encode_special_tokens = not parse
            assert ids == original.encode(text, add_special_tokens=False).ids
            if special and not parse:
                assert number not in ids
                assert tokenizer.decode(ids) == text
            elif flag not in ("single_word", "normalized"):
                assert number in ids


@pytest.mark.parametrize("kind", JSON_KINDS)
def test_special_tokens_in_a_message_are_text_and_the_templates_own_are_not(kind: str, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ eos_token }}{{ m['role'] }}\n{{ m['content'] | trim }}{{ eos_token }}{% endfor %}"
    )
    tokenizer = tokenizer_of(kind, tmp_path)
    end = tokenizer.special["eos"]
    name = tokenizer.tokens[end]
    harmless = [{"role": "user", "content": "Hi 🙂 there"}]
    asked = tokenizer.encode(tokenizer.apply_chat(harmless), add_special=False, parse_special=True)
    assert tokenizer.encode_chat(harmless) == asked
    assert asked.count(end) == 2
    for said in (f"a{name}b", f" {name}{name}", f"{name[:3]}{name}{name[3:]}", f"\U000f5ed1{name}\U000f5ed0"):
        ids = tokenizer.encode_chat([{"role": "user", "content": said}])
        if tokenizer.types[end] is TokenType.CONTROL:
            assert ids.count(end) == 2, said
            text = said.strip().replace("\U000f5ed0", "").replace("\U000f5ed1", "")
            assert tokenizer.decode(ids).strip() == "user\n" + text
