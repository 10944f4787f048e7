"""Every vocabulary that llama.cpp's sources carry: its authors' vectors, and 2,000 lines against llama.cpp itself.

Where llama.cpp differs from the tokenizer that a model was trained with, the model's own is right, and so are we; each
such difference is listed here with its reason, and everything else is equal.
"""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

import pytest

from edgecore.checkpoint import TokenType
from edgecore.checkpoint.gguf_file import read_gguf
from edgecore.checkpoint.pretokenizers import PRE_TOKENIZERS, SYNONYMS
from edgecore.checkpoint.tokenizer_gguf import tokenizer_from_gguf
from edgecore.checkpoint.tokenizer_kind import check_tokenizer
from edgecore.contract.errors import UnsupportedModel

from support.lines import LEAST, lines
from support.native_vocabulary import native_vocabulary, with_pre
from support.vectors import hold_to_vectors

source_package = pytest.importorskip(
    "edgecore_llamacpp.source_package",
    reason="needs the llama.cpp plugin, for llama.cpp's sources: python3 bootstrap.py test --only e2e",
)
pytestmark = [pytest.mark.slow, pytest.mark.network]

KINDS = (
    "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "llama-bpe", "llama-spm", "mpt",
    "phi-3", "qwen2", "qwen35", "refact", "starcoder",
)  # fmt: skip
WITHOUT_VECTORS = ("baichuan",)
OTHER_KINDS = {
    "bert-bge": "WordPiece",
    "nomic-bert-moe": "Unigram",
    "aquila": "older than tokenizer.ggml.pre: how it splits words is not in the file",
    "gpt-neox": "older than tokenizer.ggml.pre: how it splits words is not in the file",
}
RETYPED = {
    # llama.cpp makes control tokens of tokens that end a turn or fill in the middle, by their text, whatever the file
    # and the original tokenizer say: here they are user-defined, or no special tokens at all.
    "deepseek-coder": ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    "gemma-4": ("<|tool_response>",),
    "phi-3": ("</s>",),
    "qwen2": ("</s>",),
    "qwen35": ("</s>",),
}
ASCII_SPACE = " \t\n\v\f\r"
"""All that llama.cpp strips behind Phi-3's special tokens; the original strips what Unicode calls white space."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree that EDGECORE_TEST_LLAMA_CPP names, else llama.cpp inside llama-cpp-python's source package."""
    named = os.environ.get("EDGECORE_TEST_LLAMA_CPP")
    return Path(named) if named else source_package.llama_cpp(tmp_path_factory.mktemp("sources"))


def test_no_vocabulary_is_passed_over(sources: Path) -> None:
    names = {file.name.removeprefix("ggml-vocab-").removesuffix(".gguf") for file in sources.glob("models/*.gguf")}
    assert names == {*KINDS, *WITHOUT_VECTORS, *OTHER_KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_that_llama_cpps_authors_recorded(kind: str, sources: Path) -> None:
    folder = sources / "models"
    hold_to_vectors(folder / f"ggml-vocab-{kind}.gguf", folder, kind)


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_other_kinds_are_refused_from_the_header(kind: str, sources: Path) -> None:
    file = sources / "models" / f"ggml-vocab-{kind}.gguf"
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.ggml\.(model|pre)") as refused:
        check_tokenizer(file, "gguf", read_gguf(file)[0].metadata)
    assert refused.value.supported


@pytest.mark.parametrize("kind", [*KINDS, *WITHOUT_VECTORS])
def test_ids_of_two_thousand_lines_are_those_of_llama_cpp(kind: str, sources: Path) -> None:
    file = sources / "models" / f"ggml-vocab-{kind}.gguf"
    tokenizer = tokenizer_from_gguf(file, read_gguf(file)[0].metadata)
    pairs = zip(tokenizer.tokens, tokenizer.types, strict=True)
    special = [token for token, type_ in pairs if type_ in (TokenType.CONTROL, TokenType.USER_DEFINED)]
    texts = [t for t in lines(special[:40] + special[-10:]) if not any(token in t for token in RETYPED.get(kind, ()))]
    if kind == "phi-3":
        stripping = re.compile(r"(<\|\w+\|>)[ \t\n\v\f\r]*(?![ \t\n\v\f\r])\s")
        texts = [text for text in texts if not stripping.search(text)]
    assert len(texts) >= LEAST
    composed = tokenizer.model == "gpt2" and PRE_TOKENIZERS[tokenizer.pre].nfc
    with native_vocabulary(file) as native:
        for text in texts:
            # The original tokenizer of these composes characters before it splits the text, llama.cpp does not.
            same = unicodedata.normalize("NFC", text) if composed else text
            for parse in (False, True):
                for add in (False, True):
                    assert tokenizer.encode(text, add, parse) == native(same, add, parse), (text, add, parse)


@pytest.mark.parametrize("kind", RETYPED)
def test_tokens_are_what_the_file_says(kind: str, sources: Path) -> None:
    file = sources / "models" / f"ggml-vocab-{kind}.gguf"
    tokenizer = tokenizer_from_gguf(file, read_gguf(file)[0].metadata)
    for token in RETYPED[kind]:
        number = tokenizer.tokens.index(token) if token in tokenizer.tokens else None
        if number is not None and tokenizer.types[number] is TokenType.USER_DEFINED:
            assert tokenizer.encode(token, add_special=False) == [number]
        else:
            assert tokenizer.encode(token, False, True) == tokenizer.encode(token, False, False)


def test_phi_3_strips_what_stands_behind_its_special_tokens(sources: Path) -> None:
    file = sources / "models" / "ggml-vocab-phi-3.gguf"
    tokenizer = tokenizer_from_gguf(file, read_gguf(file)[0].metadata)
    bare = tokenizer.encode("<|user|>Hi<|end|>", False, True)
    for space in (*ASCII_SPACE, "\n\n ", "\u00a0", "\u3000"):
        assert tokenizer.encode(f"<|user|>{space}Hi<|end|>{space}", False, True) == bare
    assert tokenizer.encode("<s> Hi", False, True) != tokenizer.encode("<s>Hi", False, True)


@pytest.mark.parametrize("pre", [*PRE_TOKENIZERS, *SYNONYMS])
def test_every_pre_tokenizer_splits_as_llama_cpp_does(pre: str, sources: Path, tmp_path: Path) -> None:
    """On the vocabulary of Qwen2, whose merges reach far into other scripts: splits in other places show."""
    file = with_pre(sources / "models" / "ggml-vocab-qwen2.gguf", pre, tmp_path / "vocabulary.gguf")
    tokenizer = tokenizer_from_gguf(file, read_gguf(file)[0].metadata)
    assert tokenizer.pre == SYNONYMS.get(pre, pre)
    texts = lines()
    if tokenizer.pre in ("tekken", "gpt-4o"):
        # llama.cpp cannot write the original expression: it leaves combining marks out of words, and knows capitals of
        # ASCII only. With both, ours is held to the original in test_against_mistral.py.
        texts = [t for t in texts if not any(unicodedata.category(c) in ("Mn", "Mc", "Me") for c in t)]
        texts = [t for t in texts if not any(unicodedata.category(c) in ("Lu", "Lt") and not c.isascii() for c in t)]
    assert len(texts) >= 1500
    composed = PRE_TOKENIZERS[tokenizer.pre].nfc
    with native_vocabulary(file) as native:
        for text in texts:
            same = unicodedata.normalize("NFC", text) if composed else text
            assert tokenizer.encode(text, add_special=False) == native(same, False, False), text
