"""What an ONNX file's graph takes, does and gives, read without onnx; onnx itself writes what is read here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgecore.checkpoint import read_onnx
from edgecore.contract import CorruptModel, TensorSpec, UnsupportedModel

onnx = pytest.importorskip("onnx", reason="needs onnx: python3 bootstrap.py test --only core")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402


def write(path: Path, inputs: list[object], nodes: list[object] | None = None, **more: object) -> Path:
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])
    nodes = nodes or [helper.make_node("Identity", ["x"], ["y"])]
    graph = helper.make_graph(nodes, "test", inputs, [output], more.get("weights", []))
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def tensor(name: str, shape: list[object], kind: int = TensorProto.FLOAT) -> object:
    return helper.make_tensor_value_info(name, kind, shape)


def test_inputs_and_outputs_are_named_as_the_file_names_them(tmp_path: Path) -> None:
    inputs = [tensor("x", ["batch", 3]), tensor("ids", [None, 2, None], TensorProto.INT64), tensor("s", [])]
    graph = read_onnx(write(tmp_path / "m.onnx", inputs))
    assert graph.inputs == (
        TensorSpec("x", "float32", ("batch", 3)),
        TensorSpec("ids", "int64", ("ids_0", 2, "ids_2")),
        TensorSpec("s", "float32", ()),
    )
    assert graph.outputs == (TensorSpec("y", "float32", ("batch", 3)),)
    assert graph.opsets == {"": 21, "ai.onnx.ml": 3}


def test_a_size_that_an_exporter_does_not_know_is_no_size_and_no_name(tmp_path: Path) -> None:
    """Paddle's writes -1, and ? for each, which need not be equal."""
    graph = read_onnx(write(tmp_path / "m.onnx", [tensor("x", [-1, 3, "?", "?"])]))
    assert graph.inputs == (TensorSpec("x", "float32", ("x_0", 3, "x_2", "x_3")),)


def test_a_weight_that_is_listed_as_an_input_is_none(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((2, 3), np.float32), "w")
    graph = read_onnx(write(tmp_path / "m.onnx", [tensor("x", [3]), tensor("w", [2, 3])], weights=[weight]))
    assert [spec.name for spec in graph.inputs] == ["x"]


def test_every_type_that_onnx_has_goes_by_numpys_name(tmp_path: Path) -> None:
    kinds = [k for k in helper.get_all_tensor_dtypes() if k != TensorProto.STRING]
    graph = read_onnx(write(tmp_path / "m.onnx", [tensor(f"x{kind}", [1], kind) for kind in kinds]))
    assert [spec.dtype for spec in graph.inputs] == [helper.tensor_dtype_to_np_dtype(kind).name for kind in kinds]


def test_operators_come_with_what_they_were_given_those_of_inner_graphs_too(tmp_path: Path) -> None:
    inner = helper.make_graph([helper.make_node("Relu", ["x"], ["r"])], "inner", [], [tensor("r", ["batch", 3])])
    nodes = [
        helper.make_node(
            "Resize", ["x", "", "scales"], ["z"], mode="cubic", antialias=1, cubic_coeff_a=-0.5, axes=[-1]
        ),
        helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner),
        helper.make_node("Scaler", ["z"], ["u"], domain="ai.onnx.ml"),
        helper.make_node("Flatten", ["z"], ["v"], axis=-2),
    ]
    graph = read_onnx(write(tmp_path / "m.onnx", [tensor("x", ["batch", 3])], nodes))
    assert sorted(node.operator for node in graph.nodes) == [
        "Flatten", "If", "Relu", "Relu", "Resize", "ai.onnx.ml.Scaler",
    ]  # fmt: skip
    resize = next(node for node in graph.nodes if node.operator == "Resize")
    assert resize.inputs == ("x", "", "scales")
    assert resize.attributes == {"mode": "cubic", "antialias": 1, "cubic_coeff_a": None, "axes": None}
    assert next(n for n in graph.nodes if n.operator == "Flatten").attributes == {"axis": -2}


def test_a_sequence_is_no_tensor(tmp_path: Path) -> None:
    sequence = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, ["batch"])
    with pytest.raises(UnsupportedModel, match="'x' is no tensor"):
        read_onnx(write(tmp_path / "m.onnx", [sequence]))


def test_a_damaged_file_is_corrupt_whatever_byte_is_wrong(tmp_path: Path) -> None:
    """Read as something or refused by a typed error: never anything else."""
    path = write(tmp_path / "m.onnx", [tensor("x", ["batch", 3])])
    whole = path.read_bytes()
    draw, refused = np.random.default_rng(5), 0
    for number in range(300):
        damaged = bytearray(whole[: len(whole) - number % 40])
        damaged[draw.integers(len(damaged))] ^= 1 << int(draw.integers(8))
        path.write_bytes(bytes(damaged))
        try:
            read_onnx(path)
        except (CorruptModel, UnsupportedModel):
            refused += 1
    assert refused > 200
