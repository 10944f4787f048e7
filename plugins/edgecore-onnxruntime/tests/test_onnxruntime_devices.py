"""Devices as they are here, and what is missing where they are not: in words, with the package that brings it."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecore.contract import BackendUnavailable, DeviceUnavailable, Manifest
from edgecore_onnxruntime import chips, devices, qnn
from edgecore_onnxruntime.chips import EMULATOR, NPU

from support import onnx_graphs
from support.onnx_graphs import one

X86 = platform.machine() in ("x86_64", "AMD64")
emulated = pytest.mark.skipif(bool(qnn.missing(EMULATOR)), reason=f"onnxruntime-qnn is not here: {qnn.INSTALL}")


def found() -> dict[str, Any]:
    return {device.name: device for device in devices.probe().devices}


@pytest.fixture
def without_qnn(monkeypatch: pytest.MonkeyPatch) -> None:
    real = qnn.find_spec
    monkeypatch.setattr(qnn, "find_spec", lambda name: None if name == "onnxruntime_qnn" else real(name))


def test_probe_speaks_of_every_device_of_the_manifest(manifest: Manifest) -> None:
    assert sorted(found()) == sorted(device.name for device in manifest.devices)
    assert found()["cpu"].available
    for name, device in found().items():
        assert device.available or device.reason, f"{name} is not here, and nobody says why"


def test_probe_answers_within_a_second_and_names_versions() -> None:
    devices.probe()
    start = time.perf_counter()
    probe = devices.probe()
    assert time.perf_counter() - start < 1
    assert probe.versions["onnxruntime"] == devices.ort.get_version_string()
    assert "CPU" in probe.features["execution providers"].split(", ")


@emulated
def test_the_emulator_is_a_device_with_qnns_version(manifest: Manifest) -> None:
    assert found()[EMULATOR].available
    assert chips.EMULATED in found()[EMULATOR].description
    assert devices.probe().versions["qnn"].startswith("2.")
    declared = manifest.device(EMULATOR)
    assert declared is not None
    assert declared.emulated


@pytest.mark.usefixtures("without_qnn")
def test_without_the_extra_the_npu_and_its_emulator_say_how_to_get_it(onnxruntime: Any, tmp_path: Path) -> None:
    for name in chips.DEVICES:
        assert not found()[name].available
        assert found()[name].reason.endswith("pip install 'edgecore-onnxruntime[qnn]'")
    assert "qnn" not in devices.probe().versions
    model = onnx_graphs.native(one(tmp_path / "m.onnx", "Relu", shape=(1, 4)), backend="onnxruntime", format="onnx")
    with pytest.raises(DeviceUnavailable) as caught:
        onnxruntime.run(model, device=EMULATOR)
    assert caught.value.hint == "pip install 'edgecore-onnxruntime[qnn]'"
    assert caught.value.exit_code == 3


@emulated
@pytest.mark.skipif(not X86, reason="a Snapdragon has an NPU, and no emulator")
def test_where_no_chip_is_the_emulator_is_named(onnxruntime: Any, tmp_path: Path) -> None:
    model = onnx_graphs.native(one(tmp_path / "m.onnx", "Relu", shape=(1, 4)), backend="onnxruntime", format="onnx")
    with pytest.raises(DeviceUnavailable, match="no Hexagon NPU is here") as caught:
        onnxruntime.run(model, device=NPU)
    assert caught.value.exit_code == 3
    assert "--device npu-emulator" in caught.value.hint
    assert EMULATOR in caught.value.supported


def test_a_provider_of_another_wheel_is_named_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devices.ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "onnxruntime-gpu" in found()["gpu"].reason
    assert "macOS" in found()["coreml"].reason
    with pytest.raises(DeviceUnavailable, match="no CUDA"):
        devices.open_on(one(tmp_path / "m.onnx", "Relu", shape=(1, 4)), 1, "gpu", {})


def test_a_provider_of_this_wheel_is_listed_and_said_to_be_untried(monkeypatch: pytest.MonkeyPatch) -> None:
    here = ["DmlExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(devices.ort, "get_available_providers", lambda: here)
    assert found()["gpu"].available
    assert found()["gpu"].description == "CUDAExecutionProvider, as the wheel has it; not tried"


def test_what_a_device_does_not_take_is_not_computed_elsewhere_unless_it_may(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The wheel's own second provider, which is everywhere, in a GPU's place: it takes no operator."""
    monkeypatch.setitem(devices.PROVIDERS, "gpu", ("AzureExecutionProvider",))
    model = one(tmp_path / "m.onnx", "Relu", shape=(1, 4))
    if not devices.provider("gpu"):
        pytest.skip("this wheel of ONNX Runtime has no second provider")
    with pytest.raises(Exception, match="fallback"):
        devices.open_on(model, 1, "gpu", {})
    answer = devices.open_on(model, 1, "gpu", {"allow_fallback": True}).run(None, {"x": -np.ones((1, 4), np.float32)})
    np.testing.assert_array_equal(answer[0], np.zeros((1, 4), np.float32))


def test_a_broken_mixture_of_wheels_is_every_devices_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise BackendUnavailable("wheels overwrote each other", hint="pip install --force-reinstall onnxruntime")

    monkeypatch.setattr(devices.runtime, "check_installation", broken, raising=False)
    monkeypatch.setattr(devices, "check_installation", broken, raising=False)
    assert [device.available for device in devices.probe().devices] == [False] * len(found())
    assert "--force-reinstall" in found()["cpu"].reason


@pytest.mark.parametrize(
    ("asked", "name"), [("SM8750", "SM8750"), (" sm8750", "SM8750"), ("69", "SM8750"), ("60", "SC8380XP")]
)
def test_a_chip_is_known_by_name_and_number(asked: str, name: str) -> None:
    assert chips.chip(asked) == name


@pytest.mark.parametrize(
    ("processor", "chip"),
    [
        ("Snapdragon(R) X Elite - X1E78100 - Qualcomm(R) Oryon(TM) CPU", "SC8380XP"),
        ("Snapdragon(R) X Plus - X1P64100 - Qualcomm(R) Oryon(TM) CPU", "SC8380XP"),
        ("Intel(R) Core(TM) Ultra 7 155H", ""),
    ],
)
def test_windows_names_a_chip_by_its_brand(monkeypatch: pytest.MonkeyPatch, processor: str, chip: str) -> None:
    monkeypatch.setattr(chips.platform, "system", lambda: "Windows")
    monkeypatch.setattr(chips, "_windows_processor", lambda: processor)
    assert chips.chip_here() == chip


def test_an_npu_device_of_onnx_runtime_is_taken_before_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows for Snapdragon, where ONNX Runtime finds the NPU itself."""
    kinds = qnn.ort.OrtHardwareDeviceType

    class Device:
        def __init__(self, ep: str, type: Any) -> None:
            self.ep_name, self.device = ep, self
            self.type = type

    cpu, npu = Device(qnn.QNN, kinds.CPU), Device(qnn.QNN, kinds.NPU)
    other = Device("CPUExecutionProvider", kinds.CPU)
    monkeypatch.setattr(qnn, "_register", lambda: None)
    monkeypatch.setattr(qnn.ort, "get_ep_devices", lambda: [other, cpu, npu])
    assert qnn._ep_devices(NPU) == [npu]
    assert qnn._ep_devices(EMULATOR) == [cpu]
    monkeypatch.setattr(qnn.ort, "get_ep_devices", lambda: [other, cpu])
    if not any(Path("/dev").glob("fastrpc-cdsp*")):
        assert qnn._ep_devices(NPU) == []
