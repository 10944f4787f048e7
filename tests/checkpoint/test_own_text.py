"""A calibration text that the model writes itself: each of several texts is what the oracle would write alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgecore.checkpoint import Oracle, open_checkpoint
from edgecore.checkpoint.calibration import SEED
from edgecore.checkpoint.own_text import own_text
from edgecore.contract import Cancelled, no_progress

from support.tiny import tiny_llama


def test_texts_are_drawn_from_what_the_model_finds_likely_each_by_itself(tmp_path: Path) -> None:
    with open_checkpoint(tiny_llama(tmp_path / "tiny", layers=2, hidden=64, heads=2, kv_heads=1)) as model:
        texts = own_text(model.decoder, model.tensors, model.tokenizer, 3, 20, no_progress)
        again = own_text(model.decoder, model.tensors, model.tokenizer, 3, 20, no_progress, resident=False)
        oracle, random = Oracle(model.decoder, model.tensors, resident=True), np.random.default_rng(SEED)
        contexts = [oracle.context() for _ in texts]
        opening = 2 if model.tokenizer.add_bos else 1
        rows = [context.prefill(text[:opening]) for context, text in zip(contexts, texts, strict=True)]
        for at in range(opening, 20):
            logits = np.stack(rows)[:, : model.tokenizer.vocab_size].astype(np.float64)
            drawn = np.argmax(logits + random.gumbel(size=logits.shape), axis=1)
            assert list(drawn) == [text[at] for text in texts]
            rows = [context.step(int(token)) for context, token in zip(contexts, drawn, strict=True)]
    assert texts == again
    assert len({tuple(text) for text in texts}) == 3


def test_writing_tells_how_far_it_is_and_can_be_cancelled(tmp_path: Path) -> None:
    def stop(done: int, total: int, stage: str = "") -> None:
        assert (total, stage) == (20, "writing a calibration text")
        if done > 4:
            raise Cancelled("enough")

    tiny = tiny_llama(tmp_path / "tiny", hidden=64, heads=2, kv_heads=1)
    with open_checkpoint(tiny) as model, pytest.raises(Cancelled):
        own_text(model.decoder, model.tensors, model.tokenizer, 2, 20, stop)
