"""ONNX in, ONNX out: the same computation, leaner, with the source's names, shapes open or fixed, and typed errors for
what is wrong with the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
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

from support.onnx_graphs import INT64, WEIGHT, native, product, sealed, value, write


def convert(onnxruntime: Any, source: Path, out: Path, precision: str = "f32", **given: Any) -> Any:
    made = onnxruntime.convert(source, out, precision, format="onnx", **given)
    return made, sealed(out, made, precision, "onnxruntime", "onnx")


def fixed(**shapes: tuple[int, ...]) -> ConvertLimits:
    return ConvertLimits(shapes=shapes)


X = np.arange(6, dtype=np.float32).reshape(2, 3)
FEEDS = {"x": X, "z": np.ones((2, 4), np.float32)}


@pytest.mark.parametrize(("precision", "bits"), [("f32", 32), ("f16", 16)])
def test_the_file_computes_what_the_graph_says_and_keeps_its_names(
    onnxruntime: Any, tmp_path: Path, precision: str, bits: float
) -> None:
    made, artifact = convert(onnxruntime, product(tmp_path / "m.onnx"), tmp_path / "out", precision)
    assert [(file.path, file.role) for file in made.files] == [("model.onnx", "model")]
    assert made.weights.bits_per_weight == made.weights.eligible_bits_per_weight == bits
    assert made.weights.parameters == WEIGHT.size
    with onnxruntime.run(artifact) as session:
        assert session.inputs == (TensorSpec("x", "float32", ("batch", 3)), TensorSpec("z", "float32", ("batch", 4)))
        assert session.outputs == (TensorSpec("y", "float32", ("batch", 4)),)
        # Eighths are exact in 16 bits.
        assert np.array_equal(session(FEEDS)["y"], X @ WEIGHT + 1)


def test_names_as_exporters_write_them_and_their_order_survive(onnxruntime: Any, tmp_path: Path) -> None:
    names = ["serving_default_x:0", "input.1", "/out/Add,b\\c d"]
    nodes = [helper.make_node("Sub", names[:2], names[2:]), helper.make_node("Identity", names[2:], ["same"])]
    inputs = [value(name, ["n", "n"]) for name in reversed(names[:2])]
    path = write(tmp_path / "m.onnx", nodes, inputs, [value("same", ["n", "n"]), value(names[2], ["n", "n"])])
    _, artifact = convert(onnxruntime, path, tmp_path / "out")
    with onnxruntime.run(artifact) as session:
        assert [spec.name for spec in session.inputs] == ["input.1", "serving_default_x:0"]
        assert [spec.name for spec in session.outputs] == ["same", names[2]]
        assert session.inputs[0].shape == ("n", "n")
        one = np.ones((2, 2), np.float32)
        answer = session({names[0]: 3 * one, names[1]: one})
        assert (answer["same"] == 2).all()
        assert (answer[names[2]] == 2).all()
        with pytest.raises(BadRequest, match=r"shape \[2, 3\]"):
            session({names[0]: np.ones((2, 3), np.float32), names[1]: one})


def test_fixed_shapes_reach_whatever_bears_the_same_symbol(onnxruntime: Any, tmp_path: Path) -> None:
    _, artifact = convert(onnxruntime, product(tmp_path / "m.onnx"), tmp_path / "out", limits=fixed(x=(2, 3)))
    with onnxruntime.run(artifact) as session:
        assert [spec.shape for spec in (*session.inputs, *session.outputs)] == [(2, 3), (2, 4), (2, 4)]
        assert np.array_equal(session(FEEDS)["y"], X @ WEIGHT + 1)
        with pytest.raises(BadRequest, match=r"'x' has shape \[1, 3\]"):
            session({"x": X[:1], "z": FEEDS["z"][:1]})


@pytest.mark.parametrize("shapes", [{"x": (2, 4)}, {"x": (2,)}, {"x": (2, 3), "z": (3, 4)}, {"x": (-1, 3)}])
def test_shapes_that_the_inputs_cannot_have_are_refused(onnxruntime: Any, tmp_path: Path, shapes: Any) -> None:
    with pytest.raises(BadRequest, match=f"'{list(shapes)[-1]}' cannot have shape"):
        convert(onnxruntime, product(tmp_path / "m.onnx"), tmp_path / "out", limits=fixed(**shapes))


def test_an_input_without_a_shape_needs_one(onnxruntime: Any, tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    path = write(tmp_path / "m.onnx", [node], [value("x", None)], [value("y", None)])
    with pytest.raises(UnsupportedModel, match="'x' states no shape") as refused:
        convert(onnxruntime, path, tmp_path / "free")
    assert "--shape x=" in refused.value.hint
    _, artifact = convert(onnxruntime, path, tmp_path / "out", limits=fixed(x=(2, 5)))
    with onnxruntime.run(artifact) as session:
        assert [spec.shape for spec in (*session.inputs, *session.outputs)] == [(2, 5), (2, 5)]


@pytest.mark.parametrize("precision", ["int8_static", "a16w8", "int4"])
def test_a_precision_that_convert_does_not_make_is_refused(onnxruntime: Any, tmp_path: Path, precision: str) -> None:
    with pytest.raises(UnsupportedPrecision, match=precision) as refused:
        convert(onnxruntime, product(tmp_path / "m.onnx"), tmp_path / "out", precision)
    assert refused.value.supported == "f32, f16"


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 64, b"\x08\x08:\x00"])
def test_a_file_that_is_no_model_is_corrupt(onnxruntime: Any, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.onnx").write_bytes(content)
    with pytest.raises(CorruptModel, match=r"broken\.onnx"):
        convert(onnxruntime, tmp_path / "broken.onnx", tmp_path / "out")


def test_a_truncated_model_is_corrupt_wherever_it_ends(onnxruntime: Any, tmp_path: Path) -> None:
    whole = product(tmp_path / "m.onnx").read_bytes()
    for number, keep in enumerate(range(1, len(whole), 17)):
        (tmp_path / "cut.onnx").write_bytes(whole[:keep])
        with pytest.raises((CorruptModel, UnsupportedModel)):
            convert(onnxruntime, tmp_path / "cut.onnx", tmp_path / f"out{number}")


def external(tmp_path: Path) -> Path:
    return product(
        tmp_path / "m.onnx", save_as_external_data=True, location="weights", size_threshold=0
    )  # fmt: skip


def test_weights_beside_the_file_are_read_and_missed(onnxruntime: Any, tmp_path: Path) -> None:
    path, weights = external(tmp_path), tmp_path / "weights"
    _, artifact = convert(onnxruntime, path, tmp_path / "whole")
    with onnxruntime.run(artifact) as session:
        assert np.array_equal(session(FEEDS)["y"], X @ WEIGHT + 1)
    weights.write_bytes(weights.read_bytes()[:20])
    with pytest.raises(CorruptModel, match="weights"):
        convert(onnxruntime, path, tmp_path / "cut")
    weights.unlink()
    with pytest.raises(CorruptModel, match="weights"):
        convert(onnxruntime, path, tmp_path / "gone")


@pytest.mark.parametrize("where", ["../outside", "{tmp}/outside"])
def test_weights_outside_the_files_folder_are_not_read(onnxruntime: Any, tmp_path: Path, where: str) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "outside").write_bytes(WEIGHT.tobytes())
    path = external(tmp_path / "inside")
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = where.format(tmp=tmp_path)
    onnx.save(model, path)
    with pytest.raises(CorruptModel, match="outside"):
        convert(onnxruntime, path, tmp_path / "out")


@pytest.mark.parametrize(("domain", "named"), [("com.example", r"com\.example.Mystery"), ("", "Mystery")])
def test_an_operator_that_onnx_runtime_does_not_have_is_named(
    onnxruntime: Any, tmp_path: Path, domain: str, named: str
) -> None:
    path = product(tmp_path / "m.onnx", op="Mystery", domain=domain)
    with pytest.raises(UnsupportedModel, match=named):
        convert(onnxruntime, path, tmp_path / "out")


def test_an_operator_set_from_the_future_is_not_supported(onnxruntime: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], [value("x", [1])], [
        value("y", [1]),
    ], opset=99)  # fmt: skip
    with pytest.raises(UnsupportedModel, match="99"):
        convert(onnxruntime, path, tmp_path / "out")


def test_a_model_without_weights_has_none_to_measure(onnxruntime: Any, tmp_path: Path) -> None:
    node = helper.make_node("Neg", ["x"], ["y"])
    path = write(tmp_path / "m.onnx", [node], [value("x", ["n"], INT64)], [value("y", ["n"], INT64)])
    made, artifact = convert(onnxruntime, path, tmp_path / "out", "f16")
    assert made.weights is None
    with onnxruntime.run(artifact) as session:
        assert session({"x": np.array([3, -4])})["y"].tolist() == [-3, 4]


def folding() -> list[Any]:
    """A batch norm behind a convolution, a constant that is computed, and what does nothing."""
    return [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "scale", "bias", "mean", "var"], ["b"]),
        helper.make_node("Mul", ["two", "two"], ["four"]),
        helper.make_node("Identity", ["b"], ["same"]),
        helper.make_node("Mul", ["same", "four"], ["y"]),
    ]


def test_what_needs_no_computing_at_run_time_is_gone(onnxruntime: Any, tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    weights = {name: draw.random(2, dtype=np.float32) + 0.5 for name in ("scale", "bias", "mean", "var")}
    weights |= {"w": draw.standard_normal((2, 3, 3, 3)).astype(np.float32), "two": np.array([2], np.float32)}
    inputs, outputs = [value("x", ["batch", 3, "height", 8])], [value("y", ["batch", 2, "height", 8])]
    path = write(tmp_path / "m.onnx", folding(), inputs, outputs, weights)
    _, artifact = convert(onnxruntime, path, tmp_path / "out")
    model = onnx.load(tmp_path / "out/model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Conv", "Mul"]
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    feeds = {"x": draw.standard_normal((2, 3, 5, 8)).astype(np.float32)}
    with (
        onnxruntime.run(native(path, backend="onnxruntime", format="onnx")) as source,
        onnxruntime.run(artifact) as got,
    ):
        assert got.inputs == source.inputs
        assert got.outputs == source.outputs
        np.testing.assert_allclose(got(feeds)["y"], source(feeds)["y"], rtol=1e-5, atol=1e-5)


def test_a_file_of_16_bits_keeps_them(onnxruntime: Any, tmp_path: Path) -> None:
    """ONNX Runtime would write into it what its CPU kernels lack."""
    half = onnx.TensorProto.FLOAT16
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    path = write(tmp_path / "m.onnx", nodes, [value("x", ["n", 3], half)], [value("y", ["n", 4], half)], {
        "w": WEIGHT.astype(np.float16)
    })  # fmt: skip
    made, artifact = convert(onnxruntime, path, tmp_path / "out", "f16")
    assert made.weights.bits_per_weight == 16
    assert [node.op_type for node in onnx.load(tmp_path / "out/model.onnx").graph.node] == ["MatMul"]
    with onnxruntime.run(artifact) as session:
        assert np.array_equal(session({"x": X.astype(np.float16)})["y"], (X @ WEIGHT).astype(np.float16))


def test_a_weight_that_16_bits_cannot_hold_stays_and_is_listed(onnxruntime: Any, tmp_path: Path) -> None:
    path = product(tmp_path / "m.onnx", WEIGHT * 1e6)
    made, artifact = convert(onnxruntime, path, tmp_path / "out", "f16")
    assert [(f.tensor, f.got) for f in made.weights.fallbacks] == [("w", "float")]
    with onnxruntime.run(artifact) as session:
        np.testing.assert_allclose(session(FEEDS)["y"], X @ (WEIGHT * 1e6) + 1, rtol=1e-6)


def test_weights_that_old_files_list_as_inputs_are_none(onnxruntime: Any, tmp_path: Path) -> None:
    path = product(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.ir_version = 3
    model.graph.input.append(value("w", [3, 4]))
    onnx.save(model, path)
    _, artifact = convert(onnxruntime, path, tmp_path / "out")
    with onnxruntime.run(artifact) as session:
        assert [spec.name for spec in session.inputs] == ["x", "z"]
        assert np.array_equal(session(FEEDS)["y"], X @ WEIGHT + 1)


def test_large_weights_get_a_file_of_their_own(
    onnxruntime: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgecore_onnxruntime import cleaning

    monkeypatch.setattr(cleaning, "LARGE", 1000)
    weight = np.random.default_rng(2).standard_normal((3, 400)).astype(np.float32)
    path = write(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], [value("x", ["n", 3])], [
        value("y", ["n", 400])
    ], {"w": weight})  # fmt: skip
    made, artifact = convert(onnxruntime, path, tmp_path / "out", limits=fixed(x=(2, 3)))
    assert [(f.path, f.role) for f in made.files] == [("model.onnx", "model"), ("model.onnx.data", "weights")]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"model.onnx", "model.onnx.data"}
    with onnxruntime.run(artifact) as session:
        np.testing.assert_allclose(session({"x": X})["y"], X @ weight, rtol=1e-5)


def test_the_same_source_gives_the_same_bytes(onnxruntime: Any, tmp_path: Path) -> None:
    path = product(tmp_path / "m.onnx")
    for name in ("one", "two"):
        convert(onnxruntime, path, tmp_path / name)
    assert (tmp_path / "one/model.onnx").read_bytes() == (tmp_path / "two/model.onnx").read_bytes()


def test_who_hears_of_progress_may_cancel(onnxruntime: Any, tmp_path: Path) -> None:
    def cancel(done: int, total: int, stage: str) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        convert(onnxruntime, product(tmp_path / "m.onnx"), tmp_path / "out", progress=cancel)
