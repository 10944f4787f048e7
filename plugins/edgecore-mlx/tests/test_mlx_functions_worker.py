"""Exported functions on the command line, in a worker: found by their suffix, run, measured, and survived."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from edgecore import api
from edgecore.contract import TensorSession, WorkerCrashed

from support.cli import edgecore
from support.mlx_functions import export, feeds, product, right


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mlxfn")
    np.savez(folder / "feeds.npz", **feeds(2))
    np.savez(folder / "wrong.npz", **feeds(3))
    return product(folder / "model.mlxfn", (2, 4))


def test_a_function_is_run_where_it_lies_without_a_word_of_its_backend(model: Path, tmp_path: Path) -> None:
    run = edgecore("run", model, "--inputs", model.with_name("feeds.npz"), "--out", tmp_path / "out.npz")
    assert run.code == 0, run.err
    with np.load(tmp_path / "out.npz") as out:
        np.testing.assert_allclose(out["output_0"], right(feeds(2)), rtol=1e-6)
    wrong = edgecore("run", model, "--inputs", model.with_name("wrong.npz"), "--out", tmp_path / "wrong.npz")
    assert wrong.code == 2
    assert "input 'input_0' has shape [3, 3]\n  supported: [2, 3] or [4, 3]" in wrong.err
    assert not (tmp_path / "wrong.npz").exists()


def test_a_function_is_measured_by_calls_and_not_compared_yet(model: Path) -> None:
    how = ("--inputs", model.with_name("feeds.npz"), "--pairs", "2", "-n", "20", "--json")
    measured = edgecore("benchmark", model, *how)
    assert measured.code in (0, 1), measured.err
    (arm,) = measured.json["arms"]
    assert not arm["native_loop"]
    assert "tensor models are not compared yet" in json.dumps(measured.json["qualities"])


def test_a_function_is_neither_converted_nor_quantized(model: Path) -> None:
    refused = edgecore("quantize", model, "--precision", "mxfp8")
    assert refused.code == 2
    assert "model.mlxfn: a function is run with the weights that it was exported with" in refused.err
    assert "a finished model of one runtime" in edgecore("convert", model, "--backend", "mlx").err


def test_a_function_that_ends_mlx_ends_its_worker_only(tmp_path: Path) -> None:
    """An axis that no file of MLX's own has; what it does not look at, it computes with."""
    path = export(tmp_path / "f.mlxfn", lambda x: mx.transpose(x, (1, 0)) + 1, mx.zeros((3, 4)))
    axes = b"Transpose" + struct.pack("<Qii", 2, 1, 0)
    assert axes in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(axes, axes[:-8] + struct.pack("<ii", 1 << 29, 0)))

    def call() -> Any:
        with api.open(path, backend="mlx", device="cpu") as session:
            assert isinstance(session, TensorSession)
            return session({"input_0": np.zeros((3, 4), np.float32)})

    with pytest.raises(WorkerCrashed):
        call()
