"""Where the work runs, by the runtime's own account: its scheduler says for each operator where the result lies.

One token is decoded for it in a context of its own, so that no measurement carries the asking.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np

from edgecore.contract import Placement, PlacementSource
from edgecore_llamacpp import native
from edgecore_llamacpp.model import Context, Model, observer


def measured(model: Model, threads: int) -> Placement:
    """Share of operators by compute unit for one decoded token."""
    buffers: Counter[str] = Counter()
    kind, name = cache(native.op_name), cache(native.buffer_name)

    def count(tensor: native.Tensor, ask: bool) -> bool:
        if kind(tensor.op) not in native.VIEWS and tensor.buffer:
            buffers[name(tensor.buffer)] += 1
        return not ask  # never wants a result, so the graph runs whole

    context = Context(model, 64, threads, ubatch=32, observer=observer(count))
    try:
        context.decode(np.zeros(1, np.int32))
    finally:
        context.close()
    total = sum(buffers.values())
    units: Counter[str] = Counter()
    for buffer, number in buffers.items():
        units[unit(buffer)] += number
    detail = ", ".join(f"{number} operators in {buffer}" for buffer, number in buffers.most_common())
    return Placement(
        PlacementSource.RUNTIME_ASSIGNMENT,
        operators={name: number / total for name, number in units.items()},
        detail=f"ggml's scheduler, one token: {detail}",
    )


def unit(buffer: str) -> str:
    """`cpu` or `gpu`, by ggml's name of a buffer; memory of a GPU driver that lies on the host is the CPU's."""
    return "cpu" if buffer.startswith(("CPU", "AMX", "BLAS")) or buffer.endswith("_Host") else "gpu"
