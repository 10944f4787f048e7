"""No false alarms: plugins that tell the truth pass whole, level quick, twice, the second time on other inputs."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from mutants import TRUTHFUL, write_mutant

from edgecore_conformance.check import row_id
from edgecore_conformance.outcomes import Outcome
from edgecore_conformance.rows import Row
from edgecore_conformance.run import Run
from edgecore_conformance.verify import verify

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(900)]
GOOD = (Outcome.PASSED, Outcome.UNSUPPORTED, Outcome.NOT_APPLICABLE)


SEEDS = pytest.mark.parametrize("seed", [0, 1], ids=["everybody's inputs", "challenged"])


def quick(backend: str, out: Path, seed: int = 0, device: str = "") -> list[Row]:
    """Every row of level quick, by the one runner."""
    run = Run(backend, device, out=out, seed=seed, expectations=False)
    pairs = run.pairs()
    run.select([row_id(check.name(), cell) for check, cell in pairs])
    rows = [run.row(check, cell) for check, cell in pairs]
    run.finish()
    return rows


def alarms(rows: list[Row]) -> list[str]:
    return [f"{row.row}: {row.outcome.value}: {row.message}" for row in rows if row.outcome not in GOOD]


@SEEDS
def test_the_reference_passes_whole_and_its_bundle_is_consistent(seed: int, tmp_path: Path) -> None:
    assert alarms(quick("reference", tmp_path / "bundle", seed)) == []
    assert verify(tmp_path / "bundle").contradictions == []


@pytest.mark.skipif(
    find_spec("llama_cpp") is None, reason="needs llama-cpp-python: python3 bootstrap.py test --only conformance"
)
@SEEDS
def test_llama_cpp_passes_whole_and_its_bundle_is_consistent(seed: int, tmp_path: Path) -> None:
    assert alarms(quick("llamacpp", tmp_path / "bundle", seed)) == []
    assert verify(tmp_path / "bundle").contradictions == []


@pytest.mark.skipif(
    find_spec("openvino") is None, reason="needs openvino: python3 bootstrap.py test --only conformance"
)
def test_openvino_passes_whole_on_challenged_inputs_and_its_bundle_is_consistent(tmp_path: Path) -> None:
    """Once: it takes four minutes, and the inputs that everybody has are those of its published report."""
    assert alarms(quick("openvino", tmp_path / "bundle", 1)) == []
    assert verify(tmp_path / "bundle").contradictions == []


@pytest.mark.skipif(
    find_spec("mlx_lm") is None, reason="needs mlx and mlx-lm: python3 bootstrap.py test --only conformance"
)
def test_mlx_passes_whole_on_challenged_inputs_and_its_bundle_is_consistent(tmp_path: Path) -> None:
    assert alarms(quick("mlx", tmp_path / "bundle", 1, "cpu")) == []
    assert verify(tmp_path / "bundle").contradictions == []


@pytest.mark.skipif(
    find_spec("onnxruntime") is None, reason="needs onnxruntime: python3 bootstrap.py test --only conformance"
)
def test_onnxruntime_passes_whole_on_challenged_inputs_and_its_bundle_is_consistent(tmp_path: Path) -> None:
    """On the CPU: the emulator takes a quarter of an hour, and its published report is of everybody's inputs."""
    assert alarms(quick("onnxruntime", tmp_path / "bundle", 1)) == []
    assert verify(tmp_path / "bundle").contradictions == []


@pytest.mark.parametrize("base", TRUTHFUL)
def test_what_mutants_are_made_of_passes_whole(base: str, tmp_path: Path) -> None:
    plugin = write_mutant(TRUTHFUL[base], tmp_path / "plugin")
    assert alarms(quick(str(plugin), tmp_path / "bundle")) == []


def test_a_device_that_is_emulated_passes_whole_within_its_short_context_and_its_claims_are_emulated(
    tmp_path: Path,
) -> None:
    plugin = write_mutant(TRUTHFUL["emulator"], tmp_path / "plugin")
    rows = quick(str(plugin), tmp_path / "bundle", device="npu-emulator")
    assert alarms(rows) == []
    assert verify(tmp_path / "bundle").contradictions == []
    left_out = {row.row: row.message for row in rows if row.outcome is Outcome.NOT_APPLICABLE and row.message}
    assert set(left_out) == {
        "text.long", "benchmark.clock", "benchmark.suspension", "benchmark.warmup", "benchmark.scaling",
        "benchmark.work", "placement.threads",
    }  # fmt: skip
    assert left_out["text.long"] == "models for npu-emulator, which is emulated, hold 64 tokens in this suite"
    report = json.loads((tmp_path / "bundle/report.json").read_text(encoding="utf-8"))
    states = {(c["device"], c["precision"]): c["state"] for c in report["claims"]["of"]}
    assert states == {
        ("cpu", "f16"): "unproven", ("cpu", "q4_0"): "unproven",
        ("npu-emulator", "f16"): "emulated", ("npu-emulator", "q8_0"): "emulated",
    }  # fmt: skip
