"""An OpenVINO IR in a bare loop, computed as exactly as the CPU can: what a graph is compared with the oracle by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from support.divergence import Floats, divergence, some_tokens

__all__ = ["EXACT", "Floats", "Model", "divergence", "some_tokens"]
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "INFERENCE_NUM_THREADS": "1",
}


class Model:
    """An IR as a bare loop runs it."""

    def __init__(self, xml: Path) -> None:
        self.compiled = ov.Core().compile_model(xml, "CPU", EXACT)
        self._request = self.compiled.create_infer_request()

    def logits(self, tokens: Sequence[int], chunks: Sequence[int]) -> Floats:
        """(T, vocab), computed in calls of so many tokens."""
        self._request.reset_state()
        answers, past = [], 0
        for count in chunks:
            answers.append(self.call([tokens[past : past + count]], past)[0])
            past += count
        return np.concatenate(answers)

    def call(
        self, ids: Sequence[Sequence[int]], past: int, filled: NDArray[np.int64] | None = None,
        beams: Sequence[int] | None = None,
    ) -> Floats:  # fmt: skip
        """(batch, T, vocab). filled: the attention mask; positions count what it holds."""
        batch, count = len(ids), len(ids[0])
        mask = np.ones((batch, past + count), np.int64) if filled is None else filled
        positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, past:]
        given = {
            "input_ids": np.array(ids, np.int64),
            "attention_mask": mask,
            "position_ids": np.ascontiguousarray(positions),
            "beam_idx": np.array(beams or range(batch), np.int32),
        }
        self._request.infer(given)
        return np.array(self._request.get_tensor("logits").data)

    def layers(self) -> Counter[str]:
        """How many operations of each type the device runs."""
        running = self.compiled.get_runtime_model().get_ordered_ops()
        return Counter(node.get_rt_info()["layerType"].astype(str) for node in running)
