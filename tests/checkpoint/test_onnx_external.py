"""Weights beside an ONNX file are looked at before a runtime reads them: where they lie, and whether they are whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgecore.checkpoint import read_onnx
from edgecore.checkpoint.onnx_file import external_files, read_header
from edgecore.contract import CorruptModel

WEIGHT = np.arange(16, dtype=np.float32)
ROWS = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)


def outside(**entries: object) -> onnx.TensorProto:
    """`w`, 4 x 4 in float32, whose data lie where `entries` say."""
    tensor = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=(4, 4))
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def in_initializer(tensor: onnx.TensorProto) -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [], [ROWS], [tensor])


def in_attribute(tensor: onnx.TensorProto) -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Constant", [], ["y"], value=tensor)], "g", [], [ROWS])


def in_branch(tensor: onnx.TensorProto) -> onnx.GraphProto:
    branch = in_initializer(tensor)
    return helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)], "g", [], [ROWS]
    )


def write(folder: Path, tensor: onnx.TensorProto, where: Callable[..., onnx.GraphProto] = in_initializer) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "m.onnx"
    path.write_bytes(helper.make_model(where(tensor)).SerializeToString())
    return path


@pytest.mark.parametrize("where", [in_initializer, in_attribute, in_branch])
def test_whole_weights_beside_the_file_are_found_wherever_it_speaks_of_them(
    tmp_path: Path, where: Callable[..., onnx.GraphProto]
) -> None:
    path = write(tmp_path, outside(location="w.bin", offset=64), where)
    (tmp_path / "w.bin").write_bytes(bytes(64) + WEIGHT.tobytes())
    assert read_header(path).external == external_files(path) == ("w.bin",)
    (tmp_path / "w.bin").write_bytes(bytes(127))
    with pytest.raises(CorruptModel, match=r"w\.bin holds 127 bytes, m\.onnx speaks of 128: it is truncated"):
        read_header(path)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(CorruptModel, match=r"w\.bin, which is not beside it"):
        read_header(path)


@pytest.mark.parametrize("where", [in_initializer, in_attribute, in_branch])
@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "sub/../../w.bin", "link.bin"])
def test_weights_outside_the_folder_are_never_read(
    tmp_path: Path, where: Callable[..., onnx.GraphProto], location: str
) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    path = write(tmp_path / "model", outside(location=location), where)
    os.symlink("../w.bin", tmp_path / "model" / "link.bin")
    with pytest.raises(CorruptModel, match=f"{location}.*outside its folder"):
        read_header(path)


@pytest.mark.parametrize("location", ["w.bin\0", "a" * 256, "sub/" + "é" * 200])
def test_what_is_no_files_name_is_refused(tmp_path: Path, location: str) -> None:
    with pytest.raises(CorruptModel, match="no file's name"):
        read_header(write(tmp_path / "model", outside(location=location), in_initializer))


def test_a_file_that_is_a_link_may_have_weights_where_it_really_lies(tmp_path: Path) -> None:
    """As in a hub's cache, where snapshots are links into one folder of blobs."""
    write(tmp_path / "blobs", outside(location="w.bin")).rename(tmp_path / "blobs" / "aaa")
    (tmp_path / "blobs" / "bbb").write_bytes(WEIGHT.tobytes())
    (tmp_path / "snapshot").mkdir()
    for name, blob in (("m.onnx", "aaa"), ("w.bin", "bbb")):
        os.symlink(f"../blobs/{blob}", tmp_path / "snapshot" / name)
    assert read_header(tmp_path / "snapshot" / "m.onnx").external == ("w.bin",)


@pytest.mark.parametrize("key", ["offset", "length"])
@pytest.mark.parametrize("value", ["-8", "abc", "", "1e3", "9" * 30, "٣"])
def test_offsets_and_lengths_that_are_no_numbers_are_named(tmp_path: Path, key: str, value: str) -> None:
    path = write(tmp_path, outside(location="w.bin", **{key: value}))
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    with pytest.raises(CorruptModel, match=f"external_data: {key} is"):
        read_header(path)


def test_a_folder_or_a_pipe_is_no_file_of_weights(tmp_path: Path) -> None:
    path = write(tmp_path, outside(location="w.bin"))
    (tmp_path / "w.bin").mkdir()
    with pytest.raises(CorruptModel, match="not beside it"):
        read_header(path)
    (tmp_path / "w.bin").rmdir()
    os.mkfifo(tmp_path / "w.bin")
    with pytest.raises(CorruptModel, match="not beside it"):
        read_header(path)


def test_graphs_in_graphs_without_end_are_refused(tmp_path: Path) -> None:
    def framed(field: int, inner: bytes) -> bytes:
        size, length = len(inner), b""
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        return bytes([field << 3 | 2]) + length + bytes([size]) + inner

    graph = b""
    for _ in range(2000):
        graph = framed(1, framed(5, framed(6, graph)))  # a node's attribute's graph
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x0a" + framed(7, graph))
    for read in (read_header, read_onnx):
        with pytest.raises(CorruptModel, match="messages deep"):
            read(path)
