"""Divergence is what it says, in a stream, whatever the chunks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgecore.contract.errors import BadRequest
from edgecore.quality.divergence import ContextGain, Divergence, LogProbs, chunks, compare


def _logits(seed: int, tokens: int = 37, vocab: int = 50, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((tokens, vocab)) * scale).astype(np.float32)


def _softmax(rows: np.ndarray) -> np.ndarray:
    e = np.exp(rows.astype(np.float64) - rows.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


TOKENS = [int(t) for t in np.random.default_rng(9).integers(0, 50, 37)]


def test_figures_agree_with_their_definitions_written_out() -> None:
    a, b = _logits(1), _logits(2)
    p, q = _softmax(a)[:-1], _softmax(b)[:-1]
    kl = (p * np.log(p / q)).sum(axis=1)
    target = np.array(TOKENS[1:])
    nll_p, nll_q = (-np.log(x[np.arange(36), target]).mean() for x in (p, q))

    found = compare([a], [b], TOKENS, sha256="cafe")

    assert found.tokens == 36
    assert found.kl_mean == pytest.approx(kl.mean(), rel=1e-9)
    assert found.kl_error == pytest.approx(kl.std(ddof=1) / 6, rel=1e-9)
    assert found.kl_p99 == pytest.approx(kl.max(), rel=1e-9)
    assert found.top1 == (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    assert found.perplexity == pytest.approx(math.exp(nll_q), rel=1e-9)
    assert found.reference_perplexity == pytest.approx(math.exp(nll_p), rel=1e-9)
    assert found.perplexity_ratio == pytest.approx(math.exp(nll_q - nll_p), rel=1e-9)
    assert found.text_sha256 == "cafe"


def test_a_model_does_not_diverge_from_itself_nor_from_itself_plus_a_constant() -> None:
    a = _logits(1)
    found = compare([a], [a + 100], TOKENS)
    assert found.kl_mean == pytest.approx(0, abs=1e-9)
    assert found.top1 == 1
    assert found.perplexity_ratio == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("left", "right"), [(1, 5), (16, 16), (7, 64), (36, 1)])
def test_chunk_sizes_change_nothing(left: int, right: int) -> None:
    a, b = _logits(1), _logits(2)
    assert compare(chunks(a, left), chunks(b, right), TOKENS) == compare([a], [b], TOKENS)


def test_positions_before_the_first_are_not_counted() -> None:
    a, b = _logits(1), _logits(2)
    b[:20] = np.nan
    found = compare([a], [b], TOKENS, first=20)
    assert found.tokens == 16
    assert math.isfinite(found.kl_mean)


def test_an_answer_that_is_no_number_is_infinitely_far_and_survives_json() -> None:
    a, b = _logits(1), _logits(2)
    b[5, 3] = np.nan
    found = compare([a], [b], TOKENS)
    assert found.kl_mean == math.inf
    data = found.to_dict()
    assert data["kl_mean"] is None
    assert Divergence.from_dict(data) == found


def test_a_token_that_the_candidate_excludes_costs_infinitely_only_if_the_reference_allows_it() -> None:
    a, b = _logits(1), _logits(1)
    b[:, 7] = -np.inf
    assert compare([a], [b], TOKENS).kl_mean == math.inf
    a[:, 7] = -np.inf
    tokens = [t if t != 7 else 8 for t in TOKENS]
    assert compare([a], [b], tokens).kl_mean == pytest.approx(0, abs=1e-12)


def test_streams_that_do_not_fit_together_are_refused_by_name() -> None:
    a = _logits(1)
    with pytest.raises(BadRequest, match="logits 1 end at position 30 of 37"):
        compare([a], [a[:30]], TOKENS)
    with pytest.raises(BadRequest, match="logits 1 have 49 columns, those of the reference 50"):
        compare([a], [a[:, :49]], TOKENS)
    with pytest.raises(BadRequest, match="token 50"):
        compare([a], [a], [0] * 36 + [50])
    with pytest.raises(BadRequest, match="nothing was compared"):
        compare([a], [a], [1])


def test_context_gain_is_the_loss_of_the_best_answer_that_ignores_the_context() -> None:
    a = _logits(3, tokens=64)
    gain = ContextGain()
    for block in chunks(a, 16):
        gain.add(LogProbs(block))
    mean = _softmax(a).mean(axis=0)
    ignoring = np.tile(np.log(mean), (64, 1)).astype(np.float64)
    p = _softmax(a)
    assert gain.result() == pytest.approx((p * (np.log(p) - ignoring)).sum(axis=1).mean(), rel=1e-9)


def test_a_model_that_always_answers_the_same_gains_nothing() -> None:
    gain = ContextGain()
    gain.add(LogProbs(np.tile(_logits(3, tokens=1), (8, 1))))
    assert gain.result() == pytest.approx(0, abs=1e-12)
