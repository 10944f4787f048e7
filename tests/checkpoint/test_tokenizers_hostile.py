"""Tokenizer files from strangers: a tokenizer, or a typed error that names file and field, soon, in little memory."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from edgecore.checkpoint import Tokenizer, TokenType, Vocabulary
from edgecore.checkpoint.gguf_file import read_gguf
from edgecore.checkpoint.tokenizer_gguf import tokenizer_from_gguf
from edgecore.checkpoint.tokenizer_hf import tokenizer_from_folder
from edgecore.checkpoint.tokenizer_kind import check_tokenizer
from edgecore.contract.errors import BadRequest, CorruptModel, EdgecoreError, ModelNotFound, UnsupportedModel

from support.gguf_files import write_vocabulary
from support.originals import sentencepiece_model, tokenizer_json

TEXT = "Hi <s>\n  naïve 🙂 123 <|im_end|>"
SIZE = 3000


def read(folder: Path) -> Tokenizer:
    return tokenizer_from_folder(folder, {}, SIZE)


def changed(**change: Any) -> str:
    """A tokenizer.json with other values: `model__vocab` is the vocabulary in the model."""
    spec = json.loads(tokenizer_json("qwen2"))
    for path, value in change.items():
        *parents, key = path.split("__")
        inner = spec
        for parent in parents:
            inner = inner[parent]
        inner[key] = value(inner.get(key)) if callable(value) else value
    return json.dumps(spec)


def with_id(i: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda vocab: {**vocab, "zz": i}


def added(**entry: Any) -> Callable[[list[Any]], list[Any]]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return lambda tokens: [*tokens, {**plain, **entry}]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model__vocab": with_id(2**32 - 1)}, "model.vocab"),
        ({"model__vocab": with_id(10**30)}, "model.vocab"),
        ({"model__vocab": with_id(-1)}, "model.vocab"),
        ({"model__vocab": with_id(1.5)}, "model.vocab"),
        ({"model__vocab": with_id(True)}, "model.vocab"),
        ({"model__vocab": with_id("7")}, "model.vocab"),
        ({"model__vocab": with_id(7)}, "model.vocab"),
        ({"model__vocab": None}, "model.vocab"),
        ({"model__vocab": []}, "model.vocab"),
        ({"model": None}, "model"),
        ({"model": []}, "model"),
        ({"added_tokens": added(content="<x>", id=SIZE)}, "added_tokens"),
        ({"added_tokens": added(content="<x>", id=2**40)}, "added_tokens"),
        ({"added_tokens": added(content="<x>", id=-2)}, "added_tokens"),
        ({"added_tokens": added(content="<x>", id=0)}, "added_tokens"),
        ({"added_tokens": added(content="", id=1600)}, "added_tokens"),
        ({"added_tokens": added(id=1600)}, "added_tokens"),
        ({"added_tokens": added(content="<|im_end|>", id=1600)}, "added_tokens"),
        ({"added_tokens": {"a": 1}}, "added_tokens"),
        ({"model__merges": [["a"]]}, ""),
        ({"model__merges": [["a", "b", "c"]]}, ""),
        ({"model__merges": ["ab"]}, ""),
        ({"model__merges": [["a", 7]]}, ""),
        ({"model__merges": [["no such", "tokens"]]}, ""),
        ({"model__merges": 7}, ""),
        ({"pre_tokenizer": {"type": "Nonsense"}}, ""),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(["}, "behavior": "Isolated", "invert": False}}, ""),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, ""),
        ({"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}],
                             "pair": [], "special_tokens": {}}}, ""),
    ],
)  # fmt: skip
def test_a_lying_tokenizer_json_is_a_typed_error(change: dict[str, Any], field: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(changed(**change))
    with pytest.raises(CorruptModel, match=r"tokenizer\.json") as error:
        read(tmp_path)
    assert field in str(error.value)
    assert len(str(error.value)) < 1000


def test_a_tokenizer_that_the_model_has_no_room_for_is_cut_where_llama_cpp_cuts_it(tmp_path: Path) -> None:
    """Gemma 3's text models come with a token for images, one beyond their embeddings."""
    spec = json.loads(tokenizer_json("gemma"))
    last = len(spec["model"]["vocab"])
    spec["added_tokens"] += added(content="<image_soft_token>", id=last)([])
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = tokenizer_from_folder(tmp_path, {}, last)
    assert tokenizer.vocab_size == last
    assert max(tokenizer.encode("<image_soft_token>", parse_special=True)) < last
    assert tokenizer_from_folder(tmp_path, {}, last + 1).encode("<image_soft_token>", False, True) == [last]


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"model": ' * 5000, '{"model": {"vocab": {"a": 0}}, "model": 1}', "\ud800".join("ab"), "nan"],
)
def test_what_is_hardly_json_is_a_typed_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CorruptModel, match=r"tokenizer\.json"):
        read(tmp_path)


