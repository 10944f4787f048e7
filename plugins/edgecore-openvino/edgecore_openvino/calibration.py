"""Calibration text as what OpenVINO and NNCF run a language model on, and a text that the model writes itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgecore.checkpoint import Tokenizer
from edgecore.checkpoint.calibration import written
from edgecore.contract import Progress
from edgecore_openvino.runtime import compile_model, properties

Feeds = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Feeding:
    """The samples as feeds for the inputs that a model has; NNCF empties the KV cache before each."""

    pieces: Sequence[Sequence[int]]
    inputs: frozenset[str]

    def __len__(self) -> int:
        return len(self.pieces)

    def __iter__(self) -> Iterator[Feeds]:
        for piece in self.pieces:
            yield feeds(np.array([piece], np.int64), 0, self.inputs)


def feeds(tokens: NDArray[np.int64], past: int, inputs: frozenset[str]) -> Feeds:
    """`tokens` (count, n) of texts that have `past` tokens before them."""
    count, now = tokens.shape[0], past + tokens.shape[1]
    every: Feeds = {
        "input_ids": tokens,
        "attention_mask": np.ones((count, now), np.int64),
        "position_ids": np.tile(np.arange(past, now, dtype=np.int64), (count, 1)),
        "beam_idx": np.arange(count, dtype=np.int32),
    }
    return {name: feed for name, feed in every.items() if name in inputs}


def inputs(model: ov.Model) -> frozenset[str]:
    return frozenset(name for port in model.inputs for name in port.get_names())


def own_text(model: ov.Model, tokenizer: Tokenizer, count: int, length: int, progress: Progress) -> list[list[int]]:
    """`written` by the model."""
    request = compile_model(model, "cpu", properties("cpu", None, {"compile_cache": False})).create_infer_request()
    request.reset_state()
    known, past = inputs(model), 0

    def following(tokens: NDArray[np.int64]) -> NDArray[Any]:
        nonlocal past
        request.start_async(feeds(tokens, past, known))
        request.wait()
        past += tokens.shape[1]
        return np.asarray(request.get_output_tensor(0).data[:, -1])

    return written(following, tokenizer, count, length, progress)
