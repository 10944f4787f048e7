"""Tensor sessions: right answers whatever the memory, an error that names the input for every wrong feed, and a refusal
where ONNX Runtime would answer something else."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from edgecore.contract import Artifact, BadRequest, CannotDo, CorruptModel, TensorSpec, UnsupportedModel

from support import onnx_graphs
from support.onnx_graphs import INT64, WEIGHT, one, product, value, write


def native(path: Path) -> Artifact:
    return onnx_graphs.native(path, backend="onnxruntime", format="onnx")


def feeds(batch: int = 2, **other: Any) -> dict[str, Any]:
    x = np.linspace(-1, 1, 3 * batch, dtype=np.float32).reshape(batch, 3)
    return {"x": x, "z": np.ones((batch, 4), np.float32), **other}


def right(fed: dict[str, Any]) -> Any:
    return fed["x"] @ WEIGHT + fed["z"]


@pytest.fixture(scope="module")
def session(onnxruntime: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with onnxruntime.run(native(product(tmp_path_factory.mktemp("onnx") / "model.onnx"))) as opened:
        yield opened


def test_an_onnx_file_runs_where_it_lies_with_the_names_it_has(session: Any) -> None:
    assert session.inputs == (TensorSpec("x", "float32", ("batch", 3)), TensorSpec("z", "float32", ("batch", 4)))
    assert session.outputs == (TensorSpec("y", "float32", ("batch", 4)),)
    for batch in (1, 5, 0):
        np.testing.assert_allclose(session(feeds(batch))["y"], right(feeds(batch)), rtol=1e-6)
    assert session.placement.share("cpu") == 1.0
    assert session.conditions["threads"] == "1"
    assert session.conditions["device"] == "cpu"


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


def test_a_closed_session_says_so(onnxruntime: Any, tmp_path: Path) -> None:
    opened = onnxruntime.run(native(product(tmp_path / "model.onnx")))
    opened.close()
    opened.close()
    with pytest.raises(BadRequest, match="closed"):
        opened(feeds())


@pytest.mark.parametrize(
    "dtype",
    [
        "bool",
        "int8",
        "int16",
        "int32",
        "uint8",
        "uint16",
        "uint32",
        "int64",
        "uint64",
        "float16",
        "float64",
        "bfloat16",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
        "int4",
        "uint4",
    ],
)
def test_types_go_through_to_the_last_bit(onnxruntime: Any, tmp_path: Path, dtype: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    number = helper.np_dtype_to_tensor_dtype(kind)
    node = helper.make_node("Transpose", ["x"], ["y"], perm=[1, 0])
    path = write(tmp_path / "m.onnx", [node], [value("x", ["n", 3], number)], [value("y", None, number)], opset=21)
    given = np.array([[0, 1, 3], [5, 0, 2], [7, 6, 4]]).astype(kind)
    with onnxruntime.run(native(path)) as opened:
        assert opened.inputs[0].dtype == dtype
        answer = opened({"x": given})["y"]
    assert answer.dtype == kind
    assert np.array_equal(answer.view(np.uint8), np.ascontiguousarray(given.T).view(np.uint8))


def test_an_input_that_nothing_computes_with_is_an_input_all_the_same(onnxruntime: Any, tmp_path: Path) -> None:
    nodes = [helper.make_node("CastLike", ["x", "like"], ["y"])]
    inputs = [value("like", [2], INT64), value("x", ["n"])]
    path = write(tmp_path / "model.onnx", nodes, inputs, [value("y", ["n"], INT64)], opset=19)
    with onnxruntime.run(native(path)) as opened:
        assert [spec.name for spec in opened.inputs] == ["like", "x"]
        fed = {"x": np.array([1.0, -2.0], np.float32), "like": np.zeros(2, np.int64)}
        assert opened(fed)["y"].tolist() == [1, -2]
        with pytest.raises(BadRequest, match="'like' is missing"):
            opened({"x": fed["x"]})


def test_an_output_that_is_an_input_is_another_array(onnxruntime: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], [value("x", [3])], [
        value("y", [3]), value("x", [3]),
    ])  # fmt: skip
    with onnxruntime.run(native(path)) as opened:
        x = np.array([-1, 0, 2], np.float32)
        answer = opened({"x": x})
        assert answer["y"].tolist() == [0, 0, 2]
        answer["x"][:] = 5
        assert x.tolist() == [-1, 0, 2]


@pytest.mark.parametrize("op", ["MatMul", "Add", "Concat"])
def test_shapes_that_contradict_each_other_are_the_callers_fault(onnxruntime: Any, tmp_path: Path, op: str) -> None:
    node = helper.make_node(op, ["x", "z"], ["y"], **({"axis": 0} if op == "Concat" else {}))
    inputs = [value("x", ["a", "b"]), value("z", ["c", "d"])]
    path = write(tmp_path / "model.onnx", [node], inputs, [value("y", ["e", "f"])])
    x, z = np.ones((2, 3), np.float32), np.ones((5, 4), np.float32)
    with onnxruntime.run(native(path)) as opened:
        with pytest.raises(BadRequest, match="these inputs do not go together"):
            opened({"x": x, "z": z})
        assert opened({"x": x, "z": x.T.copy() if op == "MatMul" else x})["y"].size


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (TensorProto.STRING, "'x' is text"),
        (TensorProto.COMPLEX64, "'x' is complex64"),
        (TensorProto.FLOAT8E8M0, "'x' is float8_e8m0fnu"),
    ],
)
def test_a_type_that_no_session_has_is_not_supported(onnxruntime: Any, tmp_path: Path, kind: int, named: str) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        onnxruntime.run(native(one(tmp_path / "model.onnx", "Identity", kind)))


def test_sequences_and_optional_values_are_not_supported(onnxruntime: Any, tmp_path: Path) -> None:
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, ["n"])
    for kind in (helper.make_sequence_type_proto(tensor), helper.make_optional_type_proto(tensor)):
        node = helper.make_node("Identity", ["given"], ["y"])
        values = [helper.make_value_info(name, kind) for name in ("given", "y")]
        path = write(tmp_path / "m.onnx", [node], values[:1], values[1:])
        with pytest.raises(UnsupportedModel, match="'given' is no tensor"):
            onnxruntime.run(native(path))


def test_a_number_is_an_array_without_dimensions(onnxruntime: Any, tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0), helper.make_node("Mul", ["sum", "z"], ["y"])]
    path = write(tmp_path / "m.onnx", nodes, [value("x", ["n"]), value("z", [])], [value("y", [])])
    with onnxruntime.run(native(path)) as opened:
        answer = opened({"x": np.array([1, 2], np.float32), "z": np.array(3, np.float32)})["y"]
        assert isinstance(answer, np.ndarray)
        assert answer.shape == ()
        assert answer == 9


def test_a_custom_operator_is_named(onnxruntime: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"com\.example.Mystery"):
        onnxruntime.run(native(product(tmp_path / "m.onnx", op="Mystery", domain="com.example")))


def test_weights_that_are_gone_or_cut_are_told_before_anything_is_computed(onnxruntime: Any, tmp_path: Path) -> None:
    path = product(tmp_path / "m.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    with onnxruntime.run(native(path)) as opened:
        np.testing.assert_allclose(opened(feeds())["y"], right(feeds()), rtol=1e-6)
    (tmp_path / "weights").write_bytes(b"\0" * 20)
    with pytest.raises(CorruptModel, match="weights"):
        onnxruntime.run(native(path))
    (tmp_path / "weights").unlink()
    with pytest.raises(CorruptModel, match="weights"):
        onnxruntime.run(native(path))


WRONG = {
    "Attention": (["q", "k", "v"], {"is_causal": 1, "qk_matmul_output_mode": 2}, "qk_matmul_output_mode=2"),
    "MaxUnpool": (["q", "i", "s"], {"kernel_shape": [2, 2]}, "output_shape"),
    "Resize": (["q", "", "v"], {"coordinate_transformation_mode": "align_corners"}, "align_corners"),
}


@pytest.mark.parametrize("op", WRONG)
def test_what_onnx_runtime_would_compute_otherwise_is_refused_by_name(
    onnxruntime: Any, tmp_path: Path, op: str
) -> None:
    fed, attributes, said = WRONG[op]
    node = helper.make_node(op, fed, ["y"], **attributes)
    inputs = [value(name, [1, 2, 4, 6], INT64 if name in "is" else onnx_graphs.FLOAT) for name in fed if name]
    path = write(tmp_path / "m.onnx", [node], inputs, [value("y", None)], opset=23)
    with pytest.raises(UnsupportedModel, match=f"{op} with .*{said}"):
        onnxruntime.run(native(path))


def test_a_number_that_is_no_index_is_the_callers_fault(onnxruntime: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", [helper.make_node("Gather", ["w", "x"], ["y"])], [value("x", [1], INT64)], [
        value("y", [1, 4])
    ], {"w": WEIGHT})  # fmt: skip
    with onnxruntime.run(native(path)) as opened:
        with pytest.raises(BadRequest, match=r"do not go together.*indices"):
            opened({"x": np.array([7])})
        assert np.array_equal(opened({"x": np.array([2])})["y"], WEIGHT[2:])


def test_what_fails_with_any_input_is_the_models_fault(onnxruntime: Any, tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceMax", ["x", "axes"], ["y"])]
    path = write(tmp_path / "m.onnx", nodes, [value("x", [2, 0], TensorProto.BOOL)], [
        value("y", [2, 1], TensorProto.BOOL)
    ], {"axes": np.array([1])}, opset=20)  # fmt: skip
    with onnxruntime.run(native(path)) as opened, pytest.raises(UnsupportedModel, match="ReduceMax"):
        opened({"x": np.zeros((2, 0), bool)})


@pytest.mark.skipif(
    find_spec("onnxruntime_qnn") is None, reason="needs onnxruntime-qnn: bootstrap.py test --only onnxruntime"
)
def test_an_npu_takes_fixed_shapes_only(onnxruntime: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"fixed shapes only, and input 'x' is \['batch', 3\]") as refused:
        onnxruntime.run(native(product(tmp_path / "m.onnx")), device="npu-emulator")
    assert refused.value.hint.endswith(" --shape x=1,3 --shape z=1,4"), "which works as it stands"


@pytest.mark.skipif(
    find_spec("onnxruntime_qnn") is None, reason="needs onnxruntime-qnn: bootstrap.py test --only onnxruntime"
)
def test_an_input_of_nothing_does_not_end_the_process(onnxruntime: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"no empty inputs, and 'x' is \[0, 3\]"):
        onnxruntime.run(native(one(tmp_path / "m.onnx", "Relu", shape=[0, 3])), device="npu-emulator")


@pytest.mark.skipif(
    find_spec("onnxruntime_qnn") is None, reason="needs onnxruntime-qnn: bootstrap.py test --only onnxruntime"
)
def test_whole_numbers_that_lose_their_upper_half_are_refused(onnxruntime: Any, tmp_path: Path) -> None:
    with onnxruntime.run(native(one(tmp_path / "m.onnx", "Abs", INT64, [2])), device="npu-emulator") as opened:
        assert opened({"x": np.array([-3, 2**31 - 1])})["y"].tolist() == [3, 2**31 - 1]
        for wide in (2**31, -(2**31) - 1):
            with pytest.raises(CannotDo, match="'x' holds whole numbers of more than 32 bits"):
                opened({"x": np.array([0, wide])})


@pytest.mark.skipif(
    find_spec("onnxruntime_qnn") is None, reason="needs onnxruntime-qnn: bootstrap.py test --only onnxruntime"
)
def test_numbers_that_an_npu_takes_for_others_are_refused(onnxruntime: Any, tmp_path: Path) -> None:
    node = helper.make_node("GatherElements", ["x", "at"], ["y"])
    path = write(tmp_path / "m.onnx", [node], [value("x", [3]), value("at", [2], INT64)], [value("y", [2])])
    fed = {"x": np.array([1, 2, 3], np.float32), "at": np.array([2, 0])}
    with onnxruntime.run(native(path), device="npu-emulator") as opened:
        np.testing.assert_allclose(opened(fed)["y"], [3, 1], rtol=1e-2)
        with pytest.raises(CannotDo, match="'at' holds the index -1"):
            opened({**fed, "at": np.array([-1, 0])})
        with pytest.raises(CannotDo, match="'x' holds infinity"):
            opened({**fed, "x": np.array([1, 2, np.inf], np.float32)})
        with pytest.raises(CannotDo, match="'x' holds what is no number"):
            opened({**fed, "x": np.array([1, 2, np.nan], np.float32)})
    constant = write(tmp_path / "c.onnx", [node], [value("x", [3])], [value("y", [2])], {"at": np.array([-1, 0])})
    with pytest.raises(UnsupportedModel, match="GatherElements with negative indices"):
        onnxruntime.run(native(constant), device="npu-emulator")
