"""The NPU's path on its emulator: what it computes, what it refuses and by which name, and what QNN never sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgecore.contract import BadRequest, DeviceUnavailable, Manifest, PlacementRefused, UnsupportedModel
from edgecore.contract.options import resolve
from edgecore_onnxruntime import placement, qnn, runtime, unfit
from edgecore_onnxruntime.chips import EMULATOR

from support.onnx_graphs import one, value, write

emulated = pytest.mark.skipif(bool(qnn.missing(EMULATOR)), reason=f"onnxruntime-qnn is not here: {qnn.INSTALL}")
WEIGHT = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32) / 8
X = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)


def layer(path: Path, *more: str) -> Path:
    """A matrix product, and operators after it."""
    names = ["m", *(f"v{i}" for i in range(1, len(more))), "y"] if more else ["y"]
    nodes = [helper.make_node("MatMul", ["x", "w"], [names[0]])]
    nodes += [helper.make_node(op, [names[i]], [names[i + 1]]) for i, op in enumerate(more)]
    return write(path, nodes, [value("x", [4, 64])], [value("y", [4, 32])], {"w": WEIGHT})


@emulated
def test_float32_is_computed_in_16_bits_and_the_same_every_time(tmp_path: Path) -> None:
    model = layer(tmp_path / "m.onnx")
    answers = [qnn.open_on_npu(model, 1, EMULATOR, {}).run(None, {"x": X})[0] for _ in range(2)]
    assert answers[0].tobytes() == answers[1].tobytes()
    error = np.abs(answers[0] - X @ WEIGHT).max()
    assert 1e-6 < error < 0.01, "float16 it is"


@emulated
def test_operators_that_it_does_not_take_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"does not take these operators: Acosh \(2\), Erf\n") as caught:
        qnn.open_on_npu(layer(tmp_path / "m.onnx", "Acosh", "Relu", "Acosh", "Erf"), 1, EMULATOR, {})
    assert "--allow-fallback" in caught.value.hint


@emulated
def test_a_chip_without_float_units_says_so_of_every_operator(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="MatMul"):
        qnn.open_on_npu(layer(tmp_path / "m.onnx"), 1, EMULATOR, {"soc_model": "QCS6490"})


@emulated
def test_a_chip_that_nobody_knows_is_refused_where_qnn_would_blame_the_operators(tmp_path: Path) -> None:
    for name in ("9999", "SM9999", "-1", "x"):
        with pytest.raises(BadRequest, match="no chip with an NPU") as caught:
            qnn.open_on_npu(layer(tmp_path / "m.onnx"), 1, EMULATOR, {"soc_model": name})
        assert "SM8750 (69)" in caught.value.supported


@emulated
def test_one_process_plays_several_chips_but_the_oldest_beside_none(tmp_path: Path) -> None:
    model = layer(tmp_path / "m.onnx", "Sigmoid")

    def answer(session: Any) -> bytes:
        found: bytes = session.run(None, {"x": X})[0].tobytes()
        return found

    alone = qnn.open_on_npu(model, 1, EMULATOR, {})
    before = answer(alone)
    beside = [qnn.open_on_npu(model, 1, EMULATOR, {"soc_model": chip}) for chip in ("SM8650", "SC8480XP")]
    with pytest.raises(DeviceUnavailable, match=r"plays S.* in this process, and cannot play SM8350 beside it"):
        qnn.open_on_npu(model, 1, EMULATOR, {"soc_model": "SM8350"})
    assert [answer(session) for session in (alone, *beside)] == [before] * 3
    del alone, beside
    oldest = qnn.open_on_npu(model, 1, EMULATOR, {"soc_model": "SM8350"})
    assert answer(oldest) != before, "Hexagon v68 has another sigmoid"


def test_values_that_qnn_would_take_in_silence_are_refused_by_the_manifest(manifest: Manifest) -> None:
    options = manifest.options_of("run")
    for given in ({"htp_performance_mode": "warp"}, {"htp_arch": 99}, {"vtcm_mb": -1}, {"soc": "SM8750"}):
        with pytest.raises(BadRequest):
            resolve(options, given, "run", "onnxruntime")
    assert set(qnn.PROVIDER) <= {option.name for option in options}


@emulated
def test_every_option_that_is_handed_on_is_taken(tmp_path: Path) -> None:
    given = {"htp_performance_mode": "burst", "htp_graph_finalization_optimization_mode": 3, "vtcm_mb": 4}
    session = qnn.open_on_npu(layer(tmp_path / "m.onnx"), 1, EMULATOR, given)
    said = session.get_provider_options()[placement.QNN]
    assert {name: said.get(name) for name in given} in ({k: str(v) for k, v in given.items()}, dict.fromkeys(given))


@emulated
def test_a_refusal_of_another_kind_stays_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing stays behind where all may fall back: then it was not the operators."""
    monkeypatch.setattr(qnn, "left_over", lambda session: {})
    error = PlacementRefused("a library is missing")
    assert qnn.explained(layer(tmp_path / "m.onnx"), EMULATOR, {}, error) is error


