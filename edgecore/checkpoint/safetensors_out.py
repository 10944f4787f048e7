"""Writing a safetensors file in little memory: the library's `save_file` wants all tensors at once, and a conversion
must not need more than its largest tensor. Here each is made piece by piece while it is written.

Format: https://github.com/huggingface/safetensors#format. Eight bytes of length, that much JSON, the data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint.derived import Offset
from edgecore.checkpoint.storage import SAFETENSORS, Bytes, Floats
from edgecore.checkpoint.tensors import Tensor
from edgecore.contract.errors import UnsupportedPrecision
from edgecore.contract.progress import Progress, no_progress

NUMPY: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
"""What `cast` makes, by safetensors' names."""
AT_ONCE = 1 << 20
"""Elements that are made and written in one piece."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor to write, made while it is written."""

    name: str
    dtype: str
    """safetensors' name of the type."""
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[Bytes]]
    """The data, in order: contiguous arrays of any type."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * SAFETENSORS[self.dtype].size


def write_safetensors(
    path: Path, entries: Sequence[Entry], progress: Progress = no_progress, format: str = "pt"
) -> None:
    """Writes the file.

    progress: gets bytes written, and is where a cancelled conversion stops.
    format:   who names tensors so, as readers look for it in the file's metadata.
    """
    header: dict[str, Any] = {"__metadata__": {"format": format}}
    end = 0
    for entry in entries:
        start, end = end, end + entry.nbytes
        header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    done = 0
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            progress(done, end, "weights")
            for piece in entry.pieces():
                file.write(piece.data)
                done += piece.nbytes
    progress(end, end, "weights")


def plain(name: str, tensors: Sequence[Tensor], dtype: str, offset: float = 0.0) -> Entry:
    """The weights of `tensors`, one below the other, less `offset`, as `dtype`: the stored bytes where nothing changes.

    Raises `UnsupportedPrecision` (when it is written) where a number does not fit: float16 ends at 65504.
    """

    def pieces() -> Iterator[Bytes]:
        for tensor in tensors:
            yield from _pieces(tensor, dtype, offset)

    rows = sum(tensor.shape[0] for tensor in tensors)
    return Entry(name, dtype, (rows, *tensors[0].shape[1:]), pieces)


def array(name: str, dtype: str, values: NDArray[Any]) -> Entry:
    """What is in memory already."""
    return Entry(name, dtype, values.shape, lambda: iter([np.ascontiguousarray(values).reshape(-1).view(np.uint8)]))


def row_steps(tensor: Tensor) -> Iterable[tuple[int, int]]:
    """Rows of a tensor in steps of some `AT_ONCE` elements."""
    rows = tensor.shape[0]
    step = rows if len(tensor.shape) == 1 else max(1, AT_ONCE * rows // tensor.elements)
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def _pieces(tensor: Tensor, dtype: str, offset: float) -> Iterator[Bytes]:
    if tensor.storage == dtype and tensor.derive == (Offset(offset) if offset else None):
        stored = tensor.data.reshape(tensor.shape[0], -1)
        for start, stop in row_steps(tensor):
            some = stored[start:stop] if tensor.order is None else stored[tensor.order[start:stop]]
            tensor.check_finite(some)
            yield some
        return
    for start, stop in row_steps(tensor):
        rows = tensor.rows(start, stop)
        yield cast(tensor.name, rows - np.float32(offset) if offset else rows, dtype)


def cast(name: str, values: Floats, dtype: str) -> Bytes:
    """The bytes of `values` in another type. Raises `UnsupportedPrecision` naming the tensor."""
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(values, dtype=NUMPY[dtype])
    if dtype != "F32" and not np.isfinite(stored).all() and np.isfinite(values).all():
        raise UnsupportedPrecision(
            f"tensor {name!r} holds {np.abs(values).max():g}, which {dtype} cannot",
            supported="f32" if dtype == "BF16" else "f32, bf16",
        )
    return stored.reshape(-1).view(np.uint8)
