"""What must hold for any bytes whatever, one function a reader: the mutations in tests/checkpoint and the fuzzer in
fuzz/, which is guided by coverage, call the same ones.

Each returns True where the bytes were accepted and False where they were refused with a typed error that names the
file; anything else is raised.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np

from edgecore.checkpoint import open_checkpoint
from edgecore.checkpoint.gguf_file import GgufArray, parse_gguf
from edgecore.checkpoint.safetensors_file import parse_index, parse_safetensors
from edgecore.checkpoint.storage import Bytes, Storage
from edgecore.contract.errors import CorruptModel, EdgecoreError, ModelNotFound, UnsupportedModel

GGUF = Path("hostile.gguf")
SAFETENSORS = Path("hostile.safetensors")
INDEX = Path("hostile.index.json")
MEMORY = Path("/dev/shm")
BETWEEN = b"\n\xff\n"
"""Stands between an index and its shard; no text of either can hold it, the shard's data may."""
LONGEST_ERROR = 2_000
"""Characters. An error quotes a file, it does not repeat it."""


def gguf(data: bytes) -> bool:
    """Every tensor of an accepted file is inside it and apart from the others; every array can be decoded."""
    try:
        header = parse_gguf(GGUF, data)
        for value in header.metadata.values():
            if isinstance(value, GgufArray):
                assert len(value.read()) == value.count
    except (CorruptModel, UnsupportedModel) as error:
        return _refused(error, GGUF)
    assert all(name == tensor.name for name, tensor in header.tensors.items())
    _check(data, ((t.shape, t.type, t.data) for t in header.tensors.values()))
    return True


def safetensors(data: bytes) -> bool:
    """As `gguf`; tensors cover the data without a hole."""
    try:
        tensors = parse_safetensors(SAFETENSORS, data)
    except (CorruptModel, UnsupportedModel) as error:
        return _refused(error, SAFETENSORS)
    assert all(name == tensor.name for name, tensor in tensors.items())
    covered = _check(data, ((t.shape, t.type, t.data) for t in tensors.values()))
    assert covered == len(data) - 8 - int.from_bytes(data[:8], "little")
    return True


def index(data: bytes) -> bool:
    """An index and, behind `BETWEEN`, one shard. No accepted name of a shard leads anywhere but into the folder."""
    text, _, shard = data.partition(BETWEEN)
    try:
        shards = parse_index(INDEX, text.decode("utf-8", "replace"))
    except CorruptModel as error:
        return _refused(error, INDEX)
    for name in set(shards.values()):
        assert Path("/folder", name).parent == Path("/folder")
        assert (Path("/folder") / name).resolve().parent == Path("/folder")
    return safetensors(shard)


def config(data: bytes) -> bool:
    """A folder of a config and no weights: whatever the config says, it is either refused or they are asked for."""
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=MEMORY if MEMORY.is_dir() else None) as made:
        folder = Path(made)
        file = folder / "config.json"
        file.write_bytes(data)
        try:
            open_checkpoint(folder)
        except ModelNotFound:
            return True
        except (CorruptModel, UnsupportedModel) as error:
            return _refused(error, file)
        finally:
            assert file.read_bytes() == data
        raise AssertionError("a folder without weights was opened")


TARGETS: dict[str, Callable[[bytes], bool]] = {
    "gguf": gguf,
    "safetensors": safetensors,
    "index": index,
    "config": config,
}


def _refused(error: EdgecoreError, file: Path) -> bool:
    assert error.what.startswith(str(file)), error.what
    assert len(error.what) < LONGEST_ERROR, len(error.what)
    error.what.encode()
    return False


def _check(data: bytes, tensors: Iterable[tuple[tuple[int, ...], Storage, Bytes]]) -> int:
    """Bytes in all tensors, each as long as its shape says, inside the data, and apart from the others."""
    begin = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    spans = []
    for shape, storage, stored in tensors:
        assert all(axis > 0 for axis in shape)
        rows = 1
        for axis in shape[:-1]:
            rows *= axis
        assert stored.nbytes == rows * storage.row_bytes(shape[-1])
        start = stored.__array_interface__["data"][0] - begin
        assert 0 <= start <= start + stored.nbytes <= len(data)
        spans.append((start, start + stored.nbytes))
    spans.sort()
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    return sum(end - start for start, end in spans)
