"""GPTQ as mlx-lm has it (mlx_lm.quant.gptq), beside our own (usage.py): groups as `mx.quantize` finds them, and every
matrix measured in the unpacked model, all at once, so that memory holds the products of all their inputs."""

from __future__ import annotations

import mlx.nn as nn
from mlx_lm.quant import gptq

from edgecore_mlx.learned import Work, hidden, matrices
from edgecore_mlx.watching import watched


def learn(work: Work) -> list[str]:
    bits, size = work.packing.bits, work.packing.group_size
    every = matrices(work.model)
    others = [p for p, m in every.items() if isinstance(m, nn.Embedding) or work.plan.get(p) != work.packing]
    steps = len(work.pieces) + len(every) - len(others)
    with hidden(work.model, others), watched(gptq, work.progress, steps, "mlx_gptq"):
        gptq.gptq_quantize(work.model, work.tokens, bits, size, bits, size, batch_size=1)
    return []
