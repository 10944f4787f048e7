"""Functions exported without shapes: which sizes may change is found out, and what MLX would compute out of bounds is
refused. Against MLX itself at many sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from edgecore.contract import BadRequest
from edgecore_mlx import shapeless

from support.mlx_functions import export, feeds, native, product, right

WEIGHT = mx.arange(12, dtype=mx.float32).reshape(4, 3) / 12


def layer(made: Any) -> Any:
    mx.eval(made.parameters())
    return made


def zeros(*shapes: tuple[int, ...]) -> tuple[mx.array, ...]:
    return tuple(mx.zeros(shape) for shape in shapes)


def test_a_size_that_may_change_has_a_symbol_and_changes(mlx: Any, tmp_path: Path) -> None:
    with mlx.run(native(product(tmp_path / "model.mlxfn", (2,), shapeless=True))) as session:
        assert [spec.shape for spec in session.inputs] == [("input_0_0", 3), ("input_0_0", 4)]
        assert session.outputs[0].shape == ("input_0_0", 4)
        for batch in (2, 1, 7, 64):
            np.testing.assert_allclose(session(feeds(batch))["output_0"], right(feeds(batch)), rtol=1e-6, atol=1e-7)
        with pytest.raises(BadRequest, match="an input is empty"):
            session(feeds(0))
        with pytest.raises(BadRequest, match=r"'input_0' has shape \[2, 5\]"):
            session(feeds(2, input_0=np.ones((2, 5), np.float32)))


CASES: dict[str, tuple[Any, tuple[mx.array, ...], list[tuple[Any, ...]], list[tuple[Any, ...]]]] = {
    "matmul": (
        lambda x: x @ WEIGHT, zeros((2, 5, 4)), [("input_0_0", "input_0_1", 4)], [("input_0_0", "input_0_1", 3)],
    ),
    "own product": (
        lambda x: mx.softmax(x @ x.T), zeros((6, 4)), [("input_0_0", "input_0_1")], [("input_0_0", "input_0_0")],
    ),
    "sum of two": (
        lambda x, y: x + y, zeros((5, 4), (5, 4)), [("input_0_0", "input_0_1")] * 2, [("input_0_0", "input_0_1")],
    ),
    "concatenated": (
        lambda x, y: mx.concatenate([x, y]),
        zeros((6, 4), (3, 4)),
        [("input_0_0", "input_0_1"), ("input_1_0", "input_0_1")],
        [("output_0_0", "input_0_1")],
    ),
    "reshaped": (lambda x: x.reshape(-1, 2), zeros((5, 4)), [("input_0_0", "input_0_1")], [("output_0_0", 2)]),
    "fixed by a reshape": (lambda x: x.reshape(5, 2, 2), zeros((5, 4)), [(5, 4)], [(5, 2, 2)]),
    "linear": (layer(nn.Linear(8, 2, bias=False)), zeros((2, 8)), [("input_0_0", 8)], [("input_0_0", 2)]),
    "linear, whose bias keeps its size": (layer(nn.Linear(8, 2)), zeros((2, 8)), [(2, 8)], [(2, 2)]),
    "norm": (layer(nn.LayerNorm(8)), zeros((2, 8)), [("input_0_0", 8)], [("input_0_0", 8)]),
    "quantized": (layer(nn.QuantizedLinear(64, 32)), zeros((2, 64)), [("input_0_0", 64)], [("input_0_0", 32)]),
    "embedding": (lambda i: WEIGHT[i], (mx.zeros((3,), mx.int32),), [("input_0_0",)], [("input_0_0", 3)]),
    "rows": (
        lambda x, i: x[i],
        (mx.zeros((2, 4)), mx.zeros((3,), mx.int32)),
        [("input_0_0", 4), ("input_1_0",)],
        [("input_1_0", 4)],
    ),
    "reduced": (lambda x: x.mean(1), zeros((6, 4)), [("input_0_0", "input_0_1")], [("input_0_0",)]),
}  # fmt: skip
CASES["convolution"] = (
    layer(nn.Conv2d(3, 6, 3)),
    zeros((1, 8, 8, 3)),
    [("input_0_0", "input_0_1", "input_0_2", 3)],
    [("input_0_0", "output_0_1", "output_0_2", 6)],
)
CASES["attention"] = (
    (lambda made: lambda x: made(x, x, x))(layer(nn.MultiHeadAttention(8, 2))),
    zeros((1, 5, 8)),
    [("input_0_0", "input_0_1", 8)],
    [("input_0_0", "input_0_1", 8)],
)


@pytest.mark.parametrize("case", CASES)
def test_which_sizes_may_change_is_found_by_changing_them(mlx: Any, tmp_path: Path, case: str) -> None:
    function, given, taken, made = CASES[case]
    path = export(tmp_path / "f.mlxfn", function, *given, shapeless=True)
    with mlx.run(native(path)) as session:
        assert [spec.shape for spec in session.inputs] == taken
        assert [spec.shape for spec in session.outputs] == made
        draw = np.random.default_rng(3)
        for size in (2, 3, 9):
            fed = {}
            for spec in session.inputs:
                shape = tuple(size + 3 * (case == "convolution") if isinstance(dim, str) else dim for dim in spec.shape)
                shape = (2 * shape[0], *shape[1:]) if case == "reshaped" else shape
                fed[spec.name] = (draw.random(shape) * (size if spec.dtype == "int32" and size < 4 else 1)).astype(
                    spec.dtype
                )
            answer = session(fed)["output_0"]
            expected = np.array(function(*map(mx.array, fed.values())))
            assert answer.shape == expected.shape
            np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-6)


def test_what_mlx_would_compute_from_memory_never_set_is_refused_by_name(mlx: Any, tmp_path: Path) -> None:
    path = export(tmp_path / "f.mlxfn", lambda x, y: x @ y, *zeros((2, 4), (4, 4)), shapeless=True)
    with mlx.run(native(path)) as session:
        assert session.inputs[0].shape == ("input_0_0", "input_0_1")
        assert session.inputs[1].shape == ("input_0_1", "input_1_1")
        with pytest.raises(BadRequest, match=r"'input_1' has shape \[7, 3\]\n.*input_0_1 = 5"):
            session({"input_0": np.ones((2, 5), np.float32), "input_1": np.ones((7, 3), np.float32)})
        fits = session({"input_0": np.ones((2, 5), np.float32), "input_1": np.ones((5, 3), np.float32)})
        assert fits["output_0"].tolist() == [[5] * 3] * 2
    shapes = shapeless.Shapes(mx.import_function(str(path)), mlxfn_inputs(path))
    with pytest.raises(BadRequest, match=r"do not go together: MLX has no Matmul of \[2, 5\] and \[4, 4\]"):
        shapes.infer([(2, 5), (4, 4)])


def mlxfn_inputs(path: Path) -> Any:
    from edgecore_mlx import mlxfn

    return mlxfn.read(path).traces[0].inputs


def test_a_mean_of_one_number_which_ends_mlx_is_refused(mlx: Any, tmp_path: Path) -> None:
    path = export(tmp_path / "f.mlxfn", lambda x: x.mean(1), mx.zeros((6, 4)), shapeless=True)
    with mlx.run(native(path)) as session, pytest.raises(BadRequest, match=r"MLX has no Reduce of \[3, 1\]"):
        session({"input_0": np.ones((3, 1), np.float32)})


def test_what_was_worked_out_for_the_sizes_of_then_is_not_used_for_others(mlx: Any, tmp_path: Path) -> None:
    path = export(tmp_path / "diagonal.mlxfn", mx.diagonal, mx.zeros((4, 4)), shapeless=True)
    with mlx.run(native(path)) as session, pytest.raises(BadRequest, match=r"MLX has no Gather of \[2, 2\]"):
        session({"input_0": np.ones((2, 2), np.float32)})
    path = export(tmp_path / "hadamard.mlxfn", mx.hadamard_transform, mx.zeros((4, 4)), shapeless=True)
    with mlx.run(native(path)) as session:
        assert session.inputs[0].shape == ("input_0_0", 4)


def test_inputs_that_each_fit_and_together_do_not_are_refused(mlx: Any, tmp_path: Path) -> None:
    path = export(tmp_path / "f.mlxfn", lambda x: x.reshape(-1, 2), mx.zeros((5, 4)), shapeless=True)
    with mlx.run(native(path)) as session:
        with pytest.raises(BadRequest, match=r"do not go together: \[reshape\] Cannot reshape array of size 15"):
            session({"input_0": np.ones((3, 5), np.float32)})
        assert session({"input_0": np.ones((2, 5), np.float32)})["output_0"].shape == (5, 2)


def test_of_a_large_function_only_so_much_is_found_out(
    mlx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapeless, "MOST_STEPS", 4)
    path = export(tmp_path / "f.mlxfn", lambda x: mx.exp(mx.exp(mx.exp(mx.exp(x)))), mx.zeros((5, 4)), shapeless=True)
    with mlx.run(native(path)) as session:
        assert session.inputs[0].shape == ("input_0_0", 4)


def test_a_function_without_a_size_needs_none(mlx: Any, tmp_path: Path) -> None:
    path = export(tmp_path / "f.mlxfn", lambda x: x * 2, mx.array(1.0), shapeless=True)
    with mlx.run(native(path)) as session:
        assert session.inputs[0].shape == ()
        assert session({"input_0": np.array(4, np.float32)})["output_0"] == 8
