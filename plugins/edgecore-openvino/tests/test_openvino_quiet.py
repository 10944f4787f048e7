"""Nothing phones home: importing and using OpenVINO, its converter, its tokenizers and NNCF writes nothing into the
user's home and asks no other computer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgecore.registry import find
from edgecore.workers import connect

WATCHED = """
import json, sys
said = []

def hook(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.gethostbyname"):
        said.append([event, repr(args[-2:])])

sys.addaudithook(hook)
import edgecore_openvino.hooks
import numpy as np
import openvino as ov
import openvino.tools.ovc
import openvino_tokenizers
import nncf
from openvino import opset13 as op

x = op.parameter([1, 3, 8, 8], np.float32, name="x")
w = op.constant(np.ones((4, 3, 3, 3), np.float32))
model = ov.Model([op.convolution(x, w, [1, 1], [1, 1], [1, 1], [1, 1])], [x], "small")
nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
nncf.quantize(model, nncf.Dataset([np.ones((1, 3, 8, 8), np.float32)]), subset_size=1)
ov.tools.ovc.convert_model(sys.argv[1])
telemetry = sorted(name for name in sys.modules if "telemetry" in name and sys.modules[name] is not None)
print(json.dumps([said, telemetry]))
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    return path


def environment(home: Path) -> dict[str, str]:
    """An empty home, and none of the variables by which a continuous integration is known: telemetry spares those."""
    kept = ("PATH", "LANG", "SYSTEMROOT", "LD_LIBRARY_PATH")
    return {k: v for k, v in os.environ.items() if k in kept} | {"HOME": str(home), "USERPROFILE": str(home)}


def test_no_connection_and_no_file_in_the_home(home: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the converter is shown an ONNX file")
    from onnx import TensorProto, helper

    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]), helper.make_tensor_value_info("y", 1, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [shape[0]], [shape[1]])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "relu.onnx")
    command = [sys.executable, "-c", WATCHED, str(tmp_path / "relu.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(home), timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    connections, telemetry = json.loads(done.stdout.splitlines()[-1])
    assert connections == []
    assert "openvino_telemetry" not in telemetry, "the package that reports is not even imported"
    assert [str(path.relative_to(home)) for path in home.rglob("*")] == []


def test_a_worker_that_runs_a_model_leaves_only_edgecores_own_folder(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in set(os.environ) - set(environment(home)):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("EDGECORE_HOME", str(tmp_path / "edgecore"))
    with connect(find("openvino")) as backend:
        assert backend.probe().devices
    assert [str(path.relative_to(home)) for path in home.rglob("*")] == []
