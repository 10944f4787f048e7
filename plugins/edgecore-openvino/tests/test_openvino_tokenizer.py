"""OpenVINO's tokenizer models answer as the neutral tokenizer does where lines break splitting rules, or they are not
made.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Engine

from edgecore.checkpoint import Tokenizer, TokenType
from edgecore.checkpoint.gguf_file import read_gguf
from edgecore.checkpoint.tokenizer_gguf import tokenizer_from_gguf
from edgecore.checkpoint.tokenizer_hf import tokenizer_from_folder
from edgecore.checkpoint.tokenizer_sentencepiece import tokenizer_from_sentencepiece
from edgecore_openvino import tokenizer_ir
from edgecore_openvino.tokenizer_graph import detokenizer_model, portable, quoted, tokenizer_model
from edgecore_openvino.tokenizer_ir import Decoder, Encoder, NotExpressible

from support.gguf_files import write_vocabulary
from support.lines import lines
from support.originals import BYTE_LEVEL, SENTENCEPIECE, sentencepiece_model, settings_of, tokenizer_json

STORED = Path(__file__).parents[3] / "conformance" / "edgecore_conformance" / "fixtures" / "data" / "tokenizers"
NAMES = ("tokens", "detokens")


def stored(kind: str, room: int = 512) -> Tokenizer:
    return tokenizer_from_folder(STORED / kind, {}, room)


def trained(kind: str, folder: Path) -> Tokenizer:
    (folder / "tokenizer.json").write_text(tokenizer_json(kind))
    (folder / "tokenizer_config.json").write_text(settings_of(kind))
    return tokenizer_from_folder(folder, {}, 3000)


def changed(tokenizer: Tokenizer, more: dict[str, int] | None = None, **model: object) -> Tokenizer:
    """The same with another engine, and with more tokens in places that were empty."""
    spec = json.loads(tokenizer.to_json())
    spec["model"] |= model
    spec["model"]["vocab"] |= more or {}
    names = {i: token for token, i in (more or {}).items()}
    vocabulary = replace(
        tokenizer.vocabulary,
        tokens=tuple(names.get(i, token) for i, token in enumerate(tokenizer.tokens)),
        types=tuple(TokenType.NORMAL if i in names else kind for i, kind in enumerate(tokenizer.types)),
    )
    return Tokenizer(vocabulary, Engine.from_str(json.dumps(spec)))


def hard_lines(tokenizer: Tokenizer) -> list[str]:
    """A fifth of them; numpy's strings end at a NUL."""
    own = (TokenType.CONTROL, TokenType.USER_DEFINED)
    special = [t for t, kind in zip(tokenizer.tokens, tokenizer.types, strict=True) if kind in own]
    return [line for line in lines(special[:60])[::5] if "\0" not in line]


def differing(tokenizer: Tokenizer) -> list[str]:
    """Lines of which the ids differ; the text of all ids must not."""
    encode, decode = Encoder(tokenizer_model(tokenizer, 512)), Decoder(detokenizer_model(tokenizer))
    found = []
    for line in hard_lines(tokenizer):
        ids = tokenizer.encode(line, parse_special=True)
        if encode(line) != ids:
            found.append(line)
        assert decode(ids) == tokenizer.decode(ids), line
    return found


def out_of_order(line: str) -> bool:
    """Whether marks on one letter stand otherwise than Unicode orders them."""
    apart = "".join(unicodedata.normalize("NFD", character) for character in line)
    return unicodedata.normalize("NFD", line) != apart


@pytest.mark.parametrize("kind", ["llama3", "phi4", "sentencepiece", "sentencepiece-first", "sentencepiece-prefix"])
def test_hard_lines_get_the_neutral_ids(kind: str) -> None:
    assert differing(stored(kind)) == []


@pytest.mark.parametrize("kind", BYTE_LEVEL)
def test_byte_level_kinds_get_the_neutral_ids(kind: str, tmp_path: Path) -> None:
    assert [line for line in differing(trained(kind, tmp_path)) if kind != "qwen2" or not out_of_order(line)] == []


