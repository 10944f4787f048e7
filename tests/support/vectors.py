"""Texts and their token ids that llama.cpp's authors wrote, one vocabulary at a time."""

from __future__ import annotations

from pathlib import Path

from edgecore.checkpoint.gguf_file import read_gguf
from edgecore.checkpoint.tokenizer_gguf import tokenizer_from_gguf


def hold_to_vectors(vocabulary: Path, folder: Path, kind: str) -> None:
    """Every text of `ggml-vocab-KIND.gguf.inp` gives the ids in `.out`, and decodes to itself."""
    header, _ = read_gguf(vocabulary)
    tokenizer = tokenizer_from_gguf(vocabulary, header.metadata)
    texts = (folder / f"ggml-vocab-{kind}.gguf.inp").read_text("utf-8").split("\n__ggml_vocab_test__\n")
    lines = (folder / f"ggml-vocab-{kind}.gguf.out").read_text("utf-8").splitlines()
    assert len(lines) >= 40
    for text, line in zip(texts, lines, strict=False):
        assert tokenizer.encode(text, add_special=False) == [int(i) for i in line.split()], repr(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
