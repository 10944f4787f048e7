"""Group *manifest and isolation*: what its judgements see in observations, and a truthful plugin on a real worker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgecore import registry
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import all_checks
from edgecore_conformance.checks import direct
from edgecore_conformance.known import Known
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.outcomes import Outcome
from edgecore_conformance.running import run_row

REFERENCE = ["probe", "convert", "run", "weights"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    entry = registry.find("reference")
    made = Bench(entry, Known(entry.ready_manifest, "cpu"), tmp_path_factory.mktemp("bench"))
    made.begin(120)
    yield made
    made.close()


def judged(name: str, facts: dict[str, Any], known: Known, cell: dict[str, str] | None = None) -> Judgement:
    verdict = Judgement()
    all_checks()[name].judge(Observation(facts), cell or {}, known, verdict)
    return verdict


def test_a_hook_that_nothing_declares_and_one_that_is_missing_are_named(bench: Bench) -> None:
    assert judged("manifest.hooks", {"hooks": REFERENCE}, bench.known).outcome is Outcome.PASSED
    found = judged("manifest.hooks", {"hooks": ["probe", "run", "quantize"]}, bench.known).problems
    assert any("no hook convert" in p for p in found)
    assert any("there is a hook quantize" in p for p in found)


def test_a_misspelt_capability_and_an_unknown_family_are_contradictions(bench: Bench) -> None:
    manifest = bench.manifest
    wrong = replace(
        manifest,
        capabilities={**manifest.capabilities, "logit": True},
        claims=(*manifest.claims, replace(manifest.claims[0], family="llamma"), manifest.claims[0]),
    )
    found = judged("manifest.hooks", {"hooks": REFERENCE}, Known(wrong, "cpu")).problems
    assert len(found) == 3
    assert any("'logit'" in p for p in found)
    assert any("'llamma'" in p for p in found)
    assert any("claimed twice" in p for p in found)


def test_native_code_at_import_is_a_failure_and_what_the_core_brings_anyway_is_not(bench: Bench) -> None:
    numpy = {"distribution": "numpy", "native": True, "core": True, "own": False}
    onnx = {"distribution": "onnx", "native": True, "core": False, "own": False}
    nothing: dict[str, Any] = {"seconds": 0.0, "cpu": 0.0, "modules": [], "libraries": 3}

    def facts(package: list[str], hooks: list[str]) -> dict[str, Any]:
        stages = {"package": {**nothing, "modules": package}, "core": nothing, "hooks": {**nothing, "modules": hooks}}
        return {"stages": stages, "packages": {"numpy": numpy, "onnx": onnx}, "error": {}, "events": []}

    assert judged("manifest.imports", facts([], ["numpy"]), bench.known).outcome is Outcome.PASSED
    assert "loads numpy" in judged("manifest.imports", facts(["numpy"], []), bench.known).problems[0]
    assert "loads onnx" in judged("manifest.imports", facts([], ["onnx"]), bench.known).problems[0]


def test_a_slow_probe_counts_by_its_best_time(bench: Bench) -> None:
    device = {"name": "cpu", "available": True, "description": "numpy", "reason": ""}
    probe = {"devices": [device], "versions": {"numpy": "2.0"}, "features": {}}
    facts = {"seconds": [4.0, 0.2], "probe": probe, "again": probe}
    assert judged("manifest.probe", facts, bench.known).outcome is Outcome.PASSED
    assert judged("manifest.probe", {**facts, "seconds": [4.0, 2.0, 1.5]}, bench.known).outcome is Outcome.FAILED


def test_an_absence_counts_only_with_the_error_that_is_due(bench: Bench) -> None:
    cell = {"capability": "quantize"}

    def outcome(**facts: object) -> Outcome:
        return judged("manifest.absent", {"there": False, **facts}, bench.known, cell).outcome

    assert outcome(error="CannotDo") is Outcome.UNSUPPORTED
    assert [outcome(), outcome(error="PluginFault"), outcome(error="BadRequest")] == [Outcome.FAILED] * 3


def test_events_outside_are_those_below_no_allowed_place() -> None:
    events = [
        ["call", "write", "{out}/model"],
        ["call", "write", "/dev/null"],
        ["call", "os.mkdir", "{home}/.cache"],
        ["package", "write", "{home}/x"],
        ["call", "network", "socket.connect"],
    ]
    assert direct.outside(events, ("call",), ("out",)) == ["os.mkdir {home}/.cache"]


@pytest.mark.parametrize("name", ["manifest.hooks", "manifest.imports", "manifest.probe", "manifest.probe_effects"])
def test_the_reference_passes(bench: Bench, tmp_path: Path, name: str) -> None:
    row = run_row(all_checks()[name], {}, bench, tmp_path)
    assert (row.outcome, row.message) == (Outcome.PASSED, "")
