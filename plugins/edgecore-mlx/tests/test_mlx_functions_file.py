"""What a file of functions says of itself, read without MLX: all operators there are, and nothing of a file that lies.

MLX reads lengths and types as they come: a wrong byte makes it abort, or take gigabytes, so it must not see one."""

from __future__ import annotations

import os
import random
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from edgecore.contract import CorruptModel, EdgecoreError, ModelNotFound, UnsupportedModel
from edgecore_mlx import mlxfn

from support.mlx_functions import export, native, product

A, B, N = mx.ones((4, 4)), mx.arange(16, dtype=mx.float32).reshape(4, 4) / 16, mx.array([[0, 2, 1, 3], [1, 3, 0, 0]])
M = mx.array([True, False, True, False])
X, W, Q = mx.ones((2, 64)), mx.quantize(mx.ones((8, 64)) / 3), mx.quantize(mx.ones((2, 8, 64)))
mx.eval(A, B, N, M, X, W, Q)


def masked(array: mx.array) -> mx.array:
    array = mx.array(array)
    array[M] = A[:2]
    return array


OPERATORS: dict[str, Any] = {
    "unary": lambda: [
        f(B) for f in (
            mx.abs, mx.arccos, mx.arccosh, mx.arcsin, mx.arcsinh, mx.arctan, mx.arctanh, mx.ceil, mx.cos, mx.cosh,
            mx.erf, mx.erfinv, mx.exp, mx.expm1, mx.floor, mx.log, mx.log2, mx.log10, mx.log1p, mx.logical_not,
            mx.negative, mx.round, mx.sigmoid, mx.sign, mx.sin, mx.sinh, mx.square, mx.sqrt, mx.rsqrt, mx.tan, mx.tanh,
            mx.stop_gradient,
        )
    ],
    "binary": lambda: [
        f(A, B + 1) for f in (
            mx.add, mx.arctan2, mx.divide, mx.equal, mx.floor_divide, mx.greater, mx.greater_equal, mx.less,
            mx.less_equal, mx.logaddexp, mx.logical_and, mx.logical_or, mx.maximum, mx.minimum, mx.multiply,
            mx.not_equal, mx.power, mx.remainder, mx.subtract, mx.matmul,
        )
    ] + [*mx.divmod(A, B + 1), mx.bitwise_xor(N, N), mx.left_shift(N, N), mx.array_equal(A, B, equal_nan=True)],
    "complex": lambda: [f(B.astype(mx.complex64)) for f in (mx.conj, mx.real, mx.imag)],
    "shapes": lambda: [
        B.reshape(2, 8), B.T, mx.flatten(B), mx.unflatten(B, 0, (2, 2)), mx.expand_dims(B, (0, 2)), B[None].squeeze(0),
        mx.broadcast_to(B[:1], (4, 4)), mx.pad(B, ((1, 0), (0, 2))), mx.concatenate([A, B], 1), *mx.split(B, [1, 3]),
        mx.as_strided(B, (2, 2), (1, 2), 3), mx.view(B, mx.int32), B.astype(mx.float16), B[1:4:2, ::-1], B.T @ A,
    ],
    "reductions": lambda: [
        B.sum(0), B.prod(1), B.min(), B.max(0), mx.all(B), mx.any(B, 1), B.mean(0), mx.argmax(B, 0), mx.argmin(B),
        mx.logsumexp(B, 1), mx.cumsum(B, 0), mx.cumprod(B, 1, reverse=True), mx.cummax(B),
        mx.softmax(B, -1), mx.softmax(B, -1, precise=True), B.var(),
    ],
    "sorts": lambda: [
        mx.sort(B, 0), mx.argsort(B, 1), mx.partition(B, 2), mx.argpartition(B, 1, 0), mx.topk(B, 2),
        mx.searchsorted(mx.arange(5), N),
    ],
    "indexing": lambda: [
        B[N], mx.take_along_axis(B, N, 0), mx.put_along_axis(B, N, A[:2] * 3, 0), masked(B), B.at[N].add(1.0),
        mx.where(B > 0, A, B), mx.slice(B, mx.array([1]), (0,), (2, 4)),
        mx.slice_update(B, A[:1], mx.array([1]), (0,)), B.at[1:3].add(A[:2]),
    ],
    "matrices": lambda: [
        mx.addmm(A, A, B, 0.5, 2.0), mx.gather_mm(A[None], B[None], mx.array([0]), mx.array([0])),
        mx.block_masked_mm(mx.ones((32, 32)), mx.ones((32, 32)), 32, mx.array([[True]])),
        mx.quantized_matmul(X, *W), mx.hadamard_transform(B),
        mx.gather_qmm(X[None], *Q, rhs_indices=mx.array([1])), mx.dequantize(*W), *mx.quantize(X),
        mx.conv1d(mx.ones((1, 8, 4)), mx.ones((2, 3, 4)), padding=1),
        mx.conv_transpose2d(A[None, :, :, None], A[:1, :1, None, None]),
    ],
    "linalg": lambda: [
        mx.linalg.cholesky(mx.eye(3), upper=True, stream=mx.cpu), mx.linalg.inv(mx.eye(3) * 2, stream=mx.cpu),
        mx.linalg.eigh(mx.eye(3), stream=mx.cpu)[1], *mx.linalg.qr(B, stream=mx.cpu),
        mx.linalg.svd(B, compute_uv=False, stream=mx.cpu),
        mx.linalg.eigvalsh(mx.eye(3), stream=mx.cpu), mx.linalg.eigvals(mx.eye(3), stream=mx.cpu),
    ],
    "others": lambda: [
        mx.arange(0, 4, 0.5), mx.full((2,), 3.0), mx.fft.rfft(B), mx.fft.ifft(B),
        mx.random.normal((3,), key=mx.random.key(1)),
        mx.fast.rms_norm(B, None, 1e-5), mx.fast.layer_norm(B, None, None, 1e-5), mx.depends(A, B), mx.var(B),
        mx.fast.rope(A[None, None], 4, traditional=False, base=10000.0, scale=1.0, offset=0),
        mx.fast.scaled_dot_product_attention(A[None, None], A[None, None], B[None, None], scale=0.5),
    ],
}  # fmt: skip
"""Functions of no input: what they hold is all constants and operators."""