def test_a_splitting_rule_that_backtracks_for_ever_is_stopped(tmp_path: Path) -> None:
    rule = {"type": "Split", "pattern": {"Regex": r"(\w+\w+)+\w+!"}, "behavior": "Isolated", "invert": False}
    (tmp_path / "tokenizer.json").write_text(changed(pre_tokenizer=rule))
    began = time.monotonic()
    with suppress(CorruptModel):
        assert read(tmp_path).encode("a" * 200)
    assert time.monotonic() - began < 20


def test_a_panic_of_the_library_is_a_typed_error() -> None:
    class PanicException(BaseException):
        """As pyo3 has it: no Exception."""

    class Engine:
        encode_special_tokens = False

        def encode(self, *_: Any, **__: Any) -> Any:
            raise PanicException("index out of bounds")

    with pytest.raises(CorruptModel, match="index out of bounds"):
        Tokenizer(Vocabulary("gpt2", ("a",), (TokenType.NORMAL,)), Engine()).encode("a")


@pytest.mark.parametrize("text", [b"bytes", bytearray(b"x"), None, 7, "half \ud83d", "\udcff"])
def test_what_is_not_text_is_a_typed_error(text: Any, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer_json("gpt-2"))
    with pytest.raises(BadRequest):
        read(tmp_path).encode(text)


def _usable_or_typed(make: Callable[[], Tokenizer]) -> bool:
    try:
        tokenizer = make()
        ids = tokenizer.encode(TEXT)
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        tokenizer.decode(ids)
    except EdgecoreError as error:
        if len(str(error)) >= 2000:
            raise AssertionError("an error as long as the file") from error
        return False
    return True


def test_damaged_tokenizer_json_never_escapes(tmp_path: Path) -> None:
    good, random = tokenizer_json("phi-3").encode(), Random(3)
    good = json.dumps({**json.loads(good), "added_tokens": json.loads(good)["added_tokens"][:4]}).encode()
    kept = [_damaged(good, random, tmp_path / "tokenizer.json", lambda: read(tmp_path)) for _ in range(400)]
    assert not all(kept)


