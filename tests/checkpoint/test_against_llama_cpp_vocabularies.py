"""Token ids on the vocabularies that are too large to commit, from the source package of the runtime."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.vectors import hold_to_vectors

source_package = pytest.importorskip(
    "edgecore_llamacpp.source_package",
    reason="fetches llama.cpp's sources; runs where the llama.cpp plugin is installed",
)
pytestmark = [pytest.mark.slow, pytest.mark.network]
KINDS = ("llama-bpe", "llama-spm", "qwen2", "starcoder", "refact", "mpt", "command-r", "deepseek-coder")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree that EDGECORE_TEST_LLAMA_CPP names, else llama.cpp inside llama-cpp-python's source package."""
    named = os.environ.get("EDGECORE_TEST_LLAMA_CPP")
    return Path(named) if named else source_package.llama_cpp(tmp_path_factory.mktemp("sources"))


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_llama_cpp(kind: str, sources: Path) -> None:
    folder = sources / "models"
    hold_to_vectors(folder / f"ggml-vocab-{kind}.gguf", folder, kind)
