"""An exported function says on which device each of its operators runs. It runs on the one that was asked for, by the
file's own word, or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from edgecore.contract import DoesNotFit, Placement, PlacementSource, UnsupportedModel
from edgecore_mlx import mlxfn, relocation

from support.mlx_functions import export, feeds, native, product, right


def on_gpu(path: Path, names: set[str] | None = None) -> Path:
    """The file as a Mac would have written it: these operators, or all, on its GPU."""
    told = mlxfn.read(path)
    wanted = tuple(replace(o, device="gpu") if names is None or o.name in names else o for o in told.operators)
    with relocation.written(path, told, replace(told, operators=wanted)) as copy:
        path.write_bytes(copy.read_bytes())
    return path


def test_a_function_exported_on_a_gpu_computes_on_a_cpu_where_that_is_asked_for(mlx: Any, tmp_path: Path) -> None:
    path = on_gpu(product(tmp_path / "model.mlxfn", (2, 4)))
    assert {operator.device for operator in mlxfn.read(path).operators} == {"gpu"}
    before = path.read_bytes()
    with mlx.run(native(path)) as session:
        for batch in (2, 4):
            np.testing.assert_allclose(session(feeds(batch))["output_0"], right(feeds(batch)), rtol=1e-6)
        assert session.placement.share("cpu") == 1.0
        assert session.placement.detail.startswith("streams of the function: 4 operators on cpu")
    assert path.read_bytes() == before, "the user's file is as it was"
    assert [each.name for each in tmp_path.iterdir()] == ["model.mlxfn"]


def test_mlx_itself_does_not_read_such_a_file_without_a_gpu(tmp_path: Path) -> None:
    if mx.is_available(mx.gpu):
        pytest.skip("here is a GPU")
    with pytest.raises(ValueError, match="without gpu backend"):
        mx.import_function(str(on_gpu(product(tmp_path / "model.mlxfn"))))


@pytest.mark.parametrize("name", ["RMSNorm", "LayerNorm", "RoPE", "ScaledDotProductAttention", "CustomKernel"])
def test_what_mlx_computes_on_a_gpu_alone_is_not_moved(name: str) -> None:
    file = functions(("Matmul", "gpu"), (name, "gpu"))
    with pytest.raises(UnsupportedModel, match=rf"f.mlxfn: was exported on a GPU, and MLX computes its {name} there"):
        relocation.moved("f.mlxfn", file, "cpu")
    assert relocation.moved("f.mlxfn", file, "gpu") is file


def test_a_function_exported_on_a_cpu_moves_to_a_gpu_but_for_what_a_cpu_computes_alone() -> None:
    moved = relocation.moved("f.mlxfn", functions(("Matmul", "cpu"), ("SVD", "cpu"), ("Add", "cpu")), "gpu")
    assert [operator.device for operator in moved.operators] == ["gpu", "cpu", "gpu"]


def test_what_was_put_on_the_cpu_beside_a_gpu_stays_there() -> None:
    file = functions(("Matmul", "gpu"), ("Sort", "cpu"))
    assert relocation.moved("f.mlxfn", file, "gpu") is file


def test_float64_is_refused_on_a_gpu() -> None:
    with pytest.raises(UnsupportedModel, match=r"float64, which MLX does on a CPU alone\n.*\n  try: --device cpu"):
        relocation.moved("f.mlxfn", functions(("Matmul", "cpu"), double=True), "gpu")


def functions(*operators: tuple[str, str], double: bool = False) -> mlxfn.Functions:
    made = tuple(mlxfn.Operator(name, device, 100 * at, double) for at, (name, device) in enumerate(operators))
    return mlxfn.Functions(mlxfn.VERSION, False, "", (), made, 0)


def test_placement_is_the_files_share_by_device_where_it_was_seen_to_hold() -> None:
    file = functions(("Matmul", "gpu"), ("Sort", "cpu"), ("Add", "gpu"), ("Add", "gpu"))
    seen = Placement(PlacementSource.RUNTIME_ASSIGNMENT, {"gpu": 1.0}, detail="seen")
    shared = relocation.shared(seen, file.operators)
    assert shared.operators == {"gpu": 0.75, "cpu": 0.25}
    assert shared.source is PlacementSource.RUNTIME_ASSIGNMENT
    assert shared.detail == "streams of the function: 3 operators on gpu, 1 operators on cpu; seen"
    assert relocation.shared(Placement(detail="too little to tell"), file.operators).share("gpu") is None


def test_a_copy_that_finds_no_room_says_where_it_needs_some(
    mlx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = on_gpu(product(tmp_path / "model.mlxfn"))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(relocation.shutil, "copyfile", full)
    with pytest.raises(DoesNotFit, match=r"no copy could be made .*: No space left on device\n.*\n  try: TMPDIR="):
        mlx.run(native(path))


def test_a_device_that_is_not_here_is_said_to_be_missing(mlx: Any, tmp_path: Path) -> None:
    from edgecore.contract import DeviceUnavailable

    if mx.is_available(mx.gpu):
        pytest.skip("here is a GPU")
    with pytest.raises(DeviceUnavailable, match="gpu"):
        mlx.run(native(export(tmp_path / "f.mlxfn", lambda x: x + 1, mx.zeros(2))), device="gpu")
