"""The oracle as a text backend keeps the contract: the same answers whole, chunked or stepped, and typed errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecore.checkpoint import Oracle, open_checkpoint
from edgecore.contract import (
    GREEDY,
    BadRequest,
    DeviceUnavailable,
    DoesNotFit,
    PlacementSource,
    Sampling,
    UnsupportedModel,
)

PROMPT = "The lighthouse keeper wrote one line"


def test_logits_are_the_oracles(tiny: Path, run: Any) -> None:
    with run(tiny) as session, open_checkpoint(tiny) as model:
        tokens = session.tokenize(PROMPT)
        expected = np.concatenate(list(Oracle(model.decoder, model.tensors).score(tokens)))
        assert np.array_equal(np.concatenate(list(session.score(tokens))), expected)
        assert expected.shape == (len(tokens), session.vocab_size)


@pytest.mark.parametrize("options", [{}, {"resident": False}, {"chunk": 3}])
def test_every_way_to_the_last_position_agrees(tiny: Path, run: Any, options: dict[str, Any]) -> None:
    with run(tiny, **options) as session:
        tokens = session.tokenize(PROMPT)
        scored = list(session.score(tokens))
        assert max(map(len, scored)) <= options.get("chunk", 64)
        whole = session.context().prefill(tokens)
        session.context().reset()
        session.context().prefill(tokens[:-2])
        session.context().step(tokens[-2])
        stepped = session.context().step(tokens[-1])
        np.testing.assert_allclose(whole, scored[-1][-1], atol=2e-4)
        np.testing.assert_allclose(stepped, whole, atol=2e-4)
        assert session.context().position == len(tokens)


def test_scoring_leaves_the_context_empty(tiny: Path, run: Any) -> None:
    with run(tiny) as session:
        session.context().prefill([5, 6, 7])
        assert [len(chunk) for chunk in session.score([5, 6])] == [2]
        assert session.context().position == 0


def test_generation_streams_and_repeats_itself(tiny: Path, run: Any) -> None:
    with run(tiny) as session:
        prompt = session.tokenize(PROMPT)
        once = [p.token for p in session.generate(prompt, max_tokens=8, sampling=GREEDY)]
        again = [p.token for p in session.generate(prompt, max_tokens=8, sampling=GREEDY)]
        drawn = [[p.token for p in session.generate(prompt, max_tokens=8, sampling=Sampling(seed=3))] for _ in range(2)]
        assert once == again
        assert drawn[0] == drawn[1]


def test_a_chat_prompt_comes_from_the_models_own_template(tiny: Path, run: Any) -> None:
    with run(tiny) as session:
        prompt = session.apply_chat([{"role": "user", "content": "Hello"}])
        tokens = session.tokenize(prompt, add_special=False, parse_special=True)
        assert prompt == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
        assert set(tokens) & session.eos_ids, "<|im_end|> is one token, and ends a turn"
        assert session.detokenize(session.tokenize("naïve 🙂")) == "naïve 🙂"


def test_it_says_where_it_runs_and_under_which_conditions(tiny: Path, run: Any) -> None:
    with run(tiny, context_length=64, threads=1) as session:
        assert session.context_length == 64
        assert session.placement.source is PlacementSource.RUNTIME_ASSIGNMENT
        assert session.placement.share("cpu") == 1.0
        conditions = dict(session.conditions)
        assert conditions.pop("threads") in ("1", "unknown")
        assert conditions == {"device": "cpu", "context": "64", "compute": "float32", "kv_cache": "float32"}


def test_a_prompt_longer_than_the_context_is_refused_before_any_work(tiny: Path, run: Any) -> None:
    with run(tiny, context_length=4) as session:
        with pytest.raises(DoesNotFit):
            session.context().prefill([1, 2, 3, 4, 5])
        assert session.context().position == 0
        with pytest.raises(DoesNotFit):
            session.score([1, 2, 3, 4, 5])
        with pytest.raises(DoesNotFit):
            session.generate([1, 2, 3], max_tokens=5)


def test_a_context_beyond_the_training_is_refused(tiny: Path, run: Any) -> None:
    with pytest.raises(DoesNotFit, match="512"):
        run(tiny, context_length=513)


def test_an_unknown_device_is_refused_with_those_that_exist(tiny: Path, run: Any) -> None:
    with pytest.raises(DeviceUnavailable) as caught:
        run(tiny, device="gpu")
    assert caught.value.supported == "cpu"


def test_a_closed_session_says_so(tiny: Path, run: Any) -> None:
    session = run(tiny)
    session.close()
    session.close()
    for call in (lambda: session.tokenize("a"), lambda: session.context(), lambda: session.score([1])):
        with pytest.raises(BadRequest, match="closed"):
            call()


def test_a_model_that_is_not_supported_is_refused_from_its_header(tiny: Path, tmp_path: Path, run: Any) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(UnsupportedModel, match="mamba"):
        run(tmp_path)


def test_weights_are_read_by_canonical_name_when_asked_for(tiny: Path, backend: Any, native: Any) -> None:
    weights = backend.edgecore_weights(artifact=native(tiny))
    assert "model.layers.1.mlp.down_proj.weight" in weights
    assert weights["model.norm.weight"].dtype == np.float32
    assert len(weights) == len(list(weights))
