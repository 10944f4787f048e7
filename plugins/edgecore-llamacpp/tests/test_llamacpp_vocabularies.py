"""`tokenizer.*` of files with real vocabularies, against what llama.cpp's converter makes of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgecore.checkpoint import open_checkpoint
from edgecore.contract import no_progress
from edgecore_llamacpp import source_package
from edgecore_llamacpp.convert import write_gguf

from support.converted import VOCABULARIES, account, vocabulary_folder

RECORD = Path(__file__).parent / "converted" / "vocabularies.json"
pytestmark = [pytest.mark.slow, pytest.mark.network]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree that EDGECORE_TEST_LLAMA_CPP names, else llama.cpp inside llama-cpp-python's source package."""
    named = os.environ.get("EDGECORE_TEST_LLAMA_CPP")
    return Path(named) if named else source_package.llama_cpp(tmp_path_factory.mktemp("sources"))


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_the_tokenizer_is_the_same_as_the_converters(kind: str, sources: Path, tmp_path: Path) -> None:
    expected = json.loads(RECORD.read_text(encoding="utf-8"))[kind]
    folder = vocabulary_folder(kind, sources / "models" / f"ggml-vocab-{kind}.gguf", tmp_path / "in")
    with open_checkpoint(folder) as model:
        write_gguf(model, tmp_path / "model.gguf", "f16", no_progress)
    made = account(tmp_path / "model.gguf")["metadata"]
    assert {k: v for k, v in made.items() if k.startswith("tokenizer.")} == expected