@pytest.mark.parametrize("kind", ["llama2", "gemma", "phi-3"])
def test_sentencepiece_kinds_get_the_neutral_ids(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece", reason="needs sentencepiece: python3 bootstrap.py test --only openvino")
    assert differing(trained(kind, tmp_path)) == []


@pytest.mark.parametrize("kind", [kind for kind in SENTENCEPIECE if kind != "without-bytes"])
def test_a_tokenizer_model_gets_the_neutral_ids(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece", reason="needs sentencepiece: python3 bootstrap.py test --only openvino")
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(kind))
    assert differing(tokenizer_from_sentencepiece(tmp_path, {}, 3000)) == []


@pytest.mark.parametrize("kind", ["llama3", "sentencepiece", "sentencepiece-prefix"])
def test_a_gguf_file_gets_the_neutral_ids(kind: str, tmp_path: Path) -> None:
    file = write_vocabulary(stored(kind).vocabulary, tmp_path / "model.gguf")
    assert differing(tokenizer_from_gguf(file, read_gguf(file)[0].metadata)) == []


def test_a_gguf_file_whose_runs_of_spaces_are_tokens_gets_the_neutral_ids(tmp_path: Path) -> None:
    """As llama.cpp's converter writes Gemma's: the texts have spaces where the rewritten text has marks."""
    vocabulary = stored("sentencepiece").vocabulary
    runs = {500 + n: " " * (n + 2) for n in range(5)}
    tokens = tuple(runs.get(i, token) for i, token in enumerate(vocabulary.tokens))
    types = tuple(TokenType.USER_DEFINED if i in runs else kind for i, kind in enumerate(vocabulary.types))
    file = write_vocabulary(replace(vocabulary, tokens=tokens, types=types), tmp_path / "model.gguf")
    tokenizer = tokenizer_from_gguf(file, read_gguf(file)[0].metadata)
    assert 503 in tokenizer.encode("a" + " " * 5 + "b")
    assert differing(tokenizer) == []


def test_only_marks_out_of_order_get_other_ids_where_characters_are_composed() -> None:
    tokenizer = stored("qwen2")
    found = differing(tokenizer)
    assert all(map(out_of_order, found))
    assert len(found) < len(hard_lines(tokenizer)) / 50


def test_what_text_spells_and_the_library_never_finds_is_no_token() -> None:
    """Bytes of SentencePiece, and strings that no merges lead to."""
    plain = stored("sentencepiece")
    encode = Encoder(tokenizer_model(plain, 512))
    for text in ("<0x41>", "a<0x0A>b", "[PAD511]"):
        assert encode(text) == plain.encode(text)
    tokenizer = changed(stored("qwen2", 600), {"qzx": 550})
    assert 550 not in tokenizer.encode("qzx aqzx")
    assert Encoder(tokenizer_model(tokenizer, 512))("qzx aqzx") == tokenizer.encode("qzx aqzx")


def test_a_piece_that_is_a_token_stays_whole_where_merges_are_ignored() -> None:
    tokenizer = changed(stored("llama3", 600), {"qzx": 550, "ĠViá»ĩt": 551})
    encode = Encoder(tokenizer_model(tokenizer, 512))
    assert encode("qzx")[-1] == 550
    for text in ("qzx", "aqzx", " qzx", "a Việt b", "Việt", "qzx Việt"):
        assert encode(text) == tokenizer.encode(text), text
    assert tokenizer.encode("a Việt b").count(551) == 1


def test_one_that_would_answer_other_ids_is_not_written(tmp_path: Path) -> None:
    tokenizer = changed(stored("qwen2"), merges=[])
    models = tokenizer_model(stored("qwen2"), 512), detokenizer_model(tokenizer)
    with pytest.raises(NotExpressible, match="becomes"):
        tokenizer_ir.compare(tokenizer, *models)
    with pytest.raises(NotExpressible, match="without bytes"):
        tokenizer_ir.write(changed(stored("sentencepiece"), byte_fallback=False), tmp_path, NAMES, 512)
    assert list(tmp_path.iterdir()) == []


def test_a_word_that_is_a_token_only_as_a_whole_is_refused() -> None:
    tokenizer = stored("llama3")
    spec = json.loads(tokenizer.to_json())
    spec["added_tokens"][0]["single_word"] = True
    with pytest.raises(NotExpressible, match="whole word"):
        tokenizer_model(Tokenizer(tokenizer.vocabulary, Engine.from_str(json.dumps(spec))), 512)


def test_composing_characters_is_noted(tmp_path: Path) -> None:
    (note,) = tokenizer_ir.write(stored("qwen2"), tmp_path, NAMES, 512)
    assert "NFC" in note
    assert tokenizer_ir.write(stored("llama3"), tmp_path, NAMES, 512) == []
    assert sorted(f.name for f in tmp_path.iterdir()) == ["detokens.bin", "detokens.xml", "tokens.bin", "tokens.xml"]


def test_the_same_tokenizer_is_written_in_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        tokenizer_ir.write(stored("llama3"), folder, NAMES, 512)
        written.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert written[0] == written[1]


def test_rules_are_spelled_for_the_operations_own_expressions() -> None:
    assert portable(r"\s+(?!\S)|[^\s\p{L}]") == (r"[\t-\r\x{85}\p{Z}]+(?![^\t-\r\x{85}\p{Z}])|[^\t-\r\x{85}\p{Z}\p{L}]")
    assert quoted("<|a b|>｜") == r"\x{3c}\x{7c}a\x{20}b\x{7c}\x{3e}\x{ff5c}"
