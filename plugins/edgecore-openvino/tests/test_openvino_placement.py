"""Where it ran, by OpenVINO's word. Two devices that are two: the CPU plugin registered a second time, in a process of
its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from edgecore.contract import PlacementRefused, PlacementSource
from edgecore_openvino import runtime
from edgecore_openvino.placement import assignment, placement_of

TWO_DEVICES = """
import json, sys
from pathlib import Path
import numpy as np
from edgecore.contract import EdgecoreError
from edgecore_openvino import devices, placement, runtime

runtime.core().register_plugin("openvino_intel_cpu_plugin", "OTHERCPU")
devices.NAMES = (*devices.NAMES, "othercpu")
said = {}
for name, device, priorities, split in (
    ("auto", "auto", "othercpu,cpu", False),
    ("whole", "hetero", "othercpu,cpu", False),
    ("split", "hetero", "othercpu,cpu", True),
    ("refused", "hetero", "othercpu,cpu", "all on the cpu"),
):
    model = runtime.read_model(Path(sys.argv[1]))
    for node in model.get_ops() if split else ():
        mine = split is True and node.get_type_name() == "Relu"
        node.get_rt_info()["affinity"] = "OTHERCPU" if mine else "CPU"
    given = runtime.properties(device, 1, {"priorities": priorities, "compile_cache": False, "perf_count": True})
    try:
        compiled = runtime.compile_model(model, device, given)
    except EdgecoreError as error:
        said[name] = [type(error).__name__, error.what]
        continue
    request = compiled.create_infer_request()
    request.infer({0: np.ones((4, 8), np.float32)})
    assigned = placement.assignment(model, given) if device == "hetero" else None
    found = placement.placement_of(compiled, request, assigned)
    said[name] = [found.source, dict(found.operators), dict(found.time), found.detail]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def ir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tanh(relu(x @ w) @ w): what the CPU plugin cannot fuse into one."""
    x = op.parameter([-1, 8], np.float32, name="x")
    w = op.constant(np.eye(8, dtype=np.float32))
    y = op.tanh(op.matmul(op.relu(op.matmul(x, w, False, False)), w, False, False))
    path = tmp_path_factory.mktemp("ir") / "model.xml"
    ov.save_model(ov.Model([y], [x], "small"), path, compress_to_fp16=False)
    return path


def opened(ir: Path, device: str, **options: Any) -> tuple[ov.CompiledModel, Any, dict[str, Any]]:
    given = runtime.properties(device, 1, {"compile_cache": False, **options})
    model = runtime.read_model(ir)
    return runtime.compile_model(model, device, given), model, given


@pytest.mark.parametrize("device", ["cpu", "auto", "hetero"])
def test_without_a_profile_the_runtimes_assignment_is_what_is_known(ir: Path, device: str) -> None:
    compiled, model, given = opened(ir, device, perf_count=False)
    request = compiled.create_infer_request()
    request.infer({0: np.ones((4, 8), np.float32)})
    found = placement_of(compiled, request, assignment(model, given) if device == "hetero" else None)
    assert found.source is PlacementSource.RUNTIME_ASSIGNMENT
    assert found.operators == {"cpu": 1.0}
    assert not found.time
    assert "CPU" in found.detail or "cpu" in found.detail


@pytest.mark.parametrize("device", ["cpu", "auto", "hetero"])
def test_a_profile_counts_operators_and_their_time(ir: Path, device: str) -> None:
    compiled, model, given = opened(ir, device, perf_count=True)
    request = compiled.create_infer_request()
    assigned = assignment(model, given) if device == "hetero" else None
    before = placement_of(compiled, request, assigned)
    assert before.source is PlacementSource.RUNTIME_ASSIGNMENT, "nothing has run yet"
    request.infer({0: np.ones((4, 8), np.float32)})
    found = placement_of(compiled, request, assigned)
    assert found.source is PlacementSource.RUNTIME_PROFILE
    assert (found.operators, found.time) == ({"cpu": 1.0}, {"cpu": 1.0})
    assert found.detail.startswith("PERF_COUNT on CPU: ")


def test_the_compiled_model_states_its_own_conditions(ir: Path) -> None:
    given = {"inference_precision": "f32", "kv_cache": "u8", "dynamic_quantization_group_size": 64}
    for device in ("cpu", "auto", "hetero"):
        stated = runtime.stated(opened(ir, device, **given)[0])
        assert stated == {
            "device": "cpu",
            "threads": "1",
            "compute": "f32",
            "kv_cache": "u8",
            "dynamic_quantization": "64",
        }


def test_what_was_asked_of_the_device_is_not_what_it_states(ir: Path) -> None:
    """A CPU without float16 arithmetic takes the wish, and computes in float32."""
    asked = runtime.stated(opened(ir, "cpu", inference_precision="f16")[0])["compute"]
    able = runtime.core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert asked == ("f16" if "FP16" in able else "f32")


def test_two_devices_share_a_model_and_a_device_that_got_nothing_is_refused(ir: Path) -> None:
    code = [sys.executable, "-c", TWO_DEVICES, str(ir)]
    done = subprocess.run(code, capture_output=True, text=True, check=True, timeout=120)
    said = json.loads(done.stdout)
    assert said["auto"][:2] == ["runtime-profile", {"othercpu": 1.0}], "auto takes the first that can"
    assert said["whole"][:2] == ["runtime-profile", {"othercpu": 1.0}], "hetero gives the first all that it has"
    source, operators, time, detail = said["split"]
    assert source == "runtime-profile"
    assert operators == pytest.approx({"cpu": 2 / 3, "othercpu": 1 / 3})
    assert sum(time.values()) == pytest.approx(1)
    assert min(time.values()) > 0
    assert "2 operators on cpu, 1 operators on othercpu" in detail
    assert said["refused"][0] == "PlacementRefused"
    assert "othercpu asked for" in said["refused"][1]


@pytest.mark.parametrize(
    ("device", "priorities", "used", "refused"),
    [
        ("gpu", "", ["GPU.1"], False),
        ("gpu", "", ["CPU"], True),
        ("npu", "", ["CPU"], True),
        ("auto", "GPU", ["CPU"], True),
        ("auto", "GPU,CPU", ["CPU"], False),
        ("auto", "GPU,NPU", ["(CPU)"], True),
        ("auto", "", ["CPU"], False),
        ("hetero", "GPU,CPU", ["CPU"], True),
        ("hetero", "GPU,CPU", ["GPU.0", "CPU"], False),
        ("cpu", "", [], True),
    ],
)
def test_a_device_that_was_asked_for_and_is_not_used_is_an_error(
    device: str, priorities: str, used: list[str], refused: bool
) -> None:
    class Compiled:
        def get_property(self, name: str) -> Any:
            assert name == "EXECUTION_DEVICES"
            return used

    given = {"MULTI_DEVICE_PRIORITIES": priorities} if priorities else {}
    if refused:
        with pytest.raises(PlacementRefused, match="asked for") as caught:
            runtime.check_execution(Compiled(), device, given)
        assert caught.value.supported
    else:
        runtime.check_execution(Compiled(), device, given)


def test_operators_of_several_devices_that_nobody_assigned_are_unknown() -> None:
    class Compiled:
        def get_property(self, name: str) -> Any:
            return ["GPU.0", "CPU"]

    assert placement_of(Compiled()).source is PlacementSource.NONE
