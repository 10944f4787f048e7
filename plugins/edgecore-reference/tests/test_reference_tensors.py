"""Tensor models through onnx's evaluator: right answers, and an error that names the input for every wrong feed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgecore.contract import (
    BadRequest,
    ConvertLimits,
    CorruptModel,
    TensorSpec,
    UnsupportedModel,
    UnsupportedPrecision,
)

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)


def graph(path: Path, weight: np.ndarray = WEIGHT, op: str = "MatMul", domain: str = "") -> Path:
    """`y = x @ w + z`, x (batch, 3), z (batch, 4)."""
    made = helper.make_graph(
        [
            helper.make_node(op, ["x", "w"], ["product"], domain=domain),
            helper.make_node("Add", ["product", "z"], ["y"]),
        ],
        "test",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 4]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    opsets = [helper.make_opsetid("", 21)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    onnx.save(helper.make_model(made, opset_imports=opsets, ir_version=10), path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return graph(tmp_path / "model.onnx")


def feeds(batch: int = 2, **other: Any) -> dict[str, Any]:
    return {"x": np.ones((batch, 3), np.float32), "z": np.zeros((batch, 4), np.float32), **other}


def test_it_computes_what_the_graph_says(model: Path, run: Any) -> None:
    with run(model) as session:
        assert session.inputs == (TensorSpec("x", "float32", ("batch", 3)), TensorSpec("z", "float32", ("batch", 4)))
        assert session.outputs == (TensorSpec("y", "float32", ("batch", 4)),)
        for batch in (1, 5):
            answer = session(feeds(batch))["y"]
            assert np.array_equal(answer, np.ones((batch, 3), np.float32) @ WEIGHT)
        assert session.placement.share("cpu") == 1.0


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"x": np.ones((2, 3), np.float64)}, "'x' has type float64"),
        ({"x": np.ones((2, 5), np.float32)}, r"'x' has shape \[2, 5\]"),
        ({"x": np.ones(3, np.float32)}, r"'x' has shape \[3\]"),
        ({"z": np.ones((3, 4), np.float32)}, r"'z' has shape \[3, 4\]"),
        ({"surplus": np.ones(1, np.float32)}, "no input 'surplus'"),
        ({"x": [[1.0, 2.0, 3.0]]}, "'x' is no array: list"),
    ],
)
def test_a_wrong_feed_is_an_error_that_names_the_input(model: Path, run: Any, wrong: Any, named: str) -> None:
    with run(model) as session, pytest.raises(BadRequest, match=named):
        session(feeds(**wrong))


def test_a_missing_feed_is_an_error_that_names_the_input(model: Path, run: Any) -> None:
    with run(model) as session, pytest.raises(BadRequest, match="'z' is missing"):
        session({"x": np.ones((2, 3), np.float32)})


def test_a_closed_session_says_so(model: Path, run: Any) -> None:
    session = run(model)
    session.close()
    with pytest.raises(BadRequest, match="closed"):
        session(feeds())


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 64])
def test_a_file_that_is_no_model_is_corrupt(tmp_path: Path, run: Any, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(CorruptModel, match=r"broken\.onnx"):
        run(path)


def test_a_truncated_model_is_corrupt(model: Path, run: Any) -> None:
    model.write_bytes(model.read_bytes()[:-20])
    with pytest.raises(CorruptModel):
        run(model)


def test_missing_external_data_is_corrupt(model: Path, tmp_path: Path, run: Any) -> None:
    split = tmp_path / "split.onnx"
    onnx.save(onnx.load(model), split, save_as_external_data=True, location="weights", size_threshold=0)
    (tmp_path / "weights").unlink()
    with pytest.raises(CorruptModel):
        run(split)


def test_an_unknown_operator_is_not_supported(tmp_path: Path, run: Any) -> None:
    with pytest.raises(UnsupportedModel, match="Mystery"):
        run(graph(tmp_path / "custom.onnx", op="Mystery", domain="com.example"))


def of_two(path: Path, op: str, second: int = TensorProto.FLOAT, domain: str = "", **attributes: Any) -> Path:
    """`y = op(x, z)`, every dimension of x and z a symbol of its own."""
    made = helper.make_graph(
        [helper.make_node(op, ["x", "z"], ["y"], domain=domain, **attributes)],
        "test",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["a", "b"]),
            helper.make_tensor_value_info("z", second, ["c", "d"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["e", "f"])],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(made, opset_imports=opsets, ir_version=10), path)
    return path


@pytest.mark.parametrize("op", ["MatMul", "Add", "Concat"])
def test_shapes_that_contradict_each_other_are_the_callers_fault(tmp_path: Path, run: Any, op: str) -> None:
    path = of_two(tmp_path / "model.onnx", op, **({"axis": 0} if op == "Concat" else {}))
    x, z = np.ones((2, 3), np.float32), np.ones((5, 4), np.float32)
    with run(path) as session:
        with pytest.raises(BadRequest, match=r"model\.onnx: these inputs do not go together: .*(5|4)"):
            session({"x": x, "z": z})
        assert session({"x": x, "z": x.T if op == "MatMul" else x})["y"].size


@pytest.mark.parametrize(("op", "domain"), [("Gather", ""), ("GatherND", ""), ("ArrayFeatureExtractor", "ai.onnx.ml")])
def test_an_index_out_of_range_is_the_callers_fault(tmp_path: Path, run: Any, op: str, domain: str) -> None:
    path = of_two(tmp_path / "model.onnx", op, TensorProto.INT64, domain)
    with run(path) as session:
        with pytest.raises(BadRequest, match="index 9 is out of bounds"):
            session({"x": np.ones((2, 3), np.float32), "z": np.full((1, 1), 9)})
        assert session({"x": np.ones((2, 3), np.float32), "z": np.ones((1, 1), np.int64)})["y"].size


def test_what_the_evaluator_cannot_do_is_not_supported_whatever_it_raises(tmp_path: Path, run: Any) -> None:
    """LRN is written for images alone: a fault of no feed, told when it is run."""
    path = tmp_path / "model.onnx"
    made = helper.make_graph(
        [helper.make_node("LRN", ["x"], ["y"], size=3)],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "c", "d"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "c", "d"])],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    with run(path) as session, pytest.raises(UnsupportedModel, match="LRN") as refused:
        session({"x": np.ones((1, 2, 3), np.float32)})
    assert "onnx.reference" in refused.value.supported


def test_convert_seals_the_same_computation_with_the_shapes_asked_for(
    tmp_path: Path, model: Path, convert: Any, run: Any
) -> None:
    limits = ConvertLimits(shapes={"x": (2, 3)})
    made = convert(model, tmp_path / "out", format="onnx", limits=limits)
    assert [(file.path, file.role) for file in made.files] == [("model.onnx", "model")]
    with run(tmp_path / "out/model.onnx") as session:
        assert [spec.shape for spec in (*session.inputs, *session.outputs)] == [(2, 3), (2, 4), (2, 4)]
        assert np.array_equal(session(feeds(2))["y"], np.ones((2, 3), np.float32) @ WEIGHT)


@pytest.mark.parametrize("shape", [(2, 4), (2,)])
def test_a_shape_that_the_input_cannot_have_is_refused(
    tmp_path: Path, model: Path, convert: Any, shape: tuple[int, ...]
) -> None:
    with pytest.raises(BadRequest, match="'x'"):
        convert(model, tmp_path / "out", format="onnx", limits=ConvertLimits(shapes={"x": shape}))


def test_weights_of_another_type_are_not_called_f32(tmp_path: Path, convert: Any) -> None:
    quantized = graph(tmp_path / "int8.onnx", WEIGHT.astype(np.int8))
    with pytest.raises(UnsupportedPrecision, match="int8"):
        convert(quantized, tmp_path / "out", format="onnx")
