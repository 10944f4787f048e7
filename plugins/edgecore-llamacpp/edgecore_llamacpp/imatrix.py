"""The importance matrix: how much a column of a weight matters, as the mean square of what it is multiplied with.

As llama.cpp's `imatrix` tool does it, through the same library: while a text is computed, the scheduler shows every
matrix multiplication, and the squares of its input are summed by column. Chunks of the text stand alone, each beginning
with BOS where the model wants one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from edgecore.contract import BadRequest, EdgecoreError, Progress
from edgecore_llamacpp import native
from edgecore_llamacpp.model import Context, Model, observer
from edgecore_llamacpp.native import libllama

CHUNK = 512
"""Tokens computed together, the tool's default."""
LEAST = 32
"""Tokens of a text that is worth a measurement at all."""
F32 = 0
Importance = Mapping[str, NDArray[np.float32]]
"""GGUF tensor name to float32 (columns,)."""


def measure(
    model: Model, text: str, threads: int, progress: Progress, *, chunk: int = CHUNK, most_chunks: int = 0
) -> Importance:
    """Importance of every matrix of the layers.

    most_chunks: stop after that many chunks; 0 takes the whole text, whose last, incomplete chunk is left out.
    Raises `BadRequest` for a text that is too short, `Cancelled` through `progress`.
    """
    ids = _tokens(model, text)
    chunk = min(chunk, model.trained_context, len(ids))
    if chunk < LEAST:
        raise BadRequest(
            f"the calibration text has {len(ids)} tokens", supported=f"at least {LEAST}, better {20 * CHUNK}"
        )
    count = len(ids) // chunk
    count = min(count, most_chunks or count)
    watching = _Watching(progress, count * chunk)
    context = Context(model, chunk, threads, observer=observer(watching.saw))
    try:
        for number in range(count):
            some = ids[number * chunk : (number + 1) * chunk].copy()
            if libllama.llama_vocab_get_add_bos(model.vocab):
                some[0] = libllama.llama_vocab_bos(model.vocab)
            watching.done = number * chunk
            context.clear()
            try:
                context.decode_all(some, 0)
            except EdgecoreError:
                if watching.raised is None:
                    raise
            if watching.raised is not None:
                raise watching.raised
    finally:
        context.close()
    progress(count * chunk, count * chunk, STAGE)
    return watching.means()


STAGE = "importance matrix"


def _tokens(model: Model, text: str) -> NDArray[np.int32]:
    data = text.encode()
    buffer = (libllama.llama_token * (len(data) + 16))()
    count = libllama.llama_tokenize(model.vocab, data, len(data), buffer, len(buffer), True, False)
    return np.array(buffer[:count], np.int32)


@dataclass
class _Watching:
    """What the scheduler's calls add up to. They come from native code: nothing may be raised through it."""

    progress: Progress
    total: int
    done: int = 0
    sums: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    last: tuple[tuple[int, int], NDArray[np.float64], int] = ((-1, 0), np.empty(0), 0)
    """The input seen last: its chunk and address, its sum of squares by column, its rows."""
    raised: BaseException | None = None

    def saw(self, tensor: native.Tensor, ask: bool) -> bool:
        if ask:
            return _op(tensor.op) == native.OP_MUL_MAT and _wanted(tensor)
        try:
            self._add(tensor)
            self.progress(self.done, self.total, STAGE)
        except BaseException as error:  # raised by `measure`, once native code has returned
            self.raised = error
            return False
        return True

    def _add(self, tensor: native.Tensor) -> None:
        name = _name(tensor)
        data = tensor.src[1].contents
        key = (self.done, ctypes.addressof(data))
        if key != self.last[0]:  # q, k and v have one input, and so have gate and up
            x = _rows(data)
            self.last = (key, np.einsum("ij,ij->j", x, x).astype(np.float64), len(x))
        _, squares, rows = self.last
        self.sums[name] = self.sums.get(name, 0.0) + squares
        self.counts[name] = self.counts.get(name, 0) + rows

    def means(self) -> Importance:
        means = {name: (total / self.counts[name]).astype(np.float32) for name, total in self.sums.items()}
        if bad := [name for name, mean in means.items() if not np.isfinite(mean).all()]:
            raise BadRequest(f"the activations of {bad[0]} are not finite on this text")
        return means


_op = cache(native.op_name)


def _wanted(tensor: native.Tensor) -> bool:
    """Matrices of the layers, over batches that the tool takes too: 16 rows and more of float32."""
    data = tensor.src[1].contents
    return data.type == F32 and data.ne[1] >= 16 and _name(tensor).startswith("blk.")


def _name(tensor: native.Tensor) -> str:
    """The weight's name without what devices put around it: `CUDA0#blk.0.attn_k.weight#0`."""
    name: str = tensor.src[0].contents.name.decode("utf-8", "replace")
    return name.split("#")[1] if "#" in name else name


def _rows(data: native.Tensor) -> NDArray[np.float32]:
    """A view of an activation tensor in host memory, (rows, columns); a copy where memory is a device's."""
    columns, rows, planes = data.ne[0], data.ne[1], data.ne[2] * data.ne[3]
    if not native.is_host(data):
        flat = native.read_device(data)
        return flat.reshape(-1, columns)
    start = ctypes.cast(data.data, ctypes.POINTER(ctypes.c_float))
    base = np.ctypeslib.as_array(start, (1,))
    shape, strides = (data.ne[3], data.ne[2], rows, columns), (data.nb[3], data.nb[2], data.nb[1], data.nb[0])
    return np.asarray(as_strided(base, shape, strides, writeable=False).reshape(planes * rows, columns))


def read_text(path: Path) -> str:
    """Calibration data of a text model. Raises `BadRequest`."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"calibration data {path}: {error}", supported="a file of UTF-8 text") from None