@pytest.mark.parametrize("kind", OPERATORS)
def test_all_operators_that_mlx_writes_are_read_past(mlx: Any, tmp_path: Path, kind: str) -> None:
    """The file's own account of the outputs is what MLX then answers."""
    path = export(tmp_path / f"{kind}.mlxfn", OPERATORS[kind])
    said = mlxfn.read(path)
    with mx.stream(mx.cpu):
        answers = mx.import_function(str(path))()
        mx.eval(answers)
    found = [(str(answer.dtype).rpartition(".")[2], tuple(answer.shape)) for answer in answers]
    assert [(t.dtype, t.shape) for t in said.traces[0].outputs] == [(name.rstrip("_"), shape) for name, shape in found]
    with mlx.run(native(path)) as session:
        assert len(session({})) == len(answers)


def test_hardly_an_operator_is_left_out_of_what_was_tried(tmp_path: Path) -> None:
    seen = set()
    for kind, function in OPERATORS.items():
        seen |= {operator.name for operator in mlxfn.read(export(tmp_path / f"{kind}.mlxfn", function)).operators}
    shapeless = export(tmp_path / "s.mlxfn", lambda x: (x.mean(0), x[None] @ A), mx.ones((4, 4)), shapeless=True)
    seen |= {operator.name for operator in mlxfn.read(shapeless).operators}
    assert set(mlxfn.STATE) - seen == {*ON_A_GPU, "CustomKernel", "Copy", "StopGradient"}


ON_A_GPU = {
    "RMSNorm": "nullptr, eps_",
    "RMSNormVJP": "nullptr, eps_",
    "LayerNorm": "nullptr, eps_",
    "LayerNormVJP": "nullptr, eps_",
    "RoPE": "nullptr, dims_, traditional_, base_, scale_, forward_",
    "ScaledDotProductAttention": "nullptr, scale_, do_causal_, has_sinks_, output_logsumexp_, force_fused_",
}
"""What these keep, by MLX's header: a CPU writes others in their place."""


def test_operators_of_a_gpu_keep_what_mlx_says_they_keep() -> None:
    header = Path(mx.__file__).parent.glob("include/mlx/fast_primitives.h")
    text = " ".join(next(header).read_text().split())
    for name, state in ON_A_GPU.items():
        body = text[text.index(f"class {name} :") :]
        told = re.search(r"state\(\) const { return std::make_\w+\( ?([^)]*)\)", body)
        assert told, name
        assert told[1] == state, name


def test_a_kernel_in_metals_own_language_is_read_past_and_refused_on_a_cpu(mlx: Any, tmp_path: Path) -> None:
    kernel = mx.fast.metal_kernel(name="k", input_names=["a"], output_names=["o"], source="o[0] = a[0];")
    path = export(
        tmp_path / "kernel.mlxfn",
        lambda: kernel(
            inputs=[A], grid=(1, 1, 1), threadgroup=(1, 1, 1), output_shapes=[(1,)], output_dtypes=[mx.float32],
            stream=mx.gpu, init_value=0.5,
        )[0],
    )  # fmt: skip
    (operator,) = mlxfn.read(path).operators
    assert (operator.name, operator.device) == ("CustomKernel", "gpu")
    with pytest.raises(UnsupportedModel, match=r"exported on a GPU, and MLX computes its CustomKernel there alone"):
        mlx.run(native(path))


