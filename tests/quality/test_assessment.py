"""Verdicts: what is good is accepted, every planted fault is refused by the check that is there for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecore.checkpoint import Checkpoint, RopeScaling, open_checkpoint
from edgecore.contract.artifacts import Weights
from edgecore.contract.errors import Cancelled
from edgecore.contract.precisions import Precision
from edgecore.quality import Assessment, Verdict, assess, evaluation_text
from edgecore.quality.rounding import RoundedTensors

from support.oracle_session import OracleSession
from support.tiny import tiny_llama

TEXT, DIGEST = evaluation_text("quick")
Q4 = Precision("q4", 4, "quantize", overhead=0.5)
F16 = Precision("f16", 16, "convert")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    with open_checkpoint(tiny_llama(tmp_path_factory.mktemp("models") / "tiny")) as opened:
        yield opened


def _rounded(model: Checkpoint, bits: float) -> dict[str, Any]:
    return dict(RoundedTensors(model.tensors, bits))


def _arrays(tensors: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: tensor.read() for name, tensor in tensors.items()}


def _assess(model: Checkpoint, session: OracleSession, **given: Any) -> Assessment:
    defaults: dict[str, Any] = {
        "weights": None, "precision": Q4, "weights_stats": None, "text": TEXT, "text_sha256": DIGEST,
        "budget_seconds": 600,
    }  # fmt: skip
    return assess(reference=model, session=session, **{**defaults, **given})


def _failed(found: Assessment) -> list[str]:
    return [check.name for check in found.checks if not check.passed]


def test_an_unchanged_model_loses_nothing(model: Checkpoint) -> None:
    found = _assess(model, OracleSession(model), weights=_arrays(dict(model.tensors)), precision=F16)
    assert found.verdict is Verdict.ACCEPTED
    assert found.total is not None
    assert found.file is not None
    assert found.kernels is not None
    assert found.file.kl_mean == 0
    assert found.total.kl_mean == pytest.approx(0, abs=1e-9)
    assert found.kernels.kl_mean == pytest.approx(0, abs=1e-9)
    assert found.total.greedy_match == 1
    assert found.tokens == 256


def test_honest_four_bits_are_accepted_and_every_check_says_where_its_bound_is_from(model: Checkpoint) -> None:
    weights = _rounded(model, 4)
    found = _assess(model, OracleSession(model, weights=weights), weights=_arrays(weights))
    assert found.verdict is Verdict.ACCEPTED
    assert {"kernels", "file", "garbage", "paths", "tokenizer"} == {check.name for check in found.checks}
    file = next(check for check in found.checks if check.name == "file")
    assert found.baseline is not None
    assert file.measured == pytest.approx(found.baseline.kl_mean, rel=1e-6)
    assert "round-to-nearest of 4 bits loses on this model" in file.origin
    assert all("bounds.toml" in check.origin for check in found.checks if check.name in ("kernels", "file", "garbage"))
    assert "KL" in found.summary()


def test_a_file_that_lost_more_than_a_bit_is_refused_by_the_file_gate(model: Checkpoint) -> None:
    weights = _rounded(model, 4)
    found = _assess(
        model, OracleSession(model, weights=weights), weights=_arrays(weights), precision=Precision("q6", 6, "quantize")
    )
    assert found.verdict is Verdict.REFUSED
    assert "file" in _failed(found)
    assert "kernels" not in _failed(found)
    assert "outside its bound: file" in found.summary()


def test_kernels_that_err_are_refused_by_the_kernels_gate_alone(model: Checkpoint) -> None:
    noise = np.random.default_rng(0)

    def spoil(rows: np.ndarray) -> np.ndarray:
        return rows + noise.standard_normal(rows.shape).astype(np.float32) * 0.4

    found = _assess(model, OracleSession(model, spoil=spoil), weights=_arrays(dict(model.tensors)))
    assert found.verdict is Verdict.REFUSED
    assert "kernels" in _failed(found)
    assert "file" not in _failed(found)
    assert found.file is not None
    assert found.file.kl_mean == 0


def test_without_weights_the_total_is_judged_and_it_says_so(model: Checkpoint) -> None:
    found = _assess(model, OracleSession(model, weights=_rounded(model, 4)))
    assert found.verdict is Verdict.ACCEPTED
    assert found.file is None
    assert found.kernels is None
    assert "total" in {check.name for check in found.checks}
    assert any("not told apart" in note for note in found.notes)


def test_garbage_is_refused_though_round_to_nearest_of_its_bits_is_garbage_too(model: Checkpoint) -> None:
    weights = _rounded(model, 1)
    found = _assess(model, OracleSession(model, weights=weights), precision=Precision("q1", 1, "quantize"))
    assert found.verdict is Verdict.REFUSED
    assert _failed(found) == ["garbage"]


def test_answers_that_are_no_numbers_are_refused(model: Checkpoint) -> None:
    found = _assess(model, OracleSession(model, spoil=lambda rows: rows * np.float32("nan")))
    assert found.verdict is Verdict.REFUSED
    assert {"total", "garbage"} <= set(_failed(found))
    assert Assessment.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found


def test_a_score_that_is_not_what_generation_computes_is_refused(model: Checkpoint) -> None:
    """Evidence from another path than generate's would prove nothing."""
    session = OracleSession(model)
    honest = session.context().step
    session.context().step = lambda token: honest((token + 1) % 300)  # type: ignore[method-assign]
    found = _assess(model, session, weights=_arrays(dict(model.tensors)), precision=F16)
    assert found.verdict is Verdict.REFUSED
    assert _failed(found) == ["paths"]


