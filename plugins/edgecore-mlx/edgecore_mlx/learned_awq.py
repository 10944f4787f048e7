"""AWQ, activation-aware weight quantization: columns that a text uses much are made larger before they are rounded, and
the norm or matrix before them smaller; then outliers are cut off where that loses less (mlx_lm.quant.awq)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.quant import awq

from edgecore.contract import UnsupportedModel
from edgecore_mlx.learned import Work
from edgecore_mlx.watching import watched


def learn(work: Work) -> list[str]:
    """Raises `UnsupportedModel`."""
    known = awq.AWQ_MODEL_CONFIGS.get(work.kind)
    if known is None:
        raise UnsupportedModel(
            f"mlx-lm's AWQ knows no architecture {work.kind!r}", supported=", ".join(awq.AWQ_MODEL_CONFIGS)
        )
    text = work.model[known.lm_key] if known.lm_key else work.model
    table = text.model[known.embed]
    text.model[known.embed] = _Embedded(table, text.args.hidden_size**0.5 if "gemma" in work.kind else 1.0)
    with watched(awq, work.progress, len(text.layers), "awq"):
        awq.awq_quantize(
            work.model,
            work.tokens,
            replace(known, lm_head=""),  # packed with the embedding, by the plan
            group_size=work.packing.group_size,
            bits=work.packing.bits,
        )
    text.model[known.embed] = table
    return []


class _Embedded(nn.Module):  # type: ignore[misc]
    """What goes into the first layer, where mlx-lm packs the table by a plan of its own and looks tokens up in it: it
    leaves out the factor of Gemma's embeddings (0.32.2, awq.py, line 425)."""

    def __init__(self, table: Any, scale: float) -> None:
        super().__init__()
        self._rows: Callable[[mx.array], mx.array] = lambda tokens: table(tokens) * scale

    def to_quantized(self, **_: Any) -> _Embedded:
        return self

    def __call__(self, tokens: mx.array) -> mx.array:
        return self._rows(tokens)
