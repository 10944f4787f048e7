"""Tensor models in 8 and 4 bits: what the file holds, what it costs in accuracy on a CPU and on an emulated NPU, and
errors for feeds and options."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import helper

from edgecore.contract import (
    Artifact,
    BadRequest,
    Cancelled,
    ConvertLimits,
    DoesNotFit,
    UnsupportedModel,
    UnsupportedPrecision,
)
from edgecore.quality.tensors import compare_tensors
from edgecore_onnxruntime import cleaning, quantize_tensor

from support import onnx_graphs
from support.onnx_graphs import one, value, write

NPU = ("a8w8", "a16w8", "a16w4")
here = pytest.mark.skipif(
    find_spec("onnxruntime_qnn") is None, reason="needs onnxruntime-qnn: bootstrap.py test --only onnxruntime"
)
DRAW = np.random.default_rng(7)
DEEP = {
    "w1": (DRAW.standard_normal((8, 3, 3, 3)) / 5).astype(np.float32),
    "w2": (DRAW.standard_normal((16, 8, 3, 3)) / 8).astype(np.float32),
    "w3": (DRAW.standard_normal((16, 10)) / 4).astype(np.float32),
}


def sealed(out: Path, made: Any, precision: str = "f32") -> Artifact:
    return onnx_graphs.sealed(out, made, precision, "onnxruntime", "onnx")


def native(path: Path) -> Artifact:
    return onnx_graphs.native(path, backend="onnxruntime", format="onnx")


@pytest.fixture(scope="module")
def network(onnxruntime: Any, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Two convolutions, a mean over the image and a matrix product, drawn, in f32."""
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("ReduceMean", ["r2"], ["pooled"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["pooled", "w3"], ["scores"]),
    ]
    folder = tmp_path_factory.mktemp("network")
    inputs, outputs = [value("image", ["batch", 3, 12, 12])], [value("scores", ["batch", 10])]
    path = write(folder / "m.onnx", nodes, inputs, outputs, DEEP)
    made = onnxruntime.convert(path, folder / "ir", "f32", format="onnx")
    return sealed(folder / "ir", made)


