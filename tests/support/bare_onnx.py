"""A text model's ONNX in a bare loop: what a graph is compared with the oracle by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from support.divergence import Floats

LAST = "edgecore_last"


class Model:
    """A graph as a bare loop runs it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.session = open_session(file)
        self._past: dict[str, Floats] = {}

    def logits(self, tokens: Sequence[int], chunks: Sequence[int]) -> Floats:
        """(T, vocab), computed in calls of so many tokens."""
        answers, past = [], 0
        for count in chunks:
            answers.append(self.call([tokens[past : past + count]], past)[0])
            past += count
        return np.concatenate(answers)

    def call(
        self, ids: Sequence[Sequence[int]], past: int, filled: NDArray[np.int64] | None = None, last: int | None = None,
        room: int = 0,
    ) -> Floats:  # fmt: skip
        """(batch, T, vocab); 0 for `past` begins anew, with a cache of `room` positions. filled: the attention mask."""
        if not past:
            self._past = self.empty(len(ids), room)
        given = {
            "input_ids": np.array(ids, np.int64),
            "attention_mask": np.ones((len(ids), past + len(ids[0])), np.int64) if filled is None else filled,
            **({} if last is None else {LAST: np.array([last], np.int64)}),
        }
        names = [output.name for output in self.session.get_outputs()]
        found = dict(zip(names, self.session.run(names, given | self._past), strict=True))
        logits: Floats = found.pop("logits")
        self._past = {name.replace("present", "past_key_values"): value for name, value in found.items()}
        return logits

    def empty(self, batch: int, length: int) -> dict[str, Floats]:
        """A cache of so many positions, nothing in it."""
        past = [given for given in self.session.get_inputs() if given.name.startswith("past_key_values.")]
        return {p.name: np.zeros((batch, p.shape[1], length, p.shape[3]), np.float32) for p in past}

    def operators(self, out: Path) -> Counter[str]:
        """How many nodes of each kind ONNX Runtime runs, as it writes them to `out`."""
        open_session(self.file, out)
        return Counter(node.op_type for node in onnx.load(out, load_external_data=False).graph.node)


def open_session(file: Path, optimized: Path | None = None) -> ort.InferenceSession:
    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
