"""Logits as files: float32 (T, vocab) for int64 (T,), so that anyone can compare two backends."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgecore.contract.errors import BadRequest, CorruptModel, DoesNotFit, ModelNotFound
from edgecore.contract.progress import Progress, no_progress
from edgecore.contract.sessions import Logits, TextSession
from edgecore.quality.divergence import chunks


def read_tokens(path: Path) -> list[int]:
    """Token ids from a .npy file. Raises `ModelNotFound`, `BadRequest` for anything but integers of shape (T,)."""
    array = _load(path)
    if array.ndim != 1 or array.dtype.kind not in "iu" or array.size == 0:
        raise BadRequest(f"{path}: {array.dtype} {array.shape}", supported="int64 of shape (T,), T at least 1")
    return [int(t) for t in array]


def write_logits(session: TextSession, tokens: Sequence[int], out: Path, progress: Progress = no_progress) -> list[int]:
    """Stream the logits of every position into `out`; the file appears whole or not at all. Answers its shape."""
    shape = (len(tokens), session.vocab_size)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
        done = 0
        for chunk in session.score(tokens):
            array[done : done + len(chunk)] = chunk
            done += len(chunk)
            progress(done, len(tokens), "logits")
        array.flush()
        del array
        os.replace(partial, out)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EROFS):
            raise BadRequest(f"{out}: {error.strerror}", supported="a file name in a folder that exists") from error
        raise DoesNotFit(
            f"{out}: {error.strerror or error}", supported=f"room for {np.prod(shape) * 4:,} bytes"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return list(shape)


def stored_logits(path: Path, tokens: Sequence[int]) -> Iterator[Logits]:
    """What `write_logits` wrote, in chunks of (chunk, vocab). Raises `CorruptModel` when it is for another length."""
    array = _load(path)
    if array.ndim != 2 or len(array) != len(tokens):
        raise CorruptModel(f"{path}: {array.dtype} {array.shape}", supported=f"float32 of shape ({len(tokens)}, vocab)")
    for block in chunks(array):
        yield np.asarray(block, dtype=np.float32)


def _load(path: Path) -> NDArray[np.generic]:
    try:
        array: NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ModelNotFound(f"{path} does not exist", supported="a .npy file") from None
    except (ValueError, EOFError, OSError) as error:
        raise CorruptModel(f"{path} is not a .npy file: {error}", supported="what numpy.save writes") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise CorruptModel(f"{path} is an .npz archive", supported="a .npy file, what numpy.save writes")
    return array