def images(count: int, seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal((count, 3, 12, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("feeds")
    for number in range(12):
        np.savez(folder / f"{number:02}.npz", image=images(2, number))
    return folder


def answer(onnxruntime: Any, artifact: Artifact, device: str = "cpu") -> Any:
    """Two images a time, as an NPU's precisions have it fixed by the calibration feeds."""
    with onnxruntime.run(artifact, device=device) as session:
        assert session.inputs[0].shape == (2 if artifact.precision in NPU else "batch", 3, 12, 12)
        assert session.placement.share(device) == 1.0
        given = images(40, 99)
        return np.concatenate([session({"image": given[n : n + 2]})["scores"] for n in range(0, 40, 2)])


@pytest.mark.parametrize(
    ("precision", "bits", "sqnr"),
    [("int8_dynamic", 8.5, 30), ("int8_static", 9, 28), ("a8w8", 9, 28), ("a16w8", 9, 34), ("a16w4", 5, 14)],
)
def test_few_bits_cost_what_few_bits_cost(
    onnxruntime: Any, network: Artifact, calibration: Path, tmp_path: Path, precision: str, bits: float, sqnr: float
) -> None:
    made = onnxruntime.quantize(network, tmp_path / "q", precision, calibration=calibration)
    assert made.weights.fallbacks == ()
    assert bits - 1 <= made.weights.eligible_bits_per_weight < bits
    assert made.weights.parameters >= sum(w.size for w in DEEP.values())
    artifact = sealed(tmp_path / "q", made, precision)
    assert compare_tensors(answer(onnxruntime, network), answer(onnxruntime, artifact)).sqnr_db > sqnr


@here
@pytest.mark.parametrize(("precision", "sqnr"), [("a8w8", 28), ("a16w8", 34), ("a16w4", 14)])
def test_an_npu_computes_all_of_it_and_the_same(
    onnxruntime: Any, network: Artifact, calibration: Path, tmp_path: Path, precision: str, sqnr: float
) -> None:
    made = onnxruntime.quantize(network, tmp_path / "q", precision, calibration=calibration)
    artifact = sealed(tmp_path / "q", made, precision)
    emulated = answer(onnxruntime, artifact, "npu-emulator")
    assert compare_tensors(answer(onnxruntime, network), emulated).sqnr_db > sqnr
    assert compare_tensors(answer(onnxruntime, artifact), emulated).sqnr_db > sqnr


@here
def test_an_npu_computes_f16_in_16_bits(onnxruntime: Any, network: Artifact, tmp_path: Path) -> None:
    limits = ConvertLimits(shapes={"image": (2, 3, 12, 12)})
    made = onnxruntime.convert(network.model, tmp_path / "f16", "f16", format="onnx", limits=limits)
    with onnxruntime.run(sealed(tmp_path / "f16", made, "f16"), device="npu-emulator") as session:
        assert session.placement.share("npu-emulator") == 1.0
        got = session({"image": images(2, 99)})["scores"]
    with onnxruntime.run(network) as session:
        assert compare_tensors(session({"image": images(2, 99)})["scores"], got).sqnr_db > 55


@here
def test_an_operator_that_the_npu_lacks_is_named_and_computed_elsewhere_only_on_request(
    onnxruntime: Any, tmp_path: Path
) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Det", ["r"], ["y"])]
    path = write(tmp_path / "m.onnx", nodes, [value("x", [2, 2])], [value("y", [])])
    with pytest.raises(UnsupportedModel, match="Det"):
        onnxruntime.run(native(path), device="npu-emulator")
    with onnxruntime.run(native(path), device="npu-emulator", allow_fallback=True) as session:
        assert session({"x": np.array([[3, -1], [1, 2]], np.float32)})["y"] == pytest.approx(6, rel=1e-2)
        assert 0 < session.placement.share("npu-emulator") < 1


def test_feeds_of_several_shapes_fix_none(onnxruntime: Any, network: Artifact, tmp_path: Path) -> None:
    (tmp_path / "feeds").mkdir()
    for number in (1, 2):
        np.savez(tmp_path / f"feeds/{number}.npz", image=images(number, number))
    made = onnxruntime.quantize(network, tmp_path / "cpu", "int8_static", calibration=tmp_path / "feeds")
    assert made.notes == ("calibrated on 2 feeds",)
    with pytest.raises(BadRequest, match=r"several sizes of 'batch': \[1, 2\]"):
        onnxruntime.quantize(network, tmp_path / "npu", "a8w8", calibration=tmp_path / "feeds")


def test_a_classifier_stays_as_accurate(onnxruntime: Any, tmp_path: Path) -> None:
    fixtures = pytest.importorskip(
        "edgecore_conformance.fixtures", reason="needs the suite's fixtures: pip install -e conformance"
    )
    found = fixtures.classifier()
    pictures, labels = np.asarray(found.images), np.asarray(found.labels)
    (tmp_path / "feeds").mkdir()
    for number in range(32):
        np.savez(tmp_path / f"feeds/{number:02}.npz", image=pictures[number : number + 1])
    right = {}
    for precision in ("f32", "int8_dynamic", "int8_static", *NPU):
        artifact = native(found.model)
        if precision != "f32":
            out = tmp_path / precision
            made = onnxruntime.quantize(artifact, out, precision, calibration=tmp_path / "feeds")
            artifact = sealed(out, made, precision)
        with onnxruntime.run(artifact) as session:
            step = 1 if precision in NPU else 64
            parts = [session({"image": pictures[n : n + step]}) for n in range(32, len(pictures), step)]
        scores = np.concatenate([next(iter(part.values())) for part in parts])
        right[precision] = float((scores.argmax(axis=1) == labels[32:]).mean())
    assert right["f32"] > 0.95
    assert right["int8_dynamic"] >= right["f32"] - 0.01
    assert right["int8_static"] >= right["f32"] - 0.02
    assert right["a8w8"] >= right["f32"] - 0.02
    assert right["a16w8"] >= right["f32"] - 0.01
    assert right["a16w4"] >= right["f32"] - 0.05


def test_what_is_ignored_stays_as_it_was_and_is_listed(onnxruntime: Any, network: Artifact, tmp_path: Path) -> None:
    made = onnxruntime.quantize(network, tmp_path / "q", "int8_dynamic", ignored_types="MatMul")
    assert [(f.tensor, f.got) for f in made.weights.fallbacks] == [("w3", "float")]
    with pytest.raises(BadRequest, match="ignored_names: no operator 'nobody'"):
        onnxruntime.quantize(network, tmp_path / "none", "int8_dynamic", ignored_names="nobody")


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_every_calibration_reads_one_feed_at_a_time(
    onnxruntime: Any, network: Artifact, calibration: Path, tmp_path: Path, method: str
) -> None:
    made = onnxruntime.quantize(
        network, tmp_path / "q", "int8_static", calibration=calibration, calibration_method=method, subset_size=5,
        per_channel=False, reduce_range=True,
    )  # fmt: skip
    assert made.notes == ("calibrated on 5 feeds",)
    artifact = sealed(tmp_path / "q", made, "int8_static")
    sqnr = compare_tensors(answer(onnxruntime, network), answer(onnxruntime, artifact)).sqnr_db
    assert sqnr > (8 if method == "entropy" else 24)


def test_what_is_wide_gets_16_bits(onnxruntime: Any, network: Artifact, calibration: Path, tmp_path: Path) -> None:
    source = onnx.load(network.model)
    first = next(node.name for node in source.graph.node if node.op_type == "Conv")
    made = onnxruntime.quantize(network, tmp_path / "q", "a8w8", calibration=calibration, wide_names=first)
    model = onnx.load(tmp_path / "q" / made.files[0].path)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    points = {kinds[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert points == {onnx.TensorProto.UINT8, onnx.TensorProto.UINT16}


@pytest.mark.parametrize("precision", ["int8_static", *NPU])
def test_graphs_as_exporters_write_them_are_quantized(onnxruntime: Any, tmp_path: Path, precision: str) -> None:
    """An old operator set, a bias in a row of its own, and a constant that stands for minus infinity: ONNX Runtime's
    quantizer stumbles over the first two, and gives the third a scale without an end."""
    draw = np.random.default_rng(4)
    weights = {
        "w": draw.standard_normal((8, 6)).astype(np.float32),
        "b": draw.standard_normal((1, 6)).astype(np.float32),
        "least": np.array([-3.4e38], np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"]),
        helper.make_node("Add", ["xw", "b"], ["sum"]),
        helper.make_node("Max", ["sum", "least"], ["kept"]),
        helper.make_node("Relu", ["kept"], ["y"]),
    ]
    path = write(tmp_path / "m.onnx", nodes, [value("x", [4, 8])], [value("y", [4, 6])], weights, opset=11)
    (tmp_path / "feeds").mkdir()
    fed = draw.standard_normal((4, 4, 8)).astype(np.float32)
    for number in range(4):
        np.savez(tmp_path / f"feeds/{number}.npz", x=fed[number])
    made = onnxruntime.quantize(native(path), tmp_path / "q", precision, calibration=tmp_path / "feeds")
    with onnxruntime.run(sealed(tmp_path / "q", made, precision)) as session:
        got = session({"x": fed[0]})["y"]
    due = np.maximum(fed[0] @ weights["w"] + weights["b"], 0)
    assert compare_tensors(due, got).sqnr_db > (14 if precision == "a16w4" else 28)


@pytest.mark.parametrize(
    ("precision", "given"),
    [("int8_dynamic", {"subset_size": 3}), ("int8_static", {"wide_names": "x"})],
)
def test_an_option_of_another_precision_is_refused(
    onnxruntime: Any, network: Artifact, tmp_path: Path, precision: str, given: Any
) -> None:
    with pytest.raises(BadRequest, match=next(iter(given))):
        onnxruntime.quantize(network, tmp_path / "q", precision, **given)


def test_four_bits_have_a_scale_for_each_channel(onnxruntime: Any, network: Artifact, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="a scale for each channel"):
        onnxruntime.quantize(network, tmp_path / "q", "a16w4", per_channel=False)


def test_a_precision_of_text_models_is_refused(onnxruntime: Any, network: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedPrecision, match="int4 of a tensor model") as refused:
        onnxruntime.quantize(network, tmp_path / "q", "int4")
    assert refused.value.supported == "int8_dynamic, int8_static, a8w8, a16w8, a16w4"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"image": np.zeros((1, 3, 12, 13), np.float32)}, r"0\.npz: input 'image' has shape \[1, 3, 12, 13\]"),
        ({"picture": np.zeros((1, 3, 12, 12), np.float32)}, r"0\.npz: input 'image' is missing"),
        ({"image": np.zeros((1, 3, 12, 12))}, r"0\.npz: input 'image' has type float64"),
        (
            {"image": np.full((1, 3, 12, 12), np.nan, np.float32)},
            r"0\.npz: input 'image' holds numbers that are not finite",
        ),
        (
            {"image": np.full((1, 3, 12, 12), -np.inf, np.float32)},
            r"0\.npz: input 'image' holds numbers that are not finite",
        ),
        ({"image": np.zeros((0, 3, 12, 12), np.float32)}, r"0\.npz: input 'image' is empty"),
        (b"no archive", r"0\.npz: is not an \.npz file"),
        (None, r"no \.npz files"),
    ],
)
def test_feeds_that_do_not_fit_are_refused_by_file(
    onnxruntime: Any, network: Artifact, tmp_path: Path, content: Any, said: str
) -> None:
    (tmp_path / "feeds").mkdir()
    if isinstance(content, bytes):
        (tmp_path / "feeds/0.npz").write_bytes(content)
    elif content is not None:
        np.savez(tmp_path / "feeds/0.npz", **content)
    with pytest.raises(BadRequest, match=said):
        onnxruntime.quantize(network, tmp_path / "q", "a8w8", calibration=tmp_path / "feeds")


def test_a_model_without_layers_has_nothing_to_quantize(onnxruntime: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="no layer whose weights int8_dynamic changes"):
        onnxruntime.quantize(native(one(tmp_path / "m.onnx", "Relu")), tmp_path / "q", "int8_dynamic")


def test_what_is_quantized_already_is_not_quantized_again(onnxruntime: Any, network: Artifact, tmp_path: Path) -> None:
    made = onnxruntime.quantize(network, tmp_path / "q", "int8_dynamic")
    with pytest.raises(UnsupportedModel, match="its weights are int8, uint8 already"):
        onnxruntime.quantize(sealed(tmp_path / "q", made, "int8_dynamic"), tmp_path / "again", "int8_dynamic")


def test_who_hears_of_progress_may_cancel(
    onnxruntime: Any, network: Artifact, calibration: Path, tmp_path: Path
) -> None:
    heard: list[str] = []

    def cancel(done: int, total: int, stage: str) -> None:
        heard.append(stage)
        if stage == "calibrating" and done > 3:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        onnxruntime.quantize(network, tmp_path / "q", "a8w8", calibration=calibration, progress=cancel)
    assert heard[0] == "reading"
    assert "calibrating" in heard


def test_a_full_disk_is_not_the_models_fault(
    onnxruntime: Any, network: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime says of it that it fails, and onnx writes half a file without a word."""

    def full(file: Path) -> None:
        raise DoesNotFit(f"{file}: no space left")

    def cut(*_: Any) -> None:
        raise DecodeError("Wire format was corrupt")

    monkeypatch.setattr(quantize_tensor, "_quantized", cut)
    monkeypatch.setattr(quantize_tensor, "check_room", full)
    with pytest.raises(DoesNotFit, match="no space left"):
        onnxruntime.quantize(network, tmp_path / "a", "int8_dynamic")
    monkeypatch.setattr(cleaning, "check_room", full)
    monkeypatch.setattr(cleaning.onnx_model, "open_session", refuse)
    with pytest.raises(DoesNotFit, match="no space left"):
        onnxruntime.quantize(network, tmp_path / "b", "int8_dynamic")


def refuse(*_: Any) -> None:
    raise UnsupportedModel("Failed to write external initializers")