def test_a_tokenizer_that_reads_the_text_otherwise_is_refused(model: Checkpoint) -> None:
    session = OracleSession(model)
    ids = session.tokenize(TEXT)
    session.tokenize = lambda *_, **__: [5, *ids[1:]]  # type: ignore[method-assign]
    found = _assess(model, session, precision=F16)
    assert _failed(found) == ["tokenizer"]


def test_a_file_larger_than_its_name_says_is_refused(model: Checkpoint) -> None:
    stats = Weights(bits_per_weight=8.5, eligible_bits_per_weight=8.5, parameters=1)
    found = _assess(model, OracleSession(model), weights_stats=stats)
    assert _failed(found) == ["size"]
    fair = Weights(bits_per_weight=8.5, eligible_bits_per_weight=4.9, parameters=1)
    assert _assess(model, OracleSession(model), weights_stats=fair).verdict is Verdict.ACCEPTED


def test_a_backend_without_logits_is_unverified_and_what_its_file_lost_is_still_known(model: Checkpoint) -> None:
    weights = _rounded(model, 4)
    found = _assess(model, OracleSession(model, weights=weights, silent=True), weights=_arrays(weights))
    assert found.verdict is Verdict.UNVERIFIED
    assert "no logits" in found.reasons[0]
    assert found.total is None
    assert found.file is not None
    assert found.file.kl_mean > 0


@pytest.mark.parametrize(("bits", "verdict"), [(4, Verdict.ACCEPTED), (2, Verdict.REFUSED)])
def test_beyond_the_budget_the_noise_of_the_weights_stands_in_marked_so(
    model: Checkpoint, bits: float, verdict: Verdict
) -> None:
    weights = _rounded(model, bits)
    found = _assess(model, OracleSession(model, weights=weights), weights=_arrays(weights), budget_seconds=1e-9)
    assert found.verdict is verdict
    assert found.method == "weights"
    assert found.total is None
    assert "stands in" in " ".join(found.notes)
    assert "dB" in found.summary()
    assert Assessment.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_beyond_the_budget_without_weights_nothing_is_known(model: Checkpoint) -> None:
    found = _assess(model, OracleSession(model), budget_seconds=1e-9)
    assert found.verdict is Verdict.UNVERIFIED
    assert "gives no weights" in found.reasons[0]


def test_an_undeclared_precision_has_no_bound_on_its_file_but_kernels_and_garbage_are_judged(model: Checkpoint) -> None:
    found = _assess(model, OracleSession(model), weights=_arrays(dict(model.tensors)), precision=None)
    assert found.verdict is Verdict.ACCEPTED
    assert {"kernels", "garbage"} <= {check.name for check in found.checks}
    assert "file" not in {check.name for check in found.checks}


def test_a_short_context_is_respected(model: Checkpoint) -> None:
    found = _assess(model, OracleSession(model, context_length=100), precision=F16)
    assert found.tokens == 100
    assert found.verdict is Verdict.ACCEPTED


def test_a_text_that_ends_short_of_longropes_border_is_not_continued_across_it(tmp_path: Path) -> None:
    with open_checkpoint(tiny_llama(tmp_path / "tiny")) as model:
        half = model.decoder.rope.dim // 2
        longrope = {"scaling": RopeScaling.LONGROPE, "divisors": (1.0,) * half, "long_divisors": (4.0,) * half}
        model.decoder = replace(model.decoder, rope=replace(model.decoder.rope, original_context=258, **longrope))
        found = _assess(model, OracleSession(model), weights=_arrays(dict(model.tensors)), precision=F16)
    assert found.verdict is Verdict.ACCEPTED
    assert found.file is not None
    assert found.file.kl_mean == 0


def test_progress_ends_at_its_total_and_can_stop_the_comparison(model: Checkpoint) -> None:
    seen: list[tuple[int, int]] = []
    _assess(model, OracleSession(model), on_progress=lambda done, total, stage="": seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]

    def stop(done: int, total: int, stage: str = "") -> None:
        raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        _assess(model, OracleSession(model), on_progress=stop)


def test_the_baseline_is_computed_once_for_a_source(model: Checkpoint) -> None:
    weights = _rounded(model, 4)
    totals: list[int] = []
    for _ in range(2):
        found = _assess(
            model, OracleSession(model, weights=weights), on_progress=lambda done, total, stage="": totals.append(total)
        )
        assert found.baseline is not None
    assert totals[-1] < totals[0]
