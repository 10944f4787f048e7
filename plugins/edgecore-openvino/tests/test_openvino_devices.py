"""Devices as OpenVINO lists them here, what is missing where it lists none, and the properties that options become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgecore.contract import BadRequest, DeviceUnavailable, Manifest
from edgecore.contract.options import resolve
from edgecore_openvino import devices, runtime


def properties(manifest: Manifest, device: str = "cpu", threads: int | None = 1, **given: Any) -> dict[str, Any]:
    options = resolve(manifest.options_of("run"), given, "run", "openvino")
    return runtime.properties(device, threads, options)


def test_probe_speaks_of_every_device_of_the_manifest(manifest: Manifest) -> None:
    found = {device.name: device for device in devices.probe().devices}
    assert sorted(found) == sorted(device.name for device in manifest.devices)
    assert found["cpu"].available
    assert found["cpu"].description == runtime.core().get_property("CPU", "FULL_DEVICE_NAME")
    for name, device in found.items():
        assert device.available or device.reason, f"{name} is not here, and nobody says why"


def test_probe_names_versions_and_what_the_cpu_computes_in() -> None:
    probe = devices.probe()
    assert probe.versions["openvino"].startswith(runtime.VERSION)
    assert probe.features["CPU INFERENCE_PRECISION_HINT"] in ("f32", "bf16", "f16")
    assert "EXPORT_IMPORT" in probe.features["CPU OPTIMIZATION_CAPABILITIES"]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            'Cannot load library "/x/libopenvino_intel_gpu_plugin.so": libOpenCL.so.1: cannot open shared object file',
            r"libOpenCL\.so\.1 is missing; it comes with .*intel-opencl-icd",
        ),
        ('Device with "GPU" name is not registered in the OpenVINO Runtime', "has no gpu plugin"),
    ],
)
def test_a_driver_that_is_missing_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch, said: str, reason: str
) -> None:
    class Core:
        available_devices = ("CPU",)

        def get_versions(self, _: str) -> None:
            raise RuntimeError(f"Exception from src/inference/src/cpp/core.cpp:77:\n{said}\n")

    monkeypatch.setattr(devices, "core", Core)
    with pytest.raises(DeviceUnavailable, match=reason) as caught:
        devices.check_device("gpu", {})
    assert caught.value.supported == "cpu, auto, hetero"


def test_an_npu_that_is_not_here_is_refused_with_what_it_needs() -> None:
    if any(name.startswith("NPU") for name in devices.available()):
        pytest.skip("an NPU is here")
    with pytest.raises(DeviceUnavailable, match="npu is not here") as caught:
        devices.check_device("npu", {})
    assert "cpu" in caught.value.supported


@pytest.mark.parametrize("name", ["tpu", "", "CPU9", "cpu.1", "gpu,cpu"])
def test_a_device_that_does_not_exist_is_refused_naming_those_that_do(name: str) -> None:
    with pytest.raises(DeviceUnavailable) as caught:
        devices.check_device(name, {})
    assert "cpu" in caught.value.supported


@pytest.mark.parametrize(
    ("here", "asked", "number", "accepted"),
    [
        (("CPU", "GPU"), "gpu", "0", True),
        (("CPU", "GPU.0", "GPU.1"), "gpu", "1", True),
        (("CPU", "GPU.0", "GPU.1"), "gpu", "2", False),
        (("CPU", "GPU.0", "GPU.1"), "gpu", "", True),
        (("CPU", "GPU"), "gpu", "1", False),
        (("CPU",), "gpu", "0", False),
    ],
)
def test_one_of_several_gpus_is_chosen_by_its_number(
    monkeypatch: pytest.MonkeyPatch, manifest: Manifest, here: tuple[str, ...], asked: str, number: str, accepted: bool
) -> None:
    monkeypatch.setattr(devices, "available", lambda: here)
    given = properties(manifest, asked, device_id=number)
    assert given.get("DEVICE_ID", "") == number
    if accepted:
        devices.check_device(asked, given)
    else:
        with pytest.raises(DeviceUnavailable, match=f"gpu.{number} is not here"):
            devices.check_device(asked, given)


def test_threads_are_what_was_asked_for_or_what_affinity_and_quota_allow(
    monkeypatch: pytest.MonkeyPatch, manifest: Manifest
) -> None:
    monkeypatch.setattr(runtime, "usable_threads", lambda: 3)
    assert properties(manifest, threads=2)["INFERENCE_NUM_THREADS"] == 2
    assert properties(manifest, threads=None)["INFERENCE_NUM_THREADS"] == 3
    for count in (0, -1, 10_000):
        with pytest.raises(BadRequest, match=str(count)):
            properties(manifest, threads=count)


def test_options_become_properties_and_what_is_left_to_the_device_is_not_set(manifest: Manifest) -> None:
    plain = properties(manifest)
    assert plain["PERFORMANCE_HINT"] == "LATENCY"
    assert plain["KV_CACHE_PRECISION"] == "f16"
    assert {"INFERENCE_PRECISION_HINT", "DYNAMIC_QUANTIZATION_GROUP_SIZE", "PERF_COUNT"} & set(plain) == set()
    given = properties(
        manifest,
        inference_precision="f32",
        kv_cache="u8",
        dynamic_quantization_group_size=0,
        performance_hint="none",
        perf_count=True,
    )
    assert given["INFERENCE_PRECISION_HINT"] == "f32"
    assert given["KV_CACHE_PRECISION"] == "u8"
    assert given["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == 0
    assert given["PERF_COUNT"] is True
    assert "PERFORMANCE_HINT" not in given


def test_the_compile_cache_lies_in_edgecores_folder_and_can_be_switched_off(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECORE_HOME", str(tmp_path))
    assert Path(properties(manifest)["CACHE_DIR"]).is_relative_to(tmp_path)
    assert "CACHE_DIR" not in properties(manifest, compile_cache=False)


@pytest.mark.parametrize(
    ("device", "given", "named"),
    [
        ("cpu", {"device_id": "1"}, "device_id=1"),
        ("cpu", {"priorities": "gpu,cpu"}, "priorities are for auto and hetero"),
        ("auto", {"priorities": "gpu,tpu"}, "tpu"),
        ("npu", {"dynamic_quantization_group_size": 32}, "dynamic_quantization_group_size=32"),
    ],
)
def test_an_option_that_a_device_does_not_have_is_refused(
    manifest: Manifest, device: str, given: dict[str, Any], named: str
) -> None:
    with pytest.raises(BadRequest, match=named):
        properties(manifest, device, **given)


def test_auto_and_hetero_hand_each_device_its_own_properties(manifest: Manifest) -> None:
    for device in ("auto", "hetero"):
        given = properties(manifest, device, threads=2, priorities="gpu, cpu", dynamic_quantization_group_size=0)
        assert given["MULTI_DEVICE_PRIORITIES"] == "GPU,CPU"
        assert given["DEVICE_PROPERTIES"]["CPU"]["INFERENCE_NUM_THREADS"] == 2
        assert given["DEVICE_PROPERTIES"]["GPU"]["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == 0
        assert "INFERENCE_NUM_THREADS" not in given["DEVICE_PROPERTIES"]["GPU"]
    if "GPU" not in devices.available():
        with pytest.raises(DeviceUnavailable, match="gpu is not here"):
            devices.check_device("auto", given)
