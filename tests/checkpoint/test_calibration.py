"""Rounding to few bits by GPTQ, and what it is calibrated on: a text in samples, or what the model writes itself."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint import open_checkpoint
from edgecore.checkpoint.calibration import samples, written
from edgecore.checkpoint.gptq import gptq
from edgecore.contract import no_progress

from support.tiny import TEXT, tiny_llama


def test_gptq_loses_less_of_the_output_than_rounding_and_keeps_to_its_grid() -> None:
    random = np.random.default_rng(0)
    mixed = random.standard_normal((512, 24), np.float32) @ random.standard_normal((24, 64), np.float32)
    x = mixed + 0.1 * random.standard_normal((512, 64), np.float32)
    w = random.standard_normal((48, 64), np.float32)
    used = x.T @ x / len(x)
    for symmetric, bits in product((False, True), (4, 8)):
        made = gptq(w, used, 32, symmetric, bits)
        assert made.scale.shape == made.zero.shape == (48, 2)
        assert made.levels.max() < 2**bits
        assert not symmetric or (made.zero == 2 ** (bits - 1)).all()
        alone = gptq(w, np.eye(64, dtype=np.float32), 32, symmetric, bits)
        lost = np.linalg.norm(x @ (made.read() - w).T)
        assert lost < 0.75 * np.linalg.norm(x @ (alone.read() - w).T)
        assert np.linalg.norm(alone.read() - w) < 0.1 * np.linalg.norm(w)


def test_gptq_takes_columns_that_nothing_uses_and_groups_of_zeros() -> None:
    w = np.ones((4, 32), np.float32)
    w[:, :16] = 0
    used = np.zeros((32, 32), np.float32)
    used[0, 0] = 1
    made = gptq(w, used, 16, symmetric=False).read()
    assert np.isfinite(made).all()
    assert np.allclose(made, w, atol=0.01)


def test_samples_are_spread_over_the_text_and_short_texts_are_one_sample(tmp_path: Path) -> None:
    with open_checkpoint(tiny_llama(tmp_path / "tiny")) as model:
        ids = model.tokenizer.encode(TEXT, add_special=False)
        pieces = samples(model.tokenizer, TEXT, 3, 64)
        last = 64 * (len(ids) // 64 - 1)
        assert [piece[1:] for piece in (pieces[0], pieces[2])] == [ids[1:64], ids[last + 1 : last + 64]]
        assert [len(piece) for piece in samples(model.tokenizer, TEXT, 3, 10**6)] == [len(ids)]
        assert len(samples(model.tokenizer, TEXT, 10**6, 64)) == len(ids) // 64


def test_a_model_writes_what_it_finds_likely_and_the_same_again(tmp_path: Path) -> None:
    with open_checkpoint(tiny_llama(tmp_path / "tiny")) as model:
        tokenizer = model.tokenizer
    given: list[int] = []

    def following(tokens: NDArray[np.int64]) -> NDArray[Any]:
        given.append(tokens.shape[1])
        logits = np.zeros((len(tokens), tokenizer.vocab_size + 3), np.float32)
        logits[np.arange(len(tokens)), (tokens[:, -1] + 1) % tokenizer.vocab_size] = 100
        logits[:, tokenizer.vocab_size :] = 1000  # rows that stand for no token
        return logits

    texts = written(following, tokenizer, 3, 12, no_progress)
    assert texts == written(following, tokenizer, 3, 12, no_progress)
    assert [len(text) for text in texts] == [12] * 3
    opening = 1 if tokenizer.add_bos else 0
    assert given[: len(given) // 2] == [opening + 1, *[1] * (10 - opening)]
    for text in texts:
        assert [(token + 1) % tokenizer.vocab_size for token in text[opening:-1]] == text[opening + 1 :]
