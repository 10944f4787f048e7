"""Tensor models take `--inputs feeds.npz --out out.npz`."""

import numpy as np
import pytest

from support.cli import edgecore

onnx = pytest.importorskip("onnx", reason="needs onnx: python3 bootstrap.py test --only core")


@pytest.fixture(scope="module")
def matmul(tmp_path_factory):
    """y = x @ w, with w a fixed (3, 2) matrix."""
    from onnx import TensorProto, helper, numpy_helper

    w = np.arange(6, dtype=np.float32).reshape(3, 2)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "matmul",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(w, "w")],
    )
    path = tmp_path_factory.mktemp("onnx") / "matmul.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def test_outputs_are_written_by_name(matmul, tmp_path):
    x = np.eye(3, dtype=np.float32)
    np.savez(tmp_path / "feeds.npz", x=x)
    result = edgecore(
        "run", matmul, "--backend", "reference", "--inputs", tmp_path / "feeds.npz", "--out", tmp_path / "out.npz"
    )
    assert result.code == 0, result.err
    with np.load(tmp_path / "out.npz") as out:
        np.testing.assert_array_equal(out["y"], np.arange(6, dtype=np.float32).reshape(3, 2))


def test_a_feed_of_the_wrong_name_is_refused_and_nothing_written(matmul, tmp_path):
    np.savez(tmp_path / "feeds.npz", z=np.eye(3, dtype=np.float32))
    result = edgecore(
        "run", matmul, "--backend", "reference", "--inputs", tmp_path / "feeds.npz", "--out", tmp_path / "out.npz"
    )
    assert result.code == 2
    assert "x" in result.err
    assert not (tmp_path / "out.npz").exists()


def test_feeds_that_are_no_archive_are_refused(matmul, tmp_path):
    (tmp_path / "feeds.npz").write_bytes(b"not an archive")
    result = edgecore(
        "run", matmul, "--backend", "reference", "--inputs", tmp_path / "feeds.npz", "--out", tmp_path / "out.npz"
    )
    assert result.code == 2
    assert "feeds.npz" in result.err


def test_a_tensor_model_without_feeds_says_what_it_takes(matmul):
    result = edgecore("run", matmul, "--backend", "reference", "-p", "hello")
    assert result.code == 2
    assert "--inputs" in result.err