def test_damaged_tokenizer_model_never_escapes(tmp_path: Path) -> None:
    good, random = sentencepiece_model("mistral-v3"), Random(4)
    kept = [_damaged(good, random, tmp_path / "tokenizer.model", lambda: read(tmp_path)) for _ in range(300)]
    assert any(kept)
    assert not all(kept)
    for size in range(0, len(good), len(good) // 60):
        (tmp_path / "tokenizer.model").write_bytes(good[:size])
        _usable_or_typed(lambda: read(tmp_path))


def _damaged(good: bytes, random: Random, file: Path, make: Callable[[], Tokenizer]) -> bool:
    data = bytearray(good)
    for _ in range(1 + int(random.random() * 3)):
        at = int(random.random() * len(data))
        if random.random() < 0.2:
            at = int(random.random() * 200)  # where the first pieces or fields stand
        data[at] = int(random.random() * 256) if random.random() < 0.5 else data[at] ^ (1 << int(random.random() * 8))
    file.write_bytes(data)
    return _usable_or_typed(make)


def message(*fields: tuple[int, int, bytes]) -> bytes:
    """A protocol buffer: number, wire type and what stands behind the tag."""
    return b"".join(bytes([number << 3 | wire]) + data for number, wire, data in fields)


def piece(text: bytes, score: float = 0.0, kind: int = 1) -> tuple[int, int, bytes]:
    body = message((1, 2, bytes([len(text)]) + text), (2, 5, struct.pack("<f", score)), (3, 0, bytes([kind])))
    return 1, 2, bytes([len(body)]) + body


BPE = (2, 2, b"\x02\x18\x02")
PLAIN = (3, 2, b"\x02\x20\x00")
UNKNOWN = piece(b"<unk>", kind=2)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "pieces"),
        (message(BPE, PLAIN), "pieces"),
        (message(BPE, PLAIN, piece(b"a")), "none of them stands for the unknown"),
        (message(BPE, PLAIN, UNKNOWN, piece(b"a"), piece(b"a")), "twice"),
        (message(BPE, PLAIN, UNKNOWN, piece(b"")), "0 bytes of text"),
        (message(BPE, PLAIN, UNKNOWN, piece(b"\xff")), "UTF-8"),
        (message(BPE, PLAIN, UNKNOWN, piece(b"a", float("nan"))), "score"),
        (message(BPE, PLAIN, UNKNOWN, piece(b"a", float("-inf"))), "score"),
        (message(BPE, PLAIN, UNKNOWN, piece(b"a", kind=9)), "type 9"),
        (message((1, 2, b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f")), "are said to follow"),
        (message((1, 2, b"\xff" * 11)), "64 bits"),
        (message((1, 3, b"")), "wire type 3"),
        (message((1, 2, b"\x80")), "ends within"),
        (message(BPE, PLAIN, UNKNOWN, *(piece(b"%d" % n) for n in range(SIZE))), "in a model that has"),
    ],
)
def test_a_lying_tokenizer_model_is_a_typed_error(data: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises((CorruptModel, UnsupportedModel), match=r"tokenizer\.model: field") as error:
        read(tmp_path)
    assert what in str(error.value) or not data


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"model_type": "unigram"}, "model_type': unigram"),
        ({"model_type": "char", "byte_fallback": False}, "model_type': char"),
        ({"normalization_rule_name": "nmt_nfkc"}, "precompiled_charsmap"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix"),
    ],
)
def test_a_tokenizer_model_of_another_kind_is_refused_by_field(
    settings: dict[str, Any], field: str, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model("llama2", hard_vocab_limit=False, **settings))
    for ask in (lambda: check_tokenizer(tmp_path, "huggingface", {}), lambda: read(tmp_path)):
        with pytest.raises(UnsupportedModel, match=field) as refused:
            ask()
        assert refused.value.supported


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("added_tokens.json", '{"<x>": -1}'),
        ("added_tokens.json", '{"<x>": "7"}'),
        ("added_tokens.json", '{"<x>": 1.5}'),
        ("added_tokens.json", '{"<x>": 2500, "<y>": 2500, "": 3}'),
        ("added_tokens.json", '{"<x>": 5}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"a": {"content": "<x>"}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"-1": {"content": "<x>"}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"2500": {"content": 7}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"2500": "<x>"}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"2500": {"content": "<s>"}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": []}'),
    ],
)
def test_files_beside_a_tokenizer_model_are_checked(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model("llama2"))
    (tmp_path / name).write_text(text)
    with pytest.raises(CorruptModel, match=r"added_tokens\.json|tokenizer_config\.json|tokenizer\.model"):
        read(tmp_path)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "tokenizer.model").write_bytes(sentencepiece_model("llama2"))
    return tokenizer_from_folder(folder, {}, 2000).vocabulary


