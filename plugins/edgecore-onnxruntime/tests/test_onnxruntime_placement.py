"""Where it ran, by ONNX Runtime's word: which execution provider each operator was given to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper

from edgecore.contract import PlacementSource
from edgecore_onnxruntime import placement, qnn, runtime
from edgecore_onnxruntime.chips import EMULATOR
from edgecore_onnxruntime.placement import left_over, placement_of

from support import onnx_graphs
from support.onnx_graphs import value, write

emulated = pytest.mark.skipif(bool(qnn.missing(EMULATOR)), reason=f"onnxruntime-qnn is not here: {qnn.INSTALL}")


def chain(path: Path, *operators: str) -> Path:
    names = ["x", *(f"v{i}" for i in range(1, len(operators))), "y"]
    nodes = [helper.make_node(op, [names[i]], [names[i + 1]], name=f"{op}_{i}") for i, op in enumerate(operators)]
    return write(path, nodes, [value("x", [1, 4])], [value("y", [1, 4])])


def test_on_a_cpu_all_of_it_is_the_cpus(tmp_path: Path) -> None:
    found = placement_of(runtime.open_model(chain(tmp_path / "m.onnx", "Relu", "Erf"), options()), "cpu")
    assert found.source is PlacementSource.RUNTIME_ASSIGNMENT
    assert found.operators == {"cpu": 1.0}
    assert found.detail == "ep_graph_assignment_info: 2 operators on cpu"


def test_where_nothing_was_recorded_nobody_knows(tmp_path: Path) -> None:
    session = ort.InferenceSession(str(chain(tmp_path / "m.onnx", "Relu")), providers=["CPUExecutionProvider"])
    assert placement_of(session, "cpu").source is PlacementSource.NONE
    assert placement_of(session, "cpu").share("cpu") is None


def test_a_provider_that_we_do_not_know_is_called_by_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [("SomeExecutionProvider", "Relu", ""), ("DmlExecutionProvider", "Relu", "")]
    monkeypatch.setattr(placement, "assignment", lambda session: given)
    session: Any = None
    assert placement_of(session, "gpu").operators == {"SomeExecutionProvider": 0.5, "gpu": 0.5}


@emulated
def test_on_the_emulator_all_of_it_is_the_emulators(onnxruntime: Any, tmp_path: Path) -> None:
    model = onnx_graphs.native(
        chain(tmp_path / "m.onnx", "Relu", "Sigmoid"), backend="onnxruntime", format="onnx"
    )  # fmt: skip
    with onnxruntime.run(model, device=EMULATOR) as session:
        assert session.placement.operators == {EMULATOR: 1.0}
        assert session.placement.share(EMULATOR) == 1.0
        np.testing.assert_allclose(session({"x": np.zeros((1, 4), np.float32)})["y"], 0.5, atol=2e-3)


@emulated
def test_where_it_may_fall_back_the_share_is_told(tmp_path: Path) -> None:
    model = chain(tmp_path / "m.onnx", "Relu", "Acosh", "Relu", "Erf", "Relu")
    session = qnn.open_on_npu(model, 1, EMULATOR, {"allow_fallback": True})
    found = placement_of(session, EMULATOR)
    assert found.operators == pytest.approx({EMULATOR: 0.6, "cpu": 0.4})
    assert found.detail == "ep_graph_assignment_info: 3 operators on npu-emulator, 2 operators on cpu"
    assert left_over(session) == {"Acosh": 1, "Erf": 1}


def options() -> ort.SessionOptions:
    return runtime.session_options(1, {})
