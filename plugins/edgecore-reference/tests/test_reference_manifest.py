"""What the manifest says is what the plugin does."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from typing import Any

from edgecore.contract import Manifest
from edgecore_reference import hooks


def test_the_entry_point_leads_to_the_package_of_the_manifest(manifest: Manifest) -> None:
    (point,) = entry_points(group="edgecore.backends", name="reference")
    assert point.value == "edgecore_reference"
    assert manifest.name == "reference"
    assert manifest.hooks == hooks.__name__
    assert manifest.reference


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import edgecore_reference; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["edgecore_reference"]


def test_probing_takes_no_device_that_is_not_declared(backend: Any, manifest: Manifest) -> None:
    probe = backend.edgecore_probe()
    assert {device.name for device in probe.devices} == {device.name for device in manifest.devices}
    assert all(device.available and device.description for device in probe.devices)
    assert set(probe.versions) == {"numpy", "onnx"}


def test_capabilities_agree_with_the_hooks_that_are_there(manifest: Manifest) -> None:
    assert not hasattr(hooks, "edgecore_quantize")
    assert {precision.by for precision in manifest.precisions} == {"convert"}
    assert manifest.can("native_benchmark") == hasattr(hooks, "edgecore_benchmark")
