"""Tensor sessions: right answers whatever the memory, an error that names the input for every wrong feed, and a refusal
where OpenVINO would answer something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import openvino as ov
import pytest
from onnx import TensorProto, helper
from openvino import opset13 as ops

from edgecore.contract import BadRequest, CannotDo, DeviceUnavailable, TensorSpec, UnsupportedModel
from edgecore_openvino.tensors import Shapes

from support.onnx_graphs import FLOAT, INT64, WEIGHT, native, one, product, value, write


def feeds(batch: int = 2, **other: Any) -> dict[str, Any]:
    x = np.linspace(-1, 1, 3 * batch, dtype=np.float32).reshape(batch, 3)
    return {"x": x, "z": np.ones((batch, 4), np.float32), **other}


def right(fed: dict[str, Any]) -> Any:
    return fed["x"] @ WEIGHT + fed["z"]


@pytest.fixture(scope="module")
def session(openvino: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with openvino.run(native(product(tmp_path_factory.mktemp("onnx") / "model.onnx"))) as opened:
        yield opened


def test_an_onnx_file_runs_where_it_lies_with_the_names_it_has(session: Any) -> None:
    assert session.inputs == (TensorSpec("x", "float32", ("batch", 3)), TensorSpec("z", "float32", ("batch", 4)))
    assert session.outputs == (TensorSpec("y", "float32", ("batch", 4)),)
    for batch in (1, 5, 0):
        np.testing.assert_allclose(session(feeds(batch))["y"], right(feeds(batch)), rtol=1e-6)
    assert session.placement.share("cpu") == 1.0
    assert session.conditions["threads"] == "1"
    assert session.conditions["compute"] == "f32"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"x": np.ones((2, 3), np.float64)}, "'x' has type float64"),
        ({"x": np.ones((2, 5), np.float32)}, r"'x' has shape \[2, 5\]"),
        ({"x": np.ones(3, np.float32)}, r"'x' has shape \[3\]"),
        ({"z": np.ones((3, 4), np.float32)}, r"'z' has shape \[3, 4\]"),
        ({"surplus": np.ones(1, np.float32)}, "no input 'surplus'"),
        ({"x": [[1.0, 2.0, 3.0]]}, "'x' is no array: list"),
        ({"z": None}, "'z' is missing"),
    ],
)
def test_a_wrong_feed_is_an_error_that_names_the_input_and_changes_nothing(
    session: Any, wrong: Any, named: str
) -> None:
    with pytest.raises(BadRequest, match=named):
        session(feeds(**wrong))
    np.testing.assert_allclose(session(feeds())["y"], right(feeds()), rtol=1e-6)


def read_only(array: Any) -> Any:
    made = array.copy()
    made.setflags(write=False)
    return made


def unaligned(array: Any) -> Any:
    made = np.frombuffer(bytearray(array.nbytes + 1), np.uint8)[1:].view(array.dtype).reshape(array.shape)
    made[:] = array
    return made


@pytest.mark.parametrize(
    "laid",
    [
        np.copy,
        read_only,
        unaligned,
        np.asfortranarray,
        lambda a: np.repeat(a, 2, axis=1)[:, ::2],
        lambda a: a[::-1].copy()[::-1],
        lambda a: a.astype(a.dtype.newbyteorder()),
    ],
    ids=["plain", "read-only", "unaligned", "fortran", "strided", "reversed", "other byte order"],
)
def test_how_a_feed_lies_in_memory_does_not_matter(session: Any, laid: Any) -> None:
    fed = {name: laid(array) for name, array in feeds(4).items()}
    answer = session(fed)["y"]
    np.testing.assert_allclose(answer, right(feeds(4)), rtol=1e-6)
    assert all(np.array_equal(fed[name], array) for name, array in feeds(4).items()), "feeds are not written to"


def test_answers_are_the_callers_to_keep_and_to_write_to(session: Any) -> None:
    first = session(feeds(3))["y"]
    kept = first.copy()
    session(feeds(3, z=np.full((3, 4), 9, np.float32)))
    assert np.array_equal(first, kept)
    first[:] = 0
    np.testing.assert_allclose(session(feeds(3))["y"], kept)


def test_a_feed_that_is_gone_after_the_call_is_not_read_by_the_next(session: Any) -> None:
    for _ in range(50):
        session(feeds(200))
    np.testing.assert_allclose(session(feeds(2))["y"], right(feeds(2)), rtol=1e-6)


def test_a_closed_session_says_so(openvino: Any, tmp_path: Path) -> None:
    opened = openvino.run(native(product(tmp_path / "model.onnx")))
    opened.close()
    opened.close()
    with pytest.raises(BadRequest, match="closed"):
        opened(feeds())


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "int16", "int32", "uint8", "uint16", "uint32", "float16", "bfloat16", "float8_e4m3fn"]
)
def test_types_go_through_to_the_last_bit(openvino: Any, tmp_path: Path, dtype: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    path = one(tmp_path / "model.onnx", "Transpose", helper.np_dtype_to_tensor_dtype(kind), perm=[1, 0])
    given = np.array([[0, 1, 3], [5, 0, 2]]).astype(kind)
    with openvino.run(native(path)) as opened:
        assert opened.inputs[0].dtype == dtype
        answer = opened({"x": given})["y"]
    assert answer.dtype == kind
    assert np.array_equal(answer.view(np.uint8), np.ascontiguousarray(given.T).view(np.uint8))


def test_an_integer_that_32_bits_do_not_hold_is_refused_not_cut(openvino: Any, tmp_path: Path) -> None:
    with openvino.run(native(one(tmp_path / "model.onnx", "Identity", INT64))) as opened:
        ends = np.array([[-(2**31), 2**31 - 1, 7]])
        assert np.array_equal(opened({"x": ends})["y"], ends)
        with pytest.raises(CannotDo, match="'x' holds 2147483648, and OpenVINO computes int64 in 32 bits"):
            opened({"x": np.array([[2**31, 0, 0]])})


def test_float64_is_exact_refused_or_rounded_on_request(openvino: Any, tmp_path: Path) -> None:
    path = one(tmp_path / "model.onnx", "Neg", TensorProto.DOUBLE)
    with openvino.run(native(path)) as opened:
        assert opened({"x": np.array([[0.5, -2.0, np.nan]])})["y"].tolist()[0][:2] == [-0.5, 2.0]
        for number in (0.1, np.inf, 1e300):
            with pytest.raises(CannotDo, match="computes float64 in float32") as refused:
                opened({"x": np.array([[number, 0, 0]])})
        assert "-O float64=float32" in refused.value.supported
    with openvino.run(native(path), float64="float32") as opened:
        assert opened({"x": np.array([[0.1, 0, 0]])})["y"][0, 0] == pytest.approx(-0.1)
        with pytest.raises(CannotDo, match="output 'y' is infinite"):
            opened({"x": np.array([[np.inf, 0, 0]])})


def test_an_input_that_nothing_computes_with_is_an_input_all_the_same(openvino: Any, tmp_path: Path) -> None:
    """OpenVINO drops it, and names the other after what it becomes."""
    nodes = [helper.make_node("CastLike", ["x", "like"], ["y"])]
    inputs = [value("like", [2], INT64), value("x", ["n"])]
    path = write(tmp_path / "model.onnx", nodes, inputs, [value("y", ["n"], INT64)], opset=19)
    with openvino.run(native(path)) as opened:
        assert [spec.name for spec in opened.inputs] == ["like", "x"]
        fed = {"x": np.array([1.0, -2.0], np.float32), "like": np.zeros(2, np.int64)}
        assert opened(fed)["y"].tolist() == [1, -2]
        with pytest.raises(BadRequest, match="'like' is missing"):
            opened({"x": fed["x"]})


def test_an_output_that_is_an_input_is_another_array(openvino: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], [value("x", [3])], [
        value("y", [3]), value("x", [3]),
    ])  # fmt: skip
    with openvino.run(native(path)) as opened:
        x = np.array([-1, 0, 2], np.float32)
        answer = opened({"x": x})
        assert answer["y"].tolist() == [0, 0, 2]
        answer["x"][:] = 5
        assert x.tolist() == [-1, 0, 2]


@pytest.mark.parametrize("op", ["MatMul", "Add", "Concat"])
def test_shapes_that_contradict_each_other_are_the_callers_fault(openvino: Any, tmp_path: Path, op: str) -> None:
    node = helper.make_node(op, ["x", "z"], ["y"], **({"axis": 0} if op == "Concat" else {}))
    inputs = [value("x", ["a", "b"]), value("z", ["c", "d"])]
    path = write(tmp_path / "model.onnx", [node], inputs, [value("y", ["e", "f"])])
    x, z = np.ones((2, 3), np.float32), np.ones((5, 4), np.float32)
    with openvino.run(native(path)) as opened:
        with pytest.raises(BadRequest, match="these inputs do not go together"):
            opened({"x": x, "z": z})
        assert opened({"x": x, "z": x.T.copy() if op == "MatMul" else x})["y"].size


WRONG = {
    "DFT": ({"onesided": 1}, 17, "onesided=1"),
    "Resize": ({"antialias": 1}, 18, "antialias=1"),
    "DynamicQuantizeLinear": ({}, 17, "half-way steps"),
    "SpaceToDepth": ({"blocksize": 2, "mode": "CRD"}, 17, "mode=CRD"),
}


@pytest.mark.parametrize("op", WRONG)
def test_what_openvino_would_compute_otherwise_is_refused_by_name(openvino: Any, tmp_path: Path, op: str) -> None:
    attributes, opset, said = WRONG[op]
    node = helper.make_node(op, ["x"], ["y"], **attributes)
    path = write(tmp_path / "m.onnx", [node], [value("x", [1, 2, 4, 6])], [value("y", None)], opset=opset)
    with pytest.raises(UnsupportedModel, match=f"{op} with .*{said}"):
        openvino.run(native(path))


def test_tile_over_many_axes_is_refused_only_where_its_repeats_are_computed(openvino: Any, tmp_path: Path) -> None:
    x = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    node = helper.make_node("Tile", ["x", "r"], ["y"])
    inputs, outputs = [value("x", [1, 2, 3, 4])], [value("y", [None] * 4)]
    fed = write(tmp_path / "fed.onnx", [node], [*inputs, value("r", [4], INT64)], outputs)
    with pytest.raises(UnsupportedModel, match="Tile over more than 3 axes"):
        openvino.run(native(fed))
    fixed = write(tmp_path / "fixed.onnx", [node], inputs, outputs, {"r": np.array([2, 2, 2, 2])})
    with openvino.run(native(fixed)) as opened:
        assert np.array_equal(opened({"x": x})["y"], np.tile(x, (2, 2, 2, 2)))


@pytest.mark.parametrize("kind", [TensorProto.STRING, TensorProto.COMPLEX64])
def test_a_type_that_no_session_has_is_not_supported(openvino: Any, tmp_path: Path, kind: int) -> None:
    with pytest.raises(UnsupportedModel, match="type"):
        openvino.run(native(one(tmp_path / "model.onnx", "Identity", kind)))


def test_a_device_that_is_not_here_is_told_before_what_it_would_need(openvino: Any, tmp_path: Path) -> None:
    with pytest.raises(DeviceUnavailable):
        openvino.run(native(product(tmp_path / "model.onnx")), device="npu")


def test_a_session_is_called_by_several_threads_in_turn(session: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    given = [feeds(1 + n % 5, z=np.full((1 + n % 5, 4), n, np.float32)) for n in range(40)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda fed: session(fed)["y"], given))
    for fed, answer in zip(given, answers, strict=True):
        np.testing.assert_allclose(answer, right(fed), rtol=1e-6)


def test_float_means_float(openvino: Any, tmp_path: Path) -> None:
    """An f32 model is computed in f32, whatever the device would choose."""
    with openvino.run(native(one(tmp_path / "model.onnx", "Sqrt", FLOAT)), inference_precision="device") as opened:
        x = np.array([[2, 3, 5]], np.float32)
        np.testing.assert_allclose(opened({"x": x})["y"], np.sqrt(x), rtol=3e-7)


def test_a_rotary_embedding_from_the_compile_cache_turns_as_before(openvino: Any, tmp_path: Path) -> None:
    draw, shapes = np.random.default_rng(3), {"x": [1, 2, 3, 8], "cos": [9, 4], "sin": [9, 4], "at": [1, 3]}
    nodes = [helper.make_node("RotaryEmbedding", list(shapes), ["y"])]
    inputs = [value(name, shape, INT64 if name == "at" else FLOAT) for name, shape in shapes.items()]
    path = write(tmp_path / "m.onnx", nodes, inputs, [value("y", [1, 2, 3, 8])], opset=23)
    fed = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    fed["at"] = np.array([[2, 7, 0]])
    cos, sin = (fed[name][fed["at"]][:, None] for name in ("cos", "sin"))
    left, right = np.split(fed["x"], 2, axis=-1)
    wanted = np.concatenate([left * cos - right * sin, left * sin + right * cos], axis=-1)
    for _ in range(2):
        with openvino.run(native(path), compile_cache=True) as opened:
            np.testing.assert_allclose(opened(fed)["y"], wanted, rtol=1e-5, atol=1e-6)


def test_what_fails_inside_openvino_is_an_error_on_one_thread_too(openvino: Any, tmp_path: Path) -> None:
    """Its `infer` answers what the call before did."""
    path = write(tmp_path / "m.onnx", [helper.make_node("Add", ["x", "z"], ["y"])], [
        value("x", ["a"]), value("z", ["b"]),
    ], [value("y", ["c"])])  # fmt: skip
    two, three = np.ones(2, np.float32), np.ones(3, np.float32)
    with openvino.run(native(path)) as opened:
        for _ in range(3):
            assert opened({"x": two, "z": two})["y"].tolist() == [2, 2]
            with pytest.raises(BadRequest, match="do not go together"):
                opened({"x": two, "z": three})


def test_inputs_are_known_to_be_safe_where_their_shapes_decide_all_others() -> None:
    two, three = (ov.Tensor(np.ones(n, np.float32)) for n in (2, 3))
    x = ops.parameter([-1], np.float32)
    decided = Shapes(ov.Model([ops.relu(x)], [x]))
    assert not decided.known([two])
    decided.worked([two])
    assert decided.known([two])
    assert not decided.known([three])
    y = ops.parameter([-1], np.float32)
    by_values = Shapes(ov.Model([ops.non_zero(y)], [y]))
    by_values.worked([two])
    assert not by_values.known([two])
    z = ops.parameter([2], np.float32)
    assert Shapes(ov.Model([ops.relu(z)], [z])).known([two])
    assert not Shapes(None).known([two])
