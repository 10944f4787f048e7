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


def convert(matmul, *more):
    return edgecore("convert", matmul, "--backend", "reference", "--allow-unverified", "--json", *more)


def test_a_shape_that_is_asked_for_is_fixed_and_makes_another_artifact(matmul, tmp_path):
    free, fixed = convert(matmul), convert(matmul, "--shape", "x=2,3")
    assert free.code == fixed.code == 0, free.err + fixed.err
    assert free.json["id"] != fixed.json["id"]
    assert fixed.json["id"] == convert(matmul, "--shape", "x=2,3").json["id"]
    np.savez(tmp_path / "feeds.npz", x=np.eye(3, dtype=np.float32))
    result = edgecore(
        "run", fixed.json["id"], "--allow-unverified", "--inputs", tmp_path / "feeds.npz", "--out", tmp_path / "out.npz"
    )
    assert result.code == 2
    assert "'x' has shape [3, 3]" in result.err, result.err
    assert "supported: [2, 3]" in result.err


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ("x=2,4", "input 'x' cannot have shape [2, 4]"),
        ("z=2,3", "the model has no input 'z'"),
        ("x", "'x' is not INPUT=N,N,..."),
        ("x=2,n", "'x=2,n' is not INPUT=N,N,..."),
    ],
)
def test_a_shape_that_makes_no_sense_is_refused(matmul, shape, said):
    result = convert(matmul, "--shape", shape)
    assert result.code == 2
    assert said in result.json["what"]


def test_without_a_precision_a_tensor_model_gets_one_that_tensor_models_have(matmul):
    """The reference converts text to f16 too; ONNX it keeps in f32."""
    for verb in ("convert", "build"):
        result = edgecore(verb, matmul, "--backend", "reference", "--allow-unverified", "--json")
        assert result.code == 0, result.err
        assert result.json["precision"] == "f32"


def test_a_precision_that_only_text_models_have_is_refused_naming_the_others(matmul):
    result = convert(matmul, "--precision", "f16")
    assert result.code == 2
    assert result.json["what"] == "backend 'reference' has no precision 'f16' for tensor models"
    assert result.json["supported"] == "f32, full"
