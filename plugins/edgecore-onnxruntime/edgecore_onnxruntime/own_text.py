"""A calibration text that the model writes itself, for who has none: its own network, several texts at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint import Tokenizer
from edgecore.checkpoint.calibration import written
from edgecore.contract import Artifact, Progress
from edgecore_onnxruntime import layout, runtime


def own_text(artifact: Artifact, tokenizer: Tokenizer, count: int, length: int, progress: Progress) -> list[list[int]]:
    """`written` by the model."""
    names = layout.read(artifact)
    session = runtime.open_model(names.model, runtime.session_options(None, {"spinning": False}))
    ports = {port.name: port for port in session.get_inputs()}
    type = np.float16 if "float16" in ports[names.past[0]].type else np.float32
    cache = {name: np.zeros((count, names.kv_heads, 0, names.head_size), type) for name in names.past}
    past = 0

    def following(tokens: NDArray[np.int64]) -> NDArray[Any]:
        nonlocal past, cache
        now = past + tokens.shape[1]
        feeds: dict[str, Any] = {names.ids: tokens, names.mask: np.ones((count, now), np.int64)}
        if names.positions in ports:
            feeds[names.positions] = np.tile(np.arange(past, now, dtype=np.int64), (count, 1))
        try:
            logits, *present = session.run([names.logits, *names.present], feeds | cache)
        except runtime.ERRORS as error:
            raise runtime.failed(error) from None
        cache, past = dict(zip(names.past, present, strict=True)), now
        return np.asarray(logits[:, -1])

    return written(following, tokenizer, count, length, progress)
