"""What the scripts share that ask whether our 4 bits lose less than a toolkit's own: texts, scoring, the table
(`openvino_int4.py`, `onnxruntime_int4.py`).

Three texts of different kinds, of which calibration has seen nothing, in windows of 512 tokens given 64 at a time, so
that the KV cache is read as in generation. All candidates go along with the reference; no logits are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pydoc_data.topics import topics

import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint import Tokenizer
from edgecore.quality import evaluation_text
from edgecore.quality.divergence import Accumulator, LogProbs
from edgecore_conformance import fixtures

GOAL = 0.8
"""Of the toolkit's KL."""
WINDOW, CHUNK, MOST = 512, 64, 1536
"""Tokens: scored together, given at once, taken of a text."""
Logits = Callable[[Sequence[int]], Iterator[NDArray[np.float32]]]
"""Of a window, chunk by chunk, from an empty KV cache."""


def texts() -> tuple[dict[str, str], str]:
    """Texts to score by name, and one to calibrate on: of Python's help every eighth page, of the King James Bible a
    part that follows the scored one, in turns. Of the first kind, prose and code of our own, it has nothing."""
    pages = [topics[name] for name in sorted(topics)]
    seen = [_pieces(text) for text in (fixtures.calibration_text().read_text(encoding="utf-8"), "\n".join(pages[::8]))]
    turns = [part for both in zip_longest(*seen, fillvalue="") for part in both]
    scored = {"own": evaluation_text("full")[0], "bible": fixtures.held_out_text(), "manual": "\n".join(pages[1::8])}
    return scored, "\n".join(turns)


def _pieces(text: str, size: int = 2000) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


@dataclass
class Arm:
    """One file with one set of kernels, and what it was found to lose: by text, and over all."""

    label: str
    open: Callable[[], Logits]
    size: int
    """Bytes of graph and weights."""
    found: dict[str, Accumulator] = field(default_factory=dict)

    @property
    def kl(self) -> float:
        return self.found["all"].result().kl_mean


def score(reference: Arm, arms: Sequence[Arm], tokens: Mapping[str, list[int]]) -> None:
    """All arms in lockstep with the reference."""
    exact, others = reference.open(), [arm.open() for arm in arms]
    for name, ids in tokens.items():
        for start in range(0, len(ids), WINDOW):
            window = ids[start : start + WINDOW]
            streams = zip(exact(window), *(other(window) for other in others), strict=True)
            for number, (truth, *rows) in enumerate(streams):
                true = LogProbs(truth)
                for arm, row in zip(arms, rows, strict=True):
                    for text in (name, "all"):
                        arm.found.setdefault(text, Accumulator()).add(true, LogProbs(row), window, number * CHUNK)


def tokenized(tokenizer: Tokenizer, scored: Mapping[str, str], calibration: str) -> dict[str, list[int]]:
    """What is scored of each text; prints which texts these are."""
    tokens = {name: tokenizer.encode(text, add_special=False)[:MOST] for name, text in scored.items()}
    for name, text in {**scored, "calibration": calibration}.items():
        count = len(tokens[name]) if name in tokens else len(tokenizer.encode(text, add_special=False))
        print(f"text {name}: {count} tokens, SHA-256 {hashlib.sha256(text.encode()).hexdigest()}")
    return tokens


def table(arms: Sequence[Arm], names: Sequence[str]) -> None:
    print(f"{'file, kernels':26}{'bytes':>12}{'tokens':>8}{'KL':>9}{'p99':>8}{'top-1':>8}", *(f"{n:>9}" for n in names))
    for arm in arms:
        whole = arm.found["all"].result()
        each = "".join(f"{arm.found[name].result().kl_mean:9.4f}" for name in names)
        print(
            f"{arm.label:26}{arm.size:12}{whole.tokens:9}{whole.kl_mean:9.4f}{whole.kl_p99:9.3f}{whole.top1:9.1%}{each}"
        )
