"""Calibration text as what NNCF runs a language model on: samples of equal length that stand alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint import Tokenizer
from edgecore.contract import BadRequest

SAMPLES = 32
LENGTH = 256
LEAST = 32
"""Tokens of a text that is worth a measurement at all."""
Feeds = dict[str, NDArray[Any]]


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


@dataclass(frozen=True)
class Feeding:
    """The samples as feeds for the inputs that a model has; NNCF empties the KV cache before each."""

    pieces: Sequence[Sequence[int]]
    inputs: frozenset[str]

    def __len__(self) -> int:
        return len(self.pieces)

    def __iter__(self) -> Iterator[Feeds]:
        for piece in self.pieces:
            n = len(piece)
            every: Feeds = {
                "input_ids": np.array([piece], np.int64),
                "attention_mask": np.ones((1, n), np.int64),
                "position_ids": np.arange(n, dtype=np.int64)[None],
                "beam_idx": np.zeros(1, np.int32),
            }
            yield {name: feed for name, feed in every.items() if name in self.inputs}