POOLS = [
    ("AveragePool", {"auto_pad": "SAME_UPPER"}, True),
    ("LpPool", {"auto_pad": "SAME_UPPER"}, True),
    ("AveragePool", {"pads": [0, 0, 1, 1]}, True),
    ("AveragePool", {"ceil_mode": 1, "strides": [2, 2]}, True),
    ("AveragePool", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, False),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, False),
    ("AveragePool", {"kernel_shape": [3, 3], "auto_pad": "SAME_LOWER"}, False),
    ("MaxPool", {"auto_pad": "SAME_UPPER"}, False),
]


@pytest.mark.parametrize(("operator", "attributes", "refused"), POOLS)
def test_pooling_that_ends_the_process_never_reaches_qnn(
    tmp_path: Path, operator: str, attributes: dict[str, Any], refused: bool
) -> None:
    given = {"kernel_shape": [2, 2], **attributes}
    path = one(tmp_path / "m.onnx", operator, shape=(1, 3, 8, 8), **given)
    if refused:
        with pytest.raises(UnsupportedModel, match=f"{operator} with"):
            qnn.check_graph(path)
    else:
        assert qnn.check_graph(path) is None


NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
SIZES = [
    (4, 8, {"mode": "nearest"}, False),
    (8, 4, {"mode": "nearest"}, True),
    (4, 7, {"mode": "nearest"}, True),
    (4, 7, NEAREST, False),
    (4, 8, {**NEAREST, "nearest_mode": "round_prefer_ceil"}, True),
    (4, 7, {"mode": "linear"}, False),
    (4, 1, {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}, True),
]


@emulated
@pytest.mark.parametrize(("before", "after", "attributes", "refused"), SIZES)
def test_resize_is_right_or_refused(
    tmp_path: Path, before: int, after: int, attributes: dict[str, Any], refused: bool
) -> None:
    image = np.random.default_rng(4).standard_normal((1, 3, before, before)).astype(np.float32)
    node = helper.make_node("Resize", ["x", "", "", "s"], ["y"], **attributes)
    sizes = {"s": np.array([1, 3, after, after], np.int64)}
    shapes = [value("x", list(image.shape))], [value("y", [1, 3, after, after])]
    path = write(tmp_path / "m.onnx", [node], *shapes, sizes, opset=19)
    if refused:
        with pytest.raises(UnsupportedModel, match="Resize with these modes"):
            qnn.open_on_npu(path, 1, EMULATOR, {})
        return
    due = runtime.open_model(path, runtime.session_options(1, {})).run(None, {"x": image})[0]
    np.testing.assert_allclose(qnn.open_on_npu(path, 1, EMULATOR, {}).run(None, {"x": image})[0], due, atol=0.005)


@emulated
@pytest.mark.parametrize(
    ("strides", "more", "refused"), [([2, 2], [1, 1], False), ([3, 3], [1, 1], True), ([3, 2], [0, 1], False)]
)
def test_a_transposed_convolution_is_right_or_refused(
    tmp_path: Path, strides: list[int], more: list[int], refused: bool
) -> None:
    image = np.random.default_rng(4).standard_normal((1, 3, 4, 4)).astype(np.float32)
    weight = np.random.default_rng(5).standard_normal((3, 2, 3, 3)).astype(np.float32) / 4
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=strides, output_padding=more)
    path = write(tmp_path / "m.onnx", [node], [value("x", [1, 3, 4, 4])], [value("y", None)], {"w": weight})
    if refused:
        with pytest.raises(UnsupportedModel, match="longer than its windows reach"):
            qnn.open_on_npu(path, 1, EMULATOR, {})
        return
    due = runtime.open_model(path, runtime.session_options(1, {})).run(None, {"x": image})[0]
    np.testing.assert_allclose(qnn.open_on_npu(path, 1, EMULATOR, {}).run(None, {"x": image})[0], due, atol=0.01)


