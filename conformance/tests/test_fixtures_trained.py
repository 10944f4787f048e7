"""The trained model has learnt something, and rounding it to four bits loses some of it: else no check saw a loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgecore.checkpoint import Oracle, open_checkpoint
from edgecore.checkpoint.tensors import Tensor
from edgecore_conformance import fixtures
from edgecore_conformance.fixtures import language, made

TOKENS = 1024
PERPLEXITY = 100.0


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Of rows of logits, in float64."""
    exact = logits.astype(np.float64)
    exact -= exact.max(axis=-1, keepdims=True)
    return exact - np.log(np.exp(exact).sum(axis=-1, keepdims=True))


@pytest.fixture(scope="module")
def scored() -> tuple[list[list[int]], list[np.ndarray]]:
    """Windows of 512 tokens of the held-out text and their log-probabilities."""
    with open_checkpoint(fixtures.language_model()) as model:
        ids = model.tokenizer.encode(fixtures.held_out_text())[:TOKENS]
        windows = [ids[start : start + 512] for start in range(0, len(ids), 512)]
        oracle = Oracle(model.decoder, model.tensors, resident=True)
        return windows, [log_probabilities(np.concatenate(list(oracle.score(window)))) for window in windows]


def test_the_model_is_a_llama_of_the_published_size_with_rows_that_divide_by_256() -> None:
    with open_checkpoint(fixtures.language_model()) as model:
        d = model.decoder
        assert (d.family, d.hidden_size, d.intermediate_size, d.layers) == ("llama", 256, 768, 5)
        assert (d.heads, d.kv_heads, d.head_dim, d.vocab_size, d.context_length) == (4, 2, 64, 2048, 512)
        assert d.tied
        assert not [t.name for t in model.tensors.values() if len(t.shape) > 1 and t.shape[-1] % 256]
        assert 4_000_000 < sum(t.elements for t in model.tensors.values()) < 5_000_000


def test_the_model_comes_out_of_its_package_as_it_was_published(edgecore_home: Path) -> None:
    folder = fixtures.language_model()
    assert folder.is_relative_to(edgecore_home)
    assert made.digest_of(folder) == language.DIGEST
    with open_checkpoint(folder) as model:
        assert {tensor.storage for tensor in model.tensors.values()} == {"F16"}


def test_all_that_is_shipped_takes_little() -> None:
    assert sum(f.stat().st_size for f in language.DATA.rglob("*") if f.is_file()) < 6.5e6


def test_the_tokenizer_is_of_smollms_kind_and_gives_back_text() -> None:
    with open_checkpoint(fixtures.language_model()) as model:
        assert model.tokenizer.pre == "smollm"
        text = fixtures.held_out_text()[:3000] + "\n 1234 naïve 🙂 "
        assert model.tokenizer.decode(model.tokenizer.encode(text)) == text
        assert "<|im_start|>" in str(model.chat_template)


def test_perplexity_of_text_that_it_has_not_seen_is_far_below_chance(
    scored: tuple[list[list[int]], list[np.ndarray]],
) -> None:
    windows, found = scored
    losses = [-row[token] for ids, rows in zip(windows, found, strict=True) for row, token in zip(rows, ids[1:])]  # noqa: B905
    perplexity = float(np.exp(np.mean(losses)))
    print(f"perplexity {perplexity:.2f} over {len(losses)} tokens; chance would be 2048")
    assert perplexity < PERPLEXITY


def test_four_bits_lose_what_can_be_seen_and_eight_far_less(
    scored: tuple[list[list[int]], list[np.ndarray]],
) -> None:
    windows, found = scored
    losses = {bits: divergence(windows[0], found[0], bits) for bits in (8, 4)}
    print("mean KL after rounding blocks of 32:", {bits: f"{loss:.5f}" for bits, loss in losses.items()})
    assert 0.003 < losses[4] < 1.0
    assert losses[8] < losses[4] / 20


def divergence(ids: list[int], expected: np.ndarray, bits: int) -> float:
    """Mean KL of a model whose matrices were rounded to the nearest in blocks of 32."""
    with open_checkpoint(fixtures.language_model()) as model:
        tensors: dict[str, Tensor] = dict(model.tensors)
        oracle = Rounded(model.decoder, tensors, bits)
        found = log_probabilities(np.concatenate(list(oracle.score(ids))))
    return float((np.exp(expected) * (expected - found)).sum(axis=-1).mean())


class Rounded(Oracle):
    """The oracle on weights that have lost bits."""

    def __init__(self, decoder: object, tensors: dict[str, Tensor], bits: int) -> None:
        super().__init__(decoder, tensors, resident=True)  # type: ignore[arg-type]
        self._most = 2 ** (bits - 1) - 1

    def _weight(self, name: str) -> np.ndarray:
        if name not in self._kept:
            weight = super()._weight(name)
            if weight.ndim > 1:
                blocks = weight.reshape(-1, 32)
                scale = np.abs(blocks).max(axis=1, keepdims=True) / self._most
                rounded = np.rint(blocks / np.where(scale, scale, 1)) * scale
                self._kept[name] = rounded.reshape(weight.shape).astype(np.float32)
        return self._kept[name]


def test_the_texts_share_nothing_and_have_the_published_lengths() -> None:
    held, calibration = fixtures.held_out_text(), fixtures.calibration_text().read_text(encoding="utf-8")
    assert (len(held), len(calibration)) == (18603, 59273)
    assert not {line for line in held.splitlines() if len(line) > 40} & set(calibration.splitlines())
