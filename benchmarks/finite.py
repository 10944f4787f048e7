"""What the look for NaN and infinite weights costs, as a share of reading the tensor: `python benchmarks/finite.py`.

For some storage types, the best of several runs with the look and without it, on 32 million weights in memory.
"""

from __future__ import annotations

import time
from unittest import mock

import numpy as np

from edgecore.checkpoint import Tensor, tensors
from edgecore.checkpoint.storage import GGML

ROWS, COLUMNS, RUNS = 16384, 2048, 15


def main() -> None:
    draw = np.random.default_rng(0)
    print(f"{'type':8} {'read, ms':>9} {'looked at, ms':>14} {'more':>7} {'raw, ms':>8}")
    for storage in [s for s in GGML.values() if s.name in ("F32", "F16", "BF16", "Q8_0", "Q4_1", "Q4_K", "Q6_K")]:
        size = ROWS * COLUMNS // storage.block * storage.size
        tensor = Tensor("t", (ROWS, COLUMNS), storage, draw.integers(0, 60, size, np.uint8))
        plain, looked, raw = [], [], []
        for _ in range(RUNS):
            with mock.patch.object(tensors, "is_finite", return_value=True):
                plain.append(_seconds(tensor.read))
            looked.append(_seconds(tensor.read))
            raw.append(_seconds(tensor.raw))
        a, b = min(plain), min(looked)
        print(f"{storage.name:8} {a * 1e3:9.1f} {b * 1e3:14.1f} {100 * (b / a - 1):6.1f}% {min(raw) * 1e3:8.1f}")


def _seconds(read: object) -> float:
    assert callable(read)
    begin = time.perf_counter()
    read()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
