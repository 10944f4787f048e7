"""What a model is run on while it is calibrated: samples of a text, or of what the model writes where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint.tokenizer import Tokenizer
from edgecore.contract import BadRequest, Progress

SAMPLES, LENGTH = 32, 256
OWN_SAMPLES = 16
"""Of a text that the model writes: it takes a step a token."""
LEAST = 32
"""Tokens of a text that is worth a measurement at all."""
SEED = 0
Next = Callable[[NDArray[np.int64]], NDArray[Any]]
"""Further tokens of each text, (count, n) -> the logits that follow the last ones, (count, vocab). What was given
before stands in the KV cache."""


def read_text(path: Path) -> str:
    """The calibration text. Raises `BadRequest`."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"calibration data {path}: {error}", supported="a file of UTF-8 text") from None


def samples(tokenizer: Tokenizer, text: str, count: int = SAMPLES, length: int = LENGTH) -> list[list[int]]:
    """At most `count` pieces of `length` tokens, spread evenly over the text, each beginning with BOS where the model
    wants one. A text shorter than `length` is one sample. Raises `BadRequest` for less than `LEAST` tokens."""
    ids = tokenizer.encode(text, add_special=False)
    if len(ids) < LEAST:
        raise BadRequest(
            f"the calibration text has {len(ids)} tokens", supported=f"at least {LEAST}, better {count * length}"
        )
    length = min(length, len(ids))
    whole = len(ids) // length
    chosen = np.linspace(0, whole - 1, min(count, whole)).round().astype(int)
    pieces = [ids[start : start + length] for start in chosen * length]
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        pieces = [[tokenizer.bos_id, *piece[1:]] for piece in pieces]
    return pieces


def written(following: Next, tokenizer: Tokenizer, count: int, length: int, progress: Progress) -> list[list[int]]:
    """`count` texts of `length` tokens, drawn from the model's own distribution, all at once. Each begins with another
    token, spread over the vocabulary, behind BOS where the model wants one. The same every time on one machine.

    What a model finds likely is what it will be used on: SmolLM2-135M in OpenVINO's int4_asym loses a KL of 0.305
    without any text, 0.146 with 4,096 tokens of its own, and 0.107 to 0.110 with 8,192 tokens of other people's (some
    of them of the kinds it was scored on).
    """
    opening = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    first = np.linspace(0, tokenizer.vocab_size - 1, count + 2)[1:-1].astype(np.int64)
    texts = np.concatenate([np.tile(np.array(opening, np.int64), (count, 1)), first[:, None]], axis=1)
    random, past = np.random.default_rng(SEED), 0
    while texts.shape[1] < length:
        progress(texts.shape[1], length, "writing a calibration text")
        now = texts.shape[1]
        logits = following(np.ascontiguousarray(texts[:, past:]))[:, : tokenizer.vocab_size].astype(np.float64)
        # The largest of log p plus Gumbel noise is a draw from p.
        drawn = np.argmax(logits + random.gumbel(size=logits.shape), axis=1)
        texts, past = np.concatenate([texts, drawn[:, None]], axis=1), now
    return [[int(token) for token in some] for some in texts]
