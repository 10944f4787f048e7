"""Devices as MLX reports them, and what is missing where they are not: in words, with the package that brings it."""

from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from edgecore.contract import Artifact, DeviceUnavailable, Manifest
from edgecore_mlx import devices

GIB = 2**30
M4 = {
    "device_name": "Apple M4", "architecture": "applegpu_g16g", "memory_size": 16 * GIB,
    "max_recommended_working_set_size": 11 * GIB,
}  # fmt: skip
H100 = {"device_name": "NVIDIA H100", "architecture": "sm_90", "total_memory": 80 * GIB, "free_memory": 79 * GIB}
without_gpu = pytest.mark.skipif(mx.is_available(mx.gpu), reason="MLX has a GPU here")


def found() -> dict[str, Any]:
    return {device.name: device for device in devices.probe().devices}


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Any:
    """MLX as it would answer on another machine."""

    def machine(system: str, processor: str, gpu: dict[str, Any] | None = None, **packages: str) -> None:
        metal = system == "Darwin" and gpu is not None
        monkeypatch.setattr(devices.platform, "system", lambda: system)
        monkeypatch.setattr(devices.platform, "machine", lambda: processor)
        monkeypatch.setattr(devices.mx, "is_available", lambda kind: kind == mx.cpu or gpu is not None)
        monkeypatch.setattr(
            devices.mx, "device_info", lambda kind: gpu if kind == mx.gpu else {"device_name": "a processor"}
        )
        monkeypatch.setattr(devices.mx, "metal", SimpleNamespace(is_available=lambda: metal))
        monkeypatch.setattr(devices, "backends", lambda: {k.replace("_", "-"): v for k, v in packages.items()})

    return machine


def test_probe_speaks_of_every_device_of_the_manifest(manifest: Manifest) -> None:
    assert sorted(found()) == sorted(device.name for device in manifest.devices)
    assert found()["cpu"].available
    assert found()["cpu"].description
    for name, device in found().items():
        assert device.available or device.reason, f"{name} is not here, and nobody says why"


def test_probe_answers_within_a_second_and_never_imports_mlx_lm() -> None:
    code = (
        "import sys; from edgecore_mlx import hooks; hooks.edgecore_probe()\n"
        "print('mlx_lm' in sys.modules, 'transformers' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert said.split() == ["False", "False"]
    start = time.perf_counter()
    probe = devices.probe()
    assert time.perf_counter() - start < 1
    assert set(probe.versions) >= {"mlx", "mlx-lm"}
    assert probe.versions["mlx"].startswith("0.")
    assert probe.features["BLAS"]


@pytest.mark.skipif(sys.platform != "linux", reason="the code comes with another package there")
def test_the_package_that_brought_the_code_is_among_the_versions() -> None:
    probe = devices.probe()
    brought = [name for name in probe.versions if name in devices.BACKENDS]
    assert [probe.versions[name] for name in brought] == [probe.versions["mlx"]]


@without_gpu
def test_a_device_that_is_not_here_is_refused_with_those_that_are(mlx: Any, tiny_mlx: Artifact) -> None:
    with pytest.raises(DeviceUnavailable, match="gpu is not here") as caught:
        mlx.run(tiny_mlx, device="gpu")
    assert caught.value.supported == "cpu"
    assert caught.value.hint == "edgecore doctor"
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("device", ["npu", "", "GPU", "cpu0"])
def test_a_device_that_nobody_knows_is_refused(mlx: Any, tiny_mlx: Artifact, device: str) -> None:
    with pytest.raises(DeviceUnavailable, match=f"MLX has no device '{device}'"):
        mlx.run(tiny_mlx, device=device)


def test_on_linux_cuda_comes_with_an_extra(elsewhere: Any) -> None:
    elsewhere("Linux", "x86_64", mlx_cpu="0.32.4")
    assert found()["gpu"].reason.startswith("here is mlx-cpu 0.32.4; CUDA on an NVIDIA GPU comes with")
    assert found()["gpu"].reason.endswith("pip install 'edgecore-mlx[cuda13]'")


def test_cudas_build_without_a_gpu_says_so(elsewhere: Any) -> None:
    elsewhere("Linux", "x86_64", mlx_cuda_13="0.32.4")
    assert found()["gpu"].reason.startswith("mlx-cuda-13 is installed and finds no GPU")
    assert "nvidia-smi" in found()["gpu"].reason


@pytest.mark.parametrize(
    ("system", "machine", "said"),
    [
        ("Darwin", "x86_64", "this Python is for x86_64: MLX's Metal is for Apple Silicon"),
        ("Darwin", "arm64", "MLX's Metal finds no GPU: a virtual machine has none"),
        ("Windows", "AMD64", "MLX on Windows has no GPU"),
    ],
)
def test_elsewhere_the_reason_is_that_machines(elsewhere: Any, system: str, machine: str, said: str) -> None:
    elsewhere(system, machine)
    assert found()["gpu"].reason.startswith(said)
    assert found()["cpu"].available


def test_a_gpu_is_named_as_mlx_names_it_with_its_memory(elsewhere: Any) -> None:
    elsewhere("Darwin", "arm64", M4, mlx_metal="0.32.4")
    probe = devices.probe()
    assert found()["gpu"].description == "Apple M4, applegpu_g16g, Metal"
    assert probe.features["gpu max recommended working set size"] == "11.0 GiB"
    elsewhere("Linux", "x86_64", H100, mlx_cuda_13="0.32.4")
    probe = devices.probe()
    assert found()["gpu"].description == "NVIDIA H100, sm_90, CUDA"
    assert probe.features["gpu free memory"] == "79.0 GiB"


def test_a_session_opens_on_the_device_that_was_named(mlx: Any, tiny_mlx: Artifact) -> None:
    with mlx.run(tiny_mlx) as session:
        assert session.conditions["device"] == "cpu"
    assert devices.use("cpu") == mx.Device(mx.cpu, 0)
    assert mx.default_device() == mx.cpu