def swish(path: Path, *names: str, turned: bool = False) -> Path:
    """As MobileNet has it."""
    hard = helper.make_node("HardSigmoid", ["x"], ["h"], alpha=1 / 6, beta=0.5, name=names[0])
    factors = ["h", "x"] if turned else ["x", "h"]
    mul = helper.make_node("Mul", factors, ["y"], name=names[1])
    return write(path, [hard, mul], [value("x", [4, 64])], [value("y", [4, 64])])


@emulated
def test_a_product_that_qnn_multiplies_twice_is_refused_and_convert_turns_it_round(
    onnxruntime: Any, tmp_path: Path
) -> None:
    due = X * np.clip(X / 6 + 0.5, 0, 1)
    with pytest.raises(UnsupportedModel, match="'h': x \\* HardSigmoid"):
        qnn.open_on_npu(swish(tmp_path / "m.onnx", "h", ""), 1, EMULATOR, {})
    onnxruntime.convert(tmp_path / "m.onnx", tmp_path / "out", "f32", format="onnx")
    made = next((tmp_path / "out").glob("*.onnx"))
    for path in (made, swish(tmp_path / "t.onnx", "h", "m", turned=True), swish(tmp_path / "n.onnx", "", "m")):
        session = qnn.open_on_npu(path, 1, EMULATOR, {})
        np.testing.assert_allclose(session.run(None, {"x": X})[0], due, atol=0.01)


def test_what_is_inside_a_branch_is_looked_at_too(tmp_path: Path) -> None:
    inner = helper.make_graph([helper.make_node("STFT", ["a", "b"], ["c"])], "inner", [], [value("c", None)])
    node = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    model = helper.make_model(helper.make_graph([node], "g", [], []))
    with pytest.raises(UnsupportedModel, match="STFT"):
        unfit.check(model, tmp_path / "m.onnx")


@emulated
def test_pooling_that_is_let_through_is_right(tmp_path: Path) -> None:
    image = np.random.default_rng(3).standard_normal((1, 3, 8, 8)).astype(np.float32)
    for number, (operator, attributes, refused) in enumerate(POOLS):
        if not refused:
            given = {"kernel_shape": [2, 2], **attributes}
            path = one(tmp_path / f"{number}.onnx", operator, shape=(1, 3, 8, 8), **given)
            due = runtime.open_model(path, runtime.session_options(1, {})).run(None, {"x": image})[0]
            got = qnn.open_on_npu(path, 1, EMULATOR, {}).run(None, {"x": image})[0]
            np.testing.assert_allclose(got, due, atol=0.005, err_msg=f"{operator} {attributes}")


@emulated
def test_a_right_model_that_qnn_cannot_compile_is_not_called_corrupt(tmp_path: Path) -> None:
    rnn = helper.make_node("RNN", ["x", "w", "r"], ["", "y"], hidden_size=4, layout=1)
    weights = {"w": np.ones((1, 4, 2), np.float32), "r": np.ones((1, 4, 4), np.float32)}
    path = write(tmp_path / "m.onnx", [rnn], [value("x", [3, 1, 2])], [value("y", [3, 1, 4])], weights)
    onnx.checker.check_model(str(path))
    with pytest.raises(UnsupportedModel):
        qnn.open_on_npu(path, 1, EMULATOR, {})


@emulated
def test_quantized_models_run_on_chips_without_float_units(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    held = {
        "w": rng.integers(-100, 100, (64, 32)).astype(np.int8), "ws": np.float32(0.01), "wz": np.int8(0),
        "s": np.float32(0.05), "z": np.uint8(128),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["m"]),
        helper.make_node("QuantizeLinear", ["m", "s", "z"], ["mq"]),
        helper.make_node("DequantizeLinear", ["mq", "s", "z"], ["y"]),
    ]
    weights = {name: np.asarray(array) for name, array in held.items()}
    path = write(tmp_path / "m.onnx", nodes, [value("x", [4, 64])], [value("y", [4, 32])], weights)
    assert numpy_helper.to_array(onnx.load(path).graph.initializer[0]).dtype == np.int8
    session = qnn.open_on_npu(path, 1, EMULATOR, {"soc_model": "QCS6490"})
    due = runtime.open_model(path, runtime.session_options(1, {})).run(None, {"x": X})[0]
    np.testing.assert_allclose(session.run(None, {"x": X})[0], due, atol=0.11)
