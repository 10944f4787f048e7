"""Tensor models in 8 bits: what the file holds, what it costs in accuracy, and errors for feeds and options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from edgecore.contract import Artifact, BadRequest, Cancelled, UnsupportedModel, UnsupportedPrecision
from edgecore.quality.tensors import compare_tensors

from support.onnx_graphs import native, one, sealed, value, write

DRAW = np.random.default_rng(7)
DEEP = {
    "w1": (DRAW.standard_normal((8, 3, 3, 3)) / 5).astype(np.float32),
    "w2": (DRAW.standard_normal((16, 8, 3, 3)) / 8).astype(np.float32),
    "w3": (DRAW.standard_normal((16, 10)) / 4).astype(np.float32),
}


@pytest.fixture(scope="module")
def network(openvino: Any, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
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
    made = openvino.convert(path, folder / "ir", "f32", format="openvino-ir")
    return sealed(folder / "ir", made)


def images(count: int, seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal((count, 3, 12, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("feeds")
    for number in range(12):
        np.savez(folder / f"{number:02}.npz", image=images(2, number))
    return folder


def answer(openvino: Any, artifact: Artifact) -> Any:
    with openvino.run(artifact) as session:
        assert session.inputs[0].shape == ("batch", 3, 12, 12)
        return session({"image": images(40, 99)})["scores"]


@pytest.mark.parametrize(("precision", "bits", "sqnr"), [("int8_sym", 8.5, 40), ("int8_asym", 9, 38), ("a8w8", 9, 28)])
def test_eight_bits_cost_what_eight_bits_cost(
    openvino: Any, network: Artifact, calibration: Path, tmp_path: Path, precision: str, bits: float, sqnr: float
) -> None:
    made = openvino.quantize(network, tmp_path / "q", precision, calibration=calibration)
    assert made.weights.fallbacks == ()
    assert 8 < made.weights.eligible_bits_per_weight < bits
    biases = 24 if precision == "a8w8" else 0  # that correct what rounding shifts
    assert 0 <= made.weights.parameters - sum(w.size for w in DEEP.values()) <= biases
    error = compare_tensors(answer(openvino, network), answer(openvino, sealed(tmp_path / "q", made, precision)))
    assert error.sqnr_db > sqnr
    assert (tmp_path / "q/model.bin").stat().st_size < (network.path / "model.bin").stat().st_size / 2


def test_a_classifier_stays_as_accurate(openvino: Any, tmp_path: Path) -> None:
    fixtures = pytest.importorskip(
        "edgecore_conformance.fixtures", reason="needs the suite's fixtures: pip install -e conformance"
    )
    found = fixtures.classifier()
    pictures, labels = np.asarray(found.images), np.asarray(found.labels)
    (tmp_path / "feeds").mkdir()
    for number in range(32):
        np.savez(tmp_path / f"feeds/{number:02}.npz", image=pictures[number : number + 1])
    right = {}
    for precision in ("f32", "int8_sym", "a8w8"):
        artifact = native(found.model)
        if precision != "f32":
            out = tmp_path / precision
            made = openvino.quantize(artifact, out, precision, calibration=tmp_path / "feeds")
            artifact = sealed(out, made, precision)
        with openvino.run(artifact) as session:
            scores = next(iter(session({"image": pictures[32:]}).values()))
        right[precision] = float((scores.argmax(axis=1) == labels[32:]).mean())
    assert right["f32"] > 0.95
    assert right["int8_sym"] >= right["f32"] - 0.01
    assert right["a8w8"] >= right["f32"] - 0.02


def test_what_is_ignored_stays_as_it_was_and_is_listed(openvino: Any, network: Artifact, tmp_path: Path) -> None:
    made = openvino.quantize(network, tmp_path / "q", "int8_sym", ignored_types="MatMul")
    assert [(f.tensor, f.got) for f in made.weights.fallbacks] == [("w3", "f32")]
    with pytest.raises(BadRequest, match="ignored_names"):
        openvino.quantize(network, tmp_path / "none", "int8_sym", ignored_names="nobody")


def test_options_of_the_calibration_are_used(
    openvino: Any, network: Artifact, calibration: Path, tmp_path: Path
) -> None:
    made = openvino.quantize(
        network, tmp_path / "q", "a8w8", calibration=calibration, preset="mixed", ranges="mean",
        overflow_fix="disable", fast_bias_correction=False, subset_size=5, model_type="none",
    )  # fmt: skip
    assert made.notes == ("calibrated on 5 feeds",)
    assert "nncf" in made.tools


@pytest.mark.parametrize("given", [{"group_size": 32}, {"preset": "mixed"}])
def test_an_option_of_another_precision_is_refused(
    openvino: Any, network: Artifact, tmp_path: Path, given: Any
) -> None:
    with pytest.raises(BadRequest, match=f"int8_sym of a tensor model has no option {next(iter(given))}"):
        openvino.quantize(network, tmp_path / "q", "int8_sym", **given)


def test_an_option_of_tensor_models_is_refused_for_text(openvino: Any, tiny_ir: Artifact, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="preset is an option of tensor models"):
        openvino.quantize(tiny_ir, tmp_path / "q", "int8_sym", preset="mixed")


def test_a_precision_of_text_models_is_refused(openvino: Any, network: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedPrecision, match="int4_sym of a tensor model") as refused:
        openvino.quantize(network, tmp_path / "q", "int4_sym")
    assert refused.value.supported == "int8_sym, int8_asym, a8w8"


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
    openvino: Any, network: Artifact, tmp_path: Path, content: Any, said: str
) -> None:
    (tmp_path / "feeds").mkdir()
    if isinstance(content, bytes):
        (tmp_path / "feeds/0.npz").write_bytes(content)
    elif content is not None:
        np.savez(tmp_path / "feeds/0.npz", **content)
    with pytest.raises(BadRequest, match=said):
        openvino.quantize(network, tmp_path / "q", "a8w8", calibration=tmp_path / "feeds")


def test_a_model_without_layers_has_nothing_to_quantize(openvino: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="no layer whose weights int8_sym changes"):
        openvino.quantize(native(one(tmp_path / "m.onnx", "Relu")), tmp_path / "q", "int8_sym")


def test_what_is_quantized_already_is_not_quantized_again(openvino: Any, network: Artifact, tmp_path: Path) -> None:
    made = openvino.quantize(network, tmp_path / "q", "int8_sym")
    with pytest.raises(UnsupportedModel, match="its weights are i8 already"):
        openvino.quantize(sealed(tmp_path / "q", made, "int8_sym"), tmp_path / "again", "int8_asym")


def test_who_hears_of_progress_may_cancel(openvino: Any, network: Artifact, calibration: Path, tmp_path: Path) -> None:
    heard: list[str] = []

    def cancel(done: int, total: int, stage: str) -> None:
        heard.append(stage)
        if stage == "statistics collection" and done > 3:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        openvino.quantize(network, tmp_path / "q", "a8w8", calibration=calibration, progress=cancel)
    assert heard[0] == "reading"
    assert "statistics collection" in heard
