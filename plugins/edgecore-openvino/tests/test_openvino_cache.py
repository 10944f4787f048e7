"""OpenVINO's compile cache, as sessions use it: a hit is a hit, and no other model's blob is taken for one. And the KV
cache: a model that is closed leaves nothing behind."""

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

from edgecore.contract import Artifact
from edgecore_openvino import runtime

OPENED_AND_CLOSED = """
import json, os, sys
from pathlib import Path
from edgecore_openvino import network, runtime

threads = []
for _ in range(5):
    given = runtime.properties("cpu", 1, {"compile_cache": False})
    opened = network.Network(Path(sys.argv[1]), "cpu", given, 64)
    opened.append(opened.checked([5, 6]), 0)
    opened.close()
    threads.append(len(os.listdir("/proc/self/task")))
print(json.dumps(threads))
"""
WITHOUT_WEIGHTS = {"CACHE_MODE": "OPTIMIZE_SIZE"}


def write_ir(path: Path, seed: int) -> Path:
    """The same graph for every seed, other weights; asymmetric 8 bits, whose constants the compiler rearranges."""
    rng = np.random.default_rng(seed)
    x = op.parameter([-1, 64], np.float32, name="x")
    stored, zeros = (op.constant(rng.integers(0, 255, shape).astype(np.uint8)) for shape in ((64, 64), (64, 1)))
    centred = op.subtract(op.convert(stored, "f32"), op.convert(zeros, "f32"))
    w = op.multiply(centred, op.constant(rng.random((64, 1)).astype(np.float32)))
    ov.save_model(ov.Model([op.matmul(x, w, False, True)], [x], "same"), path, compress_to_fp16=False)
    return path


def answer(xml: Path, mode: dict[str, str], *, cached: bool = True) -> tuple[bool, Any]:
    """Whether it came from the cache, and what it computes."""
    given = runtime.properties("cpu", 1, {"compile_cache": cached, "inference_precision": "f32"})
    if cached and mode:
        given |= {**mode, "WEIGHTS_PATH": str(xml.with_suffix(".bin"))}
    compiled = runtime.compile_model(runtime.read_model(xml), "cpu", given)
    return compiled.get_property("LOADED_FROM_CACHE"), compiled(np.ones((1, 64), np.float32))[0]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGECORE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("mode", [{}, WITHOUT_WEIGHTS], ids=["with weights", "without weights"])
def test_models_of_one_graph_and_other_weights_are_not_confused(
    tmp_path: Path, home: Path, mode: dict[str, str]
) -> None:
    for seed in (1, 2):
        xml = write_ir(tmp_path / "model.xml", seed)  # the second in the first one's place
        _, expected = answer(xml, {}, cached=False)
        for hit in (False, True):
            found, got = answer(xml, mode)
            assert found is hit
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("mode", [{}, WITHOUT_WEIGHTS], ids=["with weights", "without weights"])
@pytest.mark.parametrize("damage", ["cut", "empty", "other version"])
def test_a_cached_blob_that_is_damaged_or_of_another_version_is_compiled_anew(
    tmp_path: Path, home: Path, mode: dict[str, str], damage: str
) -> None:
    xml = write_ir(tmp_path / "model.xml", 1)
    _, expected = answer(xml, mode)
    (blob,) = home.rglob("*.blob")
    content = blob.read_bytes()
    blob.chmod(0o600)
    other = content.replace(runtime.VERSION.encode(), b"9" * len(runtime.VERSION))
    blob.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "other version": other}[damage])
    found, got = answer(xml, mode)
    assert not found
    np.testing.assert_array_equal(got, expected)
    assert answer(xml, mode)[0], "and is in the cache again"


@pytest.mark.parametrize("obstacle", ["a file", "a link to nowhere"])
def test_a_home_that_cannot_be_written_is_no_reason_not_to_run(tmp_path: Path, home: Path, obstacle: str) -> None:
    home.write_text("") if obstacle == "a file" else home.symlink_to(tmp_path / "nowhere" / "home")
    found, got = answer(write_ir(tmp_path / "model.xml", 1), {})
    assert not found
    np.testing.assert_array_equal(got, answer(tmp_path / "model.xml", {}, cached=False)[1])


@pytest.mark.skipif(sys.platform != "linux", reason="counts the process' threads where Linux shows them")
def test_a_language_model_that_is_closed_leaves_no_thread(tiny_ir: Artifact) -> None:
    """What OpenVINO's fused state does not do (cache.py), in a process of its own."""
    command = [sys.executable, "-c", OPENED_AND_CLOSED, str(tiny_ir.path / "openvino_model.xml")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    threads = json.loads(done.stdout)
    assert threads == threads[:1] * 5


def test_switched_off_it_leaves_no_file(tmp_path: Path, home: Path) -> None:
    answer(write_ir(tmp_path / "model.xml", 1), {}, cached=False)
    assert not home.exists()
