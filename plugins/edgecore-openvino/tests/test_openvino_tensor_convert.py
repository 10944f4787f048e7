"""ONNX to IR: the same computation with the source's names, shapes open or fixed, and typed errors for what is wrong
with the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino as ov
import pytest
from onnx import helper

from edgecore.contract import (
    BadRequest,
    Cancelled,
    ConvertLimits,
    CorruptModel,
    TensorSpec,
    UnsupportedModel,
    UnsupportedPrecision,
)

from support.onnx_graphs import INT64, WEIGHT, product, sealed, value, write


def convert(openvino: Any, source: Path, out: Path, precision: str = "f32", **given: Any) -> Any:
    made = openvino.convert(source, out, precision, format="openvino-ir", **given)
    return made, sealed(out, made, precision)


def fixed(**shapes: tuple[int, ...]) -> ConvertLimits:
    return ConvertLimits(shapes=shapes)


X = np.arange(6, dtype=np.float32).reshape(2, 3)
FEEDS = {"x": X, "z": np.ones((2, 4), np.float32)}


@pytest.mark.parametrize(("precision", "bits"), [("f32", 32), ("f16", 16)])
def test_the_ir_computes_what_the_graph_says_and_keeps_its_names(
    openvino: Any, tmp_path: Path, precision: str, bits: float
) -> None:
    made, artifact = convert(openvino, product(tmp_path / "m.onnx"), tmp_path / "ir", precision)
    assert [(file.path, file.role) for file in made.files] == [("model.xml", "model"), ("model.bin", "weights")]
    assert made.weights.bits_per_weight == made.weights.eligible_bits_per_weight == bits
    assert made.weights.parameters == WEIGHT.size
    with openvino.run(artifact) as session:
        assert session.inputs == (TensorSpec("x", "float32", ("batch", 3)), TensorSpec("z", "float32", ("batch", 4)))
        assert session.outputs == (TensorSpec("y", "float32", ("batch", 4)),)
        # Eighths are exact in 16 bits.
        assert np.array_equal(session(FEEDS)["y"], X @ WEIGHT + 1)


def test_names_as_exporters_write_them_and_their_order_survive(openvino: Any, tmp_path: Path) -> None:
    names = ["serving_default_x:0", "input.1", "/out/Add,b\\c d"]
    nodes = [helper.make_node("Sub", names[:2], names[2:]), helper.make_node("Identity", names[2:], ["same"])]
    inputs = [value(name, ["n", "n"]) for name in reversed(names[:2])]
    path = write(tmp_path / "m.onnx", nodes, inputs, [value("same", ["n", "n"]), value(names[2], ["n", "n"])])
    _, artifact = convert(openvino, path, tmp_path / "ir")
    with openvino.run(artifact) as session:
        assert [spec.name for spec in session.inputs] == ["input.1", "serving_default_x:0"]
        assert [spec.name for spec in session.outputs] == ["same", names[2]]
        assert session.inputs[0].shape == ("n", "n")
        one = np.ones((2, 2), np.float32)
        answer = session({names[0]: 3 * one, names[1]: one})
        assert (answer["same"] == 2).all()
        assert (answer[names[2]] == 2).all()
        with pytest.raises(BadRequest, match=r"shape \[2, 3\]"):
            session({names[0]: np.ones((2, 3), np.float32), names[1]: one})


def test_an_ir_of_others_is_run_with_the_names_of_its_ports(openvino: Any, tmp_path: Path) -> None:
    from support.onnx_graphs import native

    ov.save_model(ov.Core().read_model(product(tmp_path / "m.onnx")), tmp_path / "m.xml", compress_to_fp16=False)
    with openvino.run(native(tmp_path / "m.xml")) as session:
        assert [(spec.name, spec.shape) for spec in session.inputs] == [("x", ("x_0", 3)), ("z", ("z_0", 4))]
        assert np.array_equal(session(FEEDS)["y"], X @ WEIGHT + 1)


def test_fixed_shapes_reach_whatever_bears_the_same_symbol(openvino: Any, tmp_path: Path) -> None:
    _, artifact = convert(openvino, product(tmp_path / "m.onnx"), tmp_path / "ir", limits=fixed(x=(2, 3)))
    with openvino.run(artifact) as session:
        assert [spec.shape for spec in (*session.inputs, *session.outputs)] == [(2, 3), (2, 4), (2, 4)]
        assert np.array_equal(session(FEEDS)["y"], X @ WEIGHT + 1)
        with pytest.raises(BadRequest, match=r"'x' has shape \[1, 3\]"):
            session({"x": X[:1], "z": FEEDS["z"][:1]})


@pytest.mark.parametrize("shapes", [{"x": (2, 4)}, {"x": (2,)}, {"x": (2, 3), "z": (3, 4)}, {"x": (-1, 3)}])
def test_shapes_that_the_inputs_cannot_have_are_refused(openvino: Any, tmp_path: Path, shapes: Any) -> None:
    with pytest.raises(BadRequest, match=f"'{list(shapes)[-1]}' cannot have shape"):
        convert(openvino, product(tmp_path / "m.onnx"), tmp_path / "ir", limits=fixed(**shapes))


def test_an_input_without_a_shape_needs_one(openvino: Any, tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    path = write(tmp_path / "m.onnx", [node], [value("x", None)], [value("y", None)])
    with pytest.raises(UnsupportedModel, match="'x' states no shape") as refused:
        convert(openvino, path, tmp_path / "free")
    assert "--shape x=" in refused.value.hint
    _, artifact = convert(openvino, path, tmp_path / "ir", limits=fixed(x=(2, 5)))
    with openvino.run(artifact) as session:
        assert [spec.shape for spec in (*session.inputs, *session.outputs)] == [(2, 5), (2, 5)]


@pytest.mark.parametrize("precision", ["bf16", "int8_sym", "int4_sym"])
def test_a_precision_that_convert_does_not_make_is_refused(openvino: Any, tmp_path: Path, precision: str) -> None:
    with pytest.raises(UnsupportedPrecision, match=precision) as refused:
        convert(openvino, product(tmp_path / "m.onnx"), tmp_path / "ir", precision)
    assert refused.value.supported == "f32, f16"


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 64, b"\x08\x08:\x00"])
def test_a_file_that_is_no_model_is_corrupt(openvino: Any, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.onnx").write_bytes(content)
    with pytest.raises(CorruptModel, match=r"broken\.onnx"):
        convert(openvino, tmp_path / "broken.onnx", tmp_path / "ir")


def test_a_truncated_model_is_corrupt_wherever_it_ends(openvino: Any, tmp_path: Path) -> None:
    whole = product(tmp_path / "m.onnx").read_bytes()
    for number, keep in enumerate(range(1, len(whole), 17)):
        (tmp_path / "cut.onnx").write_bytes(whole[:keep])
        with pytest.raises((CorruptModel, UnsupportedModel)):
            convert(openvino, tmp_path / "cut.onnx", tmp_path / f"ir{number}")


def external(tmp_path: Path) -> Path:
    return product(
        tmp_path / "m.onnx", save_as_external_data=True, location="weights", size_threshold=0
    )  # fmt: skip


def test_weights_beside_the_file_are_read_and_missed(openvino: Any, tmp_path: Path) -> None:
    path, weights = external(tmp_path), tmp_path / "weights"
    _, artifact = convert(openvino, path, tmp_path / "whole")
    with openvino.run(artifact) as session:
        assert np.array_equal(session(FEEDS)["y"], X @ WEIGHT + 1)
    weights.write_bytes(weights.read_bytes()[:20])
    with pytest.raises(CorruptModel, match="weights"):
        convert(openvino, path, tmp_path / "cut")
    weights.unlink()
    with pytest.raises(CorruptModel, match="weights"):
        convert(openvino, path, tmp_path / "gone")


@pytest.mark.parametrize("where", ["../outside", "{tmp}/outside"])
def test_weights_outside_the_files_folder_are_not_read(openvino: Any, tmp_path: Path, where: str) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "outside").write_bytes(WEIGHT.tobytes())
    path = external(tmp_path / "inside")
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = where.format(tmp=tmp_path)
    onnx.save(model, path)
    with pytest.raises(CorruptModel, match="outside"):
        convert(openvino, path, tmp_path / "ir")


@pytest.mark.parametrize(("domain", "named"), [("com.example", r"com\.example\.Mystery"), ("", "Mystery")])
def test_an_operator_that_openvino_does_not_have_is_named(
    openvino: Any, tmp_path: Path, domain: str, named: str
) -> None:
    path = product(tmp_path / "m.onnx", op="Mystery", domain=domain)
    with pytest.raises(UnsupportedModel, match=f"does not convert {named}"):
        convert(openvino, path, tmp_path / "ir")


def test_an_operator_that_does_not_convert_says_why(openvino: Any, tmp_path: Path) -> None:
    path = product(tmp_path / "m.onnx", np.ones((5, 4), np.float32))
    with pytest.raises(UnsupportedModel, match=r"does not convert MatMul: .*dimension"):
        convert(openvino, path, tmp_path / "ir")


def test_an_operator_set_from_the_future_is_not_supported(openvino: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], [value("x", [1])], [
        value("y", [1]),
    ], opset=99)  # fmt: skip
    with pytest.raises(UnsupportedModel, match="operator set 99"):
        convert(openvino, path, tmp_path / "ir")


def test_a_model_without_weights_has_none_to_measure(openvino: Any, tmp_path: Path) -> None:
    node = helper.make_node("Neg", ["x"], ["y"])
    path = write(tmp_path / "m.onnx", [node], [value("x", ["n"], INT64)], [value("y", ["n"], INT64)])
    made, artifact = convert(openvino, path, tmp_path / "ir", "f16")
    assert made.weights is None
    with openvino.run(artifact) as session:
        assert session({"x": np.array([3, -4])})["y"].tolist() == [-3, 4]


def test_the_same_source_gives_the_same_bytes(openvino: Any, tmp_path: Path) -> None:
    path = product(tmp_path / "m.onnx")
    for name in ("one", "two"):
        convert(openvino, path, tmp_path / name)
    for file in ("model.xml", "model.bin"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_who_hears_of_progress_may_cancel(openvino: Any, tmp_path: Path) -> None:
    def cancel(done: int, total: int, stage: str) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        convert(openvino, product(tmp_path / "m.onnx"), tmp_path / "ir", progress=cancel)
