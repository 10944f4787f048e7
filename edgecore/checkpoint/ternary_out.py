"""Ternary weights on their way out, found by looking: whoever read them knows their numbers and not their form."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgecore.checkpoint.safetensors_out import AT_ONCE, NUMPY, Entry, array, plain, row_steps
from edgecore.checkpoint.storage import Bytes
from edgecore.checkpoint.tensors import Tensor


def finished(tensor: Tensor, dtype: str, scales: str = "F32") -> list[Entry]:
    """A matrix and its `weight_scale`: four rows to a byte where it is ternary, else as it is beside a scale of one.

    scales: the type of the scale where it holds it, F32 else; mlx_lm's kernels want that of the activations.
    """
    scale = scale_of(tensor) if tensor.shape[0] % 4 == 0 else None
    name = tensor.name.removesuffix(".weight") + ".weight_scale"
    if scale is None:
        return [plain(tensor.name, [tensor], dtype), array(name, scales, np.ones(1, NUMPY[scales]))]
    shape = (tensor.shape[0] // 4, *tensor.shape[1:])
    packed = Entry(tensor.name, "U8", shape, lambda: _packed(tensor, scale))
    with np.errstate(over="ignore"):
        kind = scales if float(scale.astype(NUMPY[scales])) == scale else "F32"
    return [packed, array(name, kind, np.array([scale], NUMPY[kind]))]


def scale_of(tensor: Tensor) -> np.float32 | None:
    """The one magnitude of all weights that are not zero; None where there are several. 1 where all are zero."""
    scale = np.float32(0)
    for start, stop in row_steps(tensor):
        sizes = np.abs(tensor.rows(start, stop))
        scale = scale or np.float32(sizes.max())
        if not ((sizes == 0) | (sizes == scale)).all():
            return None
    return scale or np.float32(1)


def _packed(tensor: Tensor, scale: np.float32) -> Iterator[Bytes]:
    """`derived.TERNARY`: byte row r has rows r, r + n, r + 2n and r + 3n, lowest bits first, -1 as 0."""
    count = tensor.shape[0] // 4
    step = max(1, AT_ONCE // (4 * tensor.shape[1]))
    for start in range(0, count, step):
        stop = min(start + step, count)
        packed = np.zeros((stop - start, tensor.shape[1]), np.uint8)
        for quarter in range(4):
            rows = tensor.rows(quarter * count + start, quarter * count + stop)
            packed |= (np.sign(rows / scale) + 1).astype(np.uint8) << np.uint8(2 * quarter)
        yield packed.reshape(-1)
