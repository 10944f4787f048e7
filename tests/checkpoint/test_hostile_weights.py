"""A weight that is NaN or infinite makes every answer NaN, and a converter would pass it on: wherever weights are given
out, the file and the tensor are named instead.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from edgecore.checkpoint import Tensor, open_checkpoint, write_folder
from edgecore.checkpoint.storage import GGML, Storage, dequantize, is_finite
from edgecore.contract.errors import CorruptModel

from support.gguf_files import write_gguf
from support.tiny import tiny_llama

NORM = "model.norm.weight"
BAD = {
    "F32": {"NaN": 0x7FC00000, "-NaN": 0xFFFFFFFF, "signalling": 0x7F800001, "inf": 0x7F800000, "-inf": 0xFF800000},
    "F16": {"NaN": 0x7E00, "-NaN": 0xFE00, "signalling": 0x7C01, "inf": 0x7C00, "-inf": 0xFC00},
    "BF16": {"NaN": 0x7FC0, "-NaN": 0xFFC0, "signalling": 0x7F81, "inf": 0x7F80, "-inf": 0xFF80},
}  # fmt: skip
FLOATS = [(kind, name) for kind, values in BAD.items() for name in values]
BLOCKS = [storage for storage in GGML.values() if storage.readable and storage.block > 1]


def _spoil(folder: Path, name: str, at: int, bits: int, width: int) -> Path:
    """The folder with one element of a tensor replaced by these bits."""
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    length = int.from_bytes(data[:8], "little")
    start = 8 + length + json.loads(data[8 : 8 + length])[name]["data_offsets"][0] + at * width
    data[start : start + width] = bits.to_bytes(width, "little")
    file.write_bytes(data)
    return file


@pytest.mark.parametrize(("dtype", "value"), FLOATS)
@pytest.mark.parametrize("name", [NORM, "model.layers.0.mlp.up_proj.weight"])
def test_one_weight_that_is_no_number_is_an_error_wherever_it_is_read(
    dtype: str, value: str, name: str, tmp_path: Path
) -> None:
    folder = tiny_llama(tmp_path, layers=1, hidden=64, intermediate=64, vocab=280, dtype=dtype)
    file = _spoil(folder, name, 63, BAD[dtype][value], 4 if dtype == "F32" else 2)
    before = file.read_bytes()
    with open_checkpoint(folder) as model:
        tensor = model.tensors[name]
        for read in (tensor.read, tensor.raw, lambda: tensor.rows(0, 1)):
            with pytest.raises(CorruptModel, match="NaN or infinite") as caught:
                read()
            assert caught.value.what.startswith(f"{file}: tensor {name!r}")
        if len(tensor.shape) > 1:
            assert np.isfinite(tensor.rows(1, 64)).all()
        for other in model.tensors.values():
            if other.name != name:
                assert np.isfinite(other.read()).all()
    assert file.read_bytes() == before


@pytest.mark.parametrize("dtype", BAD)
def test_the_largest_and_smallest_numbers_are_weights(dtype: str) -> None:
    bits, infinity = ("<u4", 0x7F800000) if dtype == "F32" else ("<u2", BAD[dtype]["inf"])
    sign = 1 << (31 if dtype == "F32" else 15)
    good = np.array([0, 1, infinity - 1, sign, sign + 1, sign + infinity - 1], bits)
    storage = next(s for s in GGML.values() if s.name == dtype)
    tensor = Tensor("t", (2, 3), storage, good.view(np.uint8))
    assert np.isfinite(tensor.read()).all()
    assert tensor.raw().tobytes() == good.tobytes()


@pytest.mark.parametrize("storage", BLOCKS, ids=lambda s: s.name)
def test_a_block_is_finite_exactly_where_its_values_are(storage: Storage) -> None:
    """Random bytes hold every kind of scale; what is told from the bytes is what dequantizing says, block by block."""
    if storage.name not in gguf.GGMLQuantizationType.__members__:
        pytest.skip(f"needs a newer gguf package, one that knows {storage.name}: pip install -U gguf")
    draw = np.random.default_rng(storage.size)
    blocks = draw.integers(0, 256, (4000, storage.size), np.uint8)
    for at in storage.scales:
        blocks[::5, at + 1] |= 0x7C
    with warnings.catch_warnings(action="ignore"):
        finite = np.asarray(np.isfinite(dequantize(storage, blocks)).all(axis=1))
    assert finite.any()
    assert finite.all() == (storage.name == "NVFP4")
    assert [is_finite(storage, block) for block in blocks] == finite.tolist()
    assert is_finite(storage, blocks[finite])
    assert is_finite(storage, blocks) == finite.all()


def test_a_bad_scale_is_an_error_in_the_last_block_of_a_large_tensor_too() -> None:
    storage = next(s for s in GGML.values() if s.name == "Q8_0")
    data = np.ones(1024 * 1024 // 32 * 34, np.uint8)
    tensor = Tensor("t", (1024, 1024), storage, data, file=Path("m.gguf"))
    assert np.isfinite(tensor.read()).all()
    data[-33] = 0x7C
    for read in (tensor.read, tensor.raw, lambda: tensor.rows(1023, 1024)):
        with pytest.raises(CorruptModel, match=r"^m\.gguf: tensor 't': holds weights that are NaN or infinite"):
            read()
    assert np.isfinite(tensor.rows(0, 1023)).all()


def test_weights_at_an_odd_address_are_looked_at_too() -> None:
    for dtype, width in (("F32", 4), ("F16", 2), ("BF16", 2)):
        storage = next(s for s in GGML.values() if s.name == dtype)
        odd = np.zeros(1 + 64 * width, np.uint8)[1:]
        assert not Tensor("t", (8, 8), storage, odd).read().any()
        odd[-width:] = np.frombuffer(BAD[dtype]["NaN"].to_bytes(width, "little"), np.uint8)
        with pytest.raises(CorruptModel, match="tensor 't'"):
            Tensor("t", (8, 8), storage, odd).read()


def test_derived_weights_that_overflow_are_an_error() -> None:
    class Doubled:
        def __call__(self, tensor: Tensor, start: int, stop: int) -> NDArray[np.float32]:
            with np.errstate(over="ignore"):
                return tensor.stored(start, stop) * np.float32(2)

    storage = next(s for s in GGML.values() if s.name == "F32")
    largest = np.full((2, 2), np.finfo(np.float32).max)
    tensor = Tensor("t", (2, 2), storage, largest.view(np.uint8).reshape(-1), file=Path("m"))
    assert np.isfinite(tensor.read()).all()
    with pytest.raises(CorruptModel, match="m: tensor 't'"):
        replace(tensor, derive=Doubled()).read()


def test_a_weight_in_a_gguf_file_that_is_no_number_is_named_with_the_file(tmp_path: Path) -> None:
    with open_checkpoint(tiny_llama(tmp_path / "tiny", layers=1)) as model:
        file = write_gguf(model, tmp_path / "m.gguf", "F16")
    with open_checkpoint(file) as model:
        last = max(model.tensors.values(), key=lambda t: t.data.ctypes.data)  # nothing but padding lies behind it
        behind = file.read_bytes().rindex(last.data[-64:].tobytes()) + 60
    data = bytearray(file.read_bytes())
    data[behind : behind + 4] = b"\xff" * 4  # NaN in float16 and in float32
    file.write_bytes(data)
    with open_checkpoint(file) as model, pytest.raises(CorruptModel, match=rf"m\.gguf: tensor '{last.name}'"):
        model.tensors[last.name].read()


def test_a_folder_is_not_written_from_weights_that_are_no_numbers(tmp_path: Path) -> None:
    """Where the type stays as it is the bytes are copied, and looked at all the same."""
    folder = tiny_llama(tmp_path / "tiny", layers=1, dtype="F16")
    _spoil(folder, "model.layers.0.mlp.up_proj.weight", 70, BAD["F16"]["NaN"], 2)
    (tmp_path / "out").mkdir()
    with open_checkpoint(folder) as model, pytest.raises(CorruptModel, match="NaN or infinite"):
        write_folder(model, tmp_path / "out", "f16")