def gguf_of(vocabulary: Vocabulary, folder: Path) -> Tokenizer:
    file = write_vocabulary(vocabulary, folder / "model.gguf")
    return tokenizer_from_gguf(file, read_gguf(file)[0].metadata)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda v: {"scores": (float("nan"), *v.scores[1:])}, "scores"),
        (lambda v: {"scores": (*v.scores[:-1], float("inf"))}, "scores"),
        (lambda v: {"scores": v.scores[:-1]}, "scores"),
        (lambda v: {"scores": ()}, "scores"),
        (lambda v: {"types": v.types[:5]}, "token_type"),
        (lambda v: {"tokens": (*v.tokens[:-1], v.tokens[7])}, "tokens"),
        (lambda v: {"model": "bert"}, "tokenizer.ggml.model"),
        (lambda v: {"model": "gpt2", "pre": "nonsense"}, "tokenizer.ggml.pre"),
        (lambda v: {"model": "gpt2", "pre": "default"}, "tokenizer.ggml.pre"),
        (lambda v: {"model": "gpt2", "pre": "gpt-2"}, "merges"),
    ],
)
def test_lying_gguf_tables_are_a_typed_error(
    change: Callable[[Vocabulary], dict[str, Any]], field: str, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    with pytest.raises((CorruptModel, UnsupportedModel), match=r"model\.gguf: field") as error:
        gguf_of(replace(vocabulary, **change(vocabulary)), tmp_path)
    assert field in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda v: {"special": {"bos": 10**6, "eos": 2**31}},
        lambda v: {"tokens": ("", *v.tokens[1:])},
        lambda v: {"tokens": ("x" * 100_000, *v.tokens[1:])},
        lambda v: {"model": "gpt2", "pre": "gpt-2", "merges": ("nopair", " ", "a  b", "x y", "", "t h")},
        lambda v: {"types": (TokenType.USER_DEFINED,) * len(v.types)},
        lambda v: {"types": (TokenType.BYTE,) * len(v.types)},
    ],
)
def test_odd_gguf_tables_make_a_tokenizer_or_a_typed_error(
    change: Callable[[Vocabulary], dict[str, Any]], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    _usable_or_typed(lambda: gguf_of(replace(vocabulary, **change(vocabulary)), tmp_path))


def test_an_unsupported_kind_is_known_at_once_whatever_the_size(tmp_path: Path) -> None:
    vocab = {f"token{n}": n for n in range(700_000)}
    spec = {"version": "1.0", "added_tokens": [], "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec, indent=1))
    assert (tmp_path / "tokenizer.json").stat().st_size > 15_000_000
    began = time.monotonic()
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.json: field 'model\.type': 'Unigram'") as refused:
        check_tokenizer(tmp_path, "huggingface", {})
    assert time.monotonic() - began < 1
    assert "BPE" in str(refused.value.supported)


def test_a_folder_with_another_tokenizers_files_says_which_are_read(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no tokenizer\.json and no tokenizer\.model"):
        read(tmp_path)
    (tmp_path / "tekken.json").write_text("{}")
    with pytest.raises(UnsupportedModel, match=r"tekken\.json"):
        read(tmp_path)


def test_tokens_that_are_sums_of_each_other_in_millions_of_ways_are_refused_in_bounded_memory(
    vocabulary: Vocabulary, tmp_path: Path
) -> None:
    """Every split of `a` and `b` in a row is a pair: 66,000 tokens mean four million, and took four gigabytes."""
    tokens = (*vocabulary.tokens[:259], *("a" * i + "b" * j for i in range(150) for j in range(150) if i + j > 1))
    types = (*vocabulary.types[:259], *[TokenType.NORMAL] * (len(tokens) - 259))
    summing = replace(vocabulary, tokens=tokens, types=types, scores=tuple(-float(n) for n in range(len(tokens))))
    began = time.monotonic()
    with pytest.raises(CorruptModel, match="sums of each other"):
        gguf_of(summing, tmp_path)
    assert time.monotonic() - began < 20


def test_a_gguf_file_without_token_types_is_read_as_llama_cpp_reads_it(vocabulary: Vocabulary, tmp_path: Path) -> None:
    file = write_vocabulary(vocabulary, tmp_path / "model.gguf")
    metadata = dict(read_gguf(file)[0].metadata)
    typed = tokenizer_from_gguf(file, metadata)
    del metadata["tokenizer.ggml.token_type"]
    guessed = tokenizer_from_gguf(file, metadata)
    text = "a\nb 你\x01</s>"
    assert guessed.encode(text) == typed.encode(text)
    assert guessed.encode(text, parse_special=True) == typed.encode(text, parse_special=True)


def test_a_special_id_that_stands_for_none_is_none(vocabulary: Vocabulary, tmp_path: Path) -> None:
    """llama2.c's converter writes 2^32 - 1."""
    tokenizer = gguf_of(replace(vocabulary, special={**vocabulary.special, "padding": 2**32 - 1}), tmp_path)
    assert "padding" not in tokenizer.special
    assert tokenizer.bos_id == 1


def test_of_pre_tokenizers_with_the_same_rules_the_one_that_treats_characters_alike_is_named() -> None:
    from edgecore.checkpoint.pretokenizers import PRE_TOKENIZERS, name_of

    qwen = json.loads(PRE_TOKENIZERS["qwen2"].build().__getstate__())
    assert name_of(qwen, False, {"type": "NFC"}) == "qwen2"
    assert name_of(qwen, False, None) == "deepseek-r1-qwen"
