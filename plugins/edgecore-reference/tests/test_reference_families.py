"""Every family that the manifest claims runs, from a folder and from GGUF, and its copy answers the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecore.checkpoint import open_checkpoint
from edgecore.contract import GREEDY, Manifest

from support.cli import edgecore
from support.gguf_files import write_gguf
from support.tiny import train_tokenizer

GOLDENS = Path(__file__).parents[3] / "tests/checkpoint/goldens"
OF_FAMILY = {
    "llama": "rope-llama3",
    "mistral": "mistral-window",
    "qwen2": "qwen2-windows",
    "qwen3": "qwen3-tied",
    "gemma3": "gemma3-new-style-soft-caps",
    "phi3": "phi3-longrope-partial",
    "bitnet": "bitnet-packed",
}
each_family = pytest.mark.parametrize("family", OF_FAMILY)
PROMPT = "The keeper wrote"


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A golden with a tokenizer, so that it takes text."""
    root = tmp_path_factory.mktemp("families")

    def call(family: str) -> Path:
        folder = root / family
        if not folder.exists():
            shutil.copytree(GOLDENS / OF_FAMILY[family], folder, ignore=shutil.ignore_patterns("*.npz"))
            train_tokenizer(288).save(str(folder / "tokenizer.json"))
            named = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
            (folder / "tokenizer_config.json").write_text(json.dumps(named))
        return folder

    return call


def answer(session: Any) -> tuple[np.ndarray, list[int]]:
    tokens = session.tokenize(PROMPT)
    logits = np.concatenate(list(session.score(tokens)))
    return logits, [piece.token for piece in session.generate(tokens, max_tokens=6, sampling=GREEDY)]


def test_the_manifest_claims_these_families(manifest: Manifest) -> None:
    assert {claim.family for claim in manifest.claims if claim.task == "text"} == set(OF_FAMILY)


@each_family
def test_a_folder_that_was_converted_answers_as_its_source(
    tmp_path: Path, folder_of: Callable[[str], Path], convert: Any, run: Any, family: str
) -> None:
    made = convert(folder_of(family), tmp_path / "out", "f32")
    assert {file.path for file in made.files} == {path.name for path in (tmp_path / "out").iterdir()}
    with run(folder_of(family)) as source, run(tmp_path / "out") as written:
        (logits, tokens), (again, tokens_again) = answer(source), answer(written)
    assert np.array_equal(logits, again)
    assert tokens == tokens_again


@each_family
def test_a_gguf_file_answers_as_the_folder_that_is_made_of_it(
    tmp_path: Path, folder_of: Callable[[str], Path], convert: Any, run: Any, family: str
) -> None:
    with open_checkpoint(folder_of(family)) as model:
        source = write_gguf(model, tmp_path / "model.gguf", "Q8_0")
    convert(source, tmp_path / "out", "f32")
    with run(source) as native, run(tmp_path / "out") as written:
        (logits, tokens), (again, tokens_again) = answer(native), answer(written)
        assert native.eos_ids == written.eos_ids
    assert np.abs(logits - again).max() < 1e-4
    assert tokens == tokens_again


def test_any_family_is_built_and_measured_from_the_command_line(folder_of: Callable[[str], Path]) -> None:
    made = edgecore("build", folder_of("gemma3"), "--backend", "reference", "--precision", "f32", "--json")
    assert made.code == 0, made.err
    assert made.json["quality"]["verdict"] == "accepted"
    measured = edgecore("benchmark", made.json["id"], "--prompt-tokens", "8", "-n", "8", "--pairs", "1", "--json")
    assert measured.code in (0, 1), measured.err  # 1: a busy machine voids the figures
    assert measured.json