def test_constants_that_traces_share_are_counted_once_and_not_read(tmp_path: Path) -> None:
    said = mlxfn.read(product(tmp_path / "model.mlxfn", (1, 2, 3)))
    assert said.weights == 48
    assert len(said.traces) == 3
    assert said.version == mx.__version__
    assert said.traces[2].keywords == ("z",)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (None, ModelNotFound, "does not exist"),
        (b"", CorruptModel, "is empty"),
        (b"GGUF" + bytes(100), CorruptModel, "field 'version'"),
        (b"\x06" + bytes(7) + b"0.32.4", CorruptModel, "field 'number of traces': has 4 bytes, and 0 are left"),
        (b"\x06" + bytes(7) + b"0.32.4" + bytes(13), CorruptModel, "field 'number of traces': is 0"),
        (b"\xff" * 64, CorruptModel, "field 'version': has 18446744073709551615 bytes"),
        (b"{'a': 1}" * 30, CorruptModel, "field 'version'"),
    ],
)
def test_what_is_no_file_of_functions_is_said_to_be_none(
    mlx: Any, tmp_path: Path, content: bytes | None, error: type[EdgecoreError], words: str
) -> None:
    path = tmp_path / "broken.mlxfn"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=words):
        mlx.run(native(path))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(CorruptModel, match="is no file"):
        mlxfn.read(tmp_path)


def test_a_file_that_may_not_be_read_is_said_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    path = product(tmp_path / "model.mlxfn")
    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(ModelNotFound, match=r"model\.mlxfn: Permission denied"):
        mlxfn.read(path)


def test_another_versions_layout_is_said_to_be_that(mlx: Any, tmp_path: Path) -> None:
    """Up to 0.32.1 the header had no metadata; MLX reads such a file as if it had."""
    content = product(tmp_path / "model.mlxfn").read_bytes().replace(b"0.32.4", b"0.31.2")
    old = tmp_path / "old.mlxfn"
    old.write_bytes(content[:19] + content[27:])
    with pytest.raises(UnsupportedModel, match=r"MLX 0\.31\.2 exported it.*\n  supported: functions that MLX 0\.32\.4"):
        mlx.run(native(old))
    same = tmp_path / "same.mlxfn"
    same.write_bytes(content)
    with mlx.run(native(same)) as session:
        assert [spec.name for spec in session.inputs] == ["input_0", "z"]


def test_an_operator_of_a_newer_mlx_is_named(mlx: Any, tmp_path: Path) -> None:
    path = export(tmp_path / "new.mlxfn", lambda x: mx.sigmoid(x), mx.ones(3))
    path.write_bytes(path.read_bytes().replace(b"Sigmoid", b"Sigma99"))
    with pytest.raises(UnsupportedModel, match="has the operator Sigma99"):
        mlx.run(native(path))


def test_a_file_cut_off_anywhere_is_corrupt_and_mlx_sees_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = product(tmp_path / "model.mlxfn", (2, 3)).read_bytes()
    path = tmp_path / "cut.mlxfn"
    for end in range(len(content)):
        path.write_bytes(content[:end])
        with pytest.raises(CorruptModel):
            mlxfn.read(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(CorruptModel, match="field 'end': is followed by 1 bytes more"):
        mlxfn.read(path)


CHANGED = """
import resource, sys
from pathlib import Path
import numpy as np
from edgecore.contract import EdgecoreError
from edgecore_mlx.functions import open_session
from support.mlx_functions import native

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
for path in map(Path, sys.argv[1:]):
    print(path.name, end=" ", flush=True)
    try:
        session = open_session(native(path), "cpu", 1, {})
    except EdgecoreError as error:
        print(type(error).__name__, flush=True)
    else:
        print("opened", flush=True)
"""


def test_no_changed_byte_brings_down_what_opens_the_file(tmp_path: Path) -> None:
    """Lengths, counts, types, devices and names of all lists, each made wrong by a bit or turned over."""
    draw, content = random.Random(7), product(tmp_path / "model.mlxfn").read_bytes()
    paths = []
    for number in range(300):
        changed = bytearray(content)
        place = draw.randrange(len(content))
        changed[place] ^= draw.choice((1, 0x80, 0xFF, 1 << draw.randrange(8)))
        if number % 3 == 0:
            struct.pack_into("<q", changed, min(place, len(content) - 8), draw.choice((-1, 1 << 40, 1 << 62, 7)))
        paths.append(tmp_path / f"changed-{number}.mlxfn")
        paths[-1].write_bytes(changed)
    told = subprocess.run(
        [sys.executable, "-c", CHANGED, *map(str, paths)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "tests")},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, (told.stdout[-200:], told.stderr[-2000:])
    answers = [line.split()[1] for line in told.stdout.splitlines()]
    assert len(answers) == 300
    assert set(answers) <= {"opened", "CorruptModel", "UnsupportedModel", "DoesNotFit"}
    assert answers.count("CorruptModel") > 100


def test_a_length_of_terabytes_takes_no_memory(tmp_path: Path) -> None:
    path = export(tmp_path / "model.mlxfn", lambda x: x + 1, mx.zeros((7, 3)))
    shape = struct.pack("<Qii", 2, 7, 3)
    path.write_bytes(path.read_bytes().replace(shape, struct.pack("<Qii", 2, 1 << 30, 1 << 30)))
    with pytest.raises(CorruptModel, match=r"field 'shape': is \[1073741824, 1073741824\]"):
        mlxfn.read(path)
