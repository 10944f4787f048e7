"""Placement checks judge by what was seen from outside: a plugin's word alone never makes a pass on an accelerator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgecore import registry
from edgecore.contract.manifest import Device, Manifest
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import CHECKS
from edgecore_conformance.checks import placement
from edgecore_conformance.known import Known
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.outcomes import Outcome
from edgecore_conformance.running import judged, run_row

QUIET = {
    "wall": 1.0,
    "cpu": 0.02,
    "waited": 0.0,
    "engines": {},
    "libraries": [],
    "devices": [],
    "nvidia": {},
    "calls": 9,
}
BUSY = {**QUIET, "cpu": 0.98}
CROWDED = {**QUIET, "cpu": 0.3, "waited": 0.68}
"""As busy as `BUSY`, on a machine where others compute."""
ENGINE = {**QUIET, "engines": {"i915 compute": 0.7}}
SMI = {**QUIET, "nvidia": {"utilization": 60.0, "memory": 300.0}, "libraries": ["libcuda.so.1"]}
LOADED = {**QUIET, "libraries": ["libcuda.so.1"], "devices": ["/dev/nvidia0"], "nvidia": {"utilization": 0.0}}
EMULATOR = {**BUSY, "libraries": ["libQnnHtp.so"]}
SAYS = {
    "cpu": {"source": "runtime-assignment", "operators": {"cpu": 1.0}, "time": {}, "detail": "all of it"},
    "gpu": {"source": "runtime-profile", "operators": {}, "time": {"gpu": 1.0}, "detail": "100 %"},
    "npu-emulator": {"source": "runtime-assignment", "operators": {"npu-emulator": 1.0}, "time": {}, "detail": "all"},
    "nobody": {"source": "none", "operators": {}, "time": {}, "detail": ""},
}


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    declared = registry.find("reference").ready_manifest
    return replace(declared, devices=(*declared.devices, Device("gpu"), Device("npu-emulator", emulated=True)))


def verdict(check: str, facts: dict[str, Any], manifest: Manifest, device: str = "cpu") -> Judgement:
    return judged(CHECKS[check], Observation(facts), {"task": "text"}, Known(manifest, device))


@pytest.mark.parametrize(
    ("device", "seen", "says", "outcome"),
    [
        ("cpu", BUSY, "cpu", Outcome.PASSED),
        ("cpu", CROWDED, "cpu", Outcome.PASSED),
        ("cpu", {**BUSY, "libraries": ["libcuda.so.1"]}, "cpu", Outcome.PASSED),
        ("cpu", QUIET, "cpu", Outcome.FAILED),
        ("cpu", {**BUSY, "engines": {"i915 compute": 0.7}}, "cpu", Outcome.FELL_BACK),
        ("cpu", {**BUSY, "cpu": None}, "cpu", Outcome.UNPLACED),
        ("gpu", ENGINE, "gpu", Outcome.PASSED),
        ("gpu", ENGINE, "nobody", Outcome.PASSED),
        ("gpu", SMI, "gpu", Outcome.PASSED),
        ("gpu", LOADED, "gpu", Outcome.UNPLACED),
        ("gpu", QUIET, "gpu", Outcome.UNPLACED),
        ("gpu", QUIET, "nobody", Outcome.UNPLACED),
        ("gpu", BUSY, "gpu", Outcome.FELL_BACK),
        ("gpu", CROWDED, "gpu", Outcome.FELL_BACK),
        ("gpu", BUSY, "cpu", Outcome.FELL_BACK),
        ("npu-emulator", EMULATOR, "npu-emulator", Outcome.PASSED),
        ("npu-emulator", EMULATOR, "nobody", Outcome.UNPLACED),
        ("npu-emulator", EMULATOR, "cpu", Outcome.FELL_BACK),
        ("npu-emulator", BUSY, "npu-emulator", Outcome.UNPLACED),
        ("npu-emulator", {**EMULATOR, "cpu": 0.02}, "npu-emulator", Outcome.FAILED),
        ("npu-emulator", {**EMULATOR, "engines": {"i915 compute": 0.7}}, "npu-emulator", Outcome.FELL_BACK),
    ],
)
def test_where_it_ran_is_what_was_seen(
    device: str, seen: dict[str, Any], says: str, outcome: Outcome, manifest: Manifest
) -> None:
    facts = {"session": seen, "benchmark": seen, "stated": SAYS[says]}
    assert verdict("placement.where", facts, manifest, device).outcome is outcome


def test_an_emulator_is_loaded_where_it_is_measured_too(manifest: Manifest) -> None:
    facts = {"session": EMULATOR, "benchmark": BUSY, "stated": SAYS["npu-emulator"]}
    assert verdict("placement.where", facts, manifest, "npu-emulator").outcome is Outcome.UNPLACED


@pytest.mark.parametrize("order", [("session", "benchmark"), ("benchmark", "session")])
def test_a_benchmark_that_runs_elsewhere_than_the_session_is_found(order: tuple[str, str], manifest: Manifest) -> None:
    facts = {order[0]: ENGINE, order[1]: BUSY}
    assert verdict("placement.where", facts, manifest, "gpu").outcome is Outcome.FELL_BACK
    facts = {order[0]: BUSY, order[1]: QUIET}
    assert verdict("placement.where", facts, manifest, "gpu").outcome is Outcome.FELL_BACK


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({}, Outcome.PASSED),
        ({"operators": {"cpu": 0.7, "gpu": 0.3}}, Outcome.PASSED),
        ({"operators": {"cpu": 0.3, "gpu": 0.7}}, Outcome.FELL_BACK),
        ({"operators": {"cpu": 0.6}}, Outcome.FAILED),
        ({"operators": {"cpu": 1.4, "gpu": -0.4}}, Outcome.FAILED),
        ({"operators": {"cpu": "nan"}}, Outcome.FAILED),
        ({"operators": {"tpu": 1.0}}, Outcome.FAILED),
        ({"operators": {}}, Outcome.FAILED),
        ({"source": "none"}, Outcome.FAILED),
        ({"source": "outside"}, Outcome.FAILED),
        ({"source": "the author"}, Outcome.FAILED),
        ({"detail": ""}, Outcome.FAILED),
        ({"source": "none", "operators": {}}, Outcome.PASSED),
    ],
)
def test_what_a_plugin_says_of_its_placement_makes_sense(
    change: dict[str, Any], outcome: Outcome, manifest: Manifest
) -> None:
    stated = {**SAYS["cpu"], **change}
    assert verdict("placement.claim", {"before": stated, "after": stated}, manifest).outcome is outcome


@pytest.mark.parametrize(
    ("seen", "good"),
    [(BUSY, True), (CROWDED, True), ({**BUSY, "cpu": 1.9}, False), ({**BUSY, "cpu": 0.7, "waited": 1.2}, False)],
)
def test_two_threads_are_too_many_where_one_was_asked_for_however_busy_the_machine_is(
    seen: dict[str, Any], good: bool, manifest: Manifest
) -> None:
    assert (verdict("placement.threads", {"1": [seen, seen]}, manifest).outcome is Outcome.PASSED) is good


REFUSED = {"error": "DeviceUnavailable", "what": "no such device", "supported": "cpu", "hint": ""}


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (REFUSED, ""),
        ({"answered": "a session, which says it runs on {'cpu': 1.0}"}, "DeviceUnavailable was due, came a session"),
        ({**REFUSED, "error": "PluginFault"}, "came PluginFault"),
        ({**REFUSED, "supported": ""}, "does not name 'cpu'"),
    ],
)
def test_a_device_that_there_is_not_is_refused_naming_those_that_there_are(
    said: dict[str, str], words: str, manifest: Manifest
) -> None:
    for verb, other in (("run", "benchmark"), ("benchmark", "run")):
        facts = {"said": {"unknown": {verb: said, other: REFUSED}}}
        problems = verdict("placement.unknown_device", facts, manifest).problems
        assert bool(problems) is bool(words)
        assert words in "\n".join(problems)


def test_a_declared_device_that_is_not_here_says_why_and_raises(manifest: Manifest) -> None:
    name = "placement.unavailable_device"
    devices = {d.name: {"available": d.name == "cpu", "reason": "not built in"} for d in manifest.devices}
    both = {"run": REFUSED, "benchmark": REFUSED}
    assert verdict(name, {"devices": devices, "said": {"gpu": both}}, manifest).outcome is Outcome.PASSED
    opened = {"gpu": {**both, "run": {"answered": "a session"}}}
    assert verdict(name, {"devices": devices, "said": opened}, manifest).outcome is Outcome.FAILED
    silent = {**devices, "gpu": {"available": False, "reason": ""}}
    assert verdict(name, {"devices": silent, "said": {"gpu": both}}, manifest).outcome is Outcome.FAILED
    unsaid = {"devices": {"cpu": devices["cpu"]}, "said": {}}
    assert "probe does not speak of 'gpu'" in verdict(name, unsaid, manifest).problems[0]
    everything = {d.name: {"available": True, "reason": ""} for d in manifest.devices}
    assert verdict(name, {"devices": everything, "said": {}}, manifest).outcome is Outcome.NOT_APPLICABLE


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    entry = registry.find("reference")
    made = Bench(entry, Known(entry.ready_manifest, "cpu"), tmp_path / "work")
    yield made
    made.close()


@pytest.mark.alone
def test_the_reference_is_seen_on_the_cpu_and_with_one_thread(bench: Bench, tmp_path: Path) -> None:
    for name in ("placement.where", "placement.threads"):
        row = run_row(CHECKS[name], {"task": "tensor"}, bench, tmp_path)
        assert row.outcome is Outcome.PASSED, row.message


def test_every_check_of_the_group_has_a_page_and_a_row_a_task(manifest: Manifest) -> None:
    mine = [c for c in CHECKS.values() if c.group() == "placement"]
    assert len(mine) == 5
    for check in mine:
        assert len((check.__doc__ or "").split("\n\n")) >= 2
        assert [dict(c) for c in check.cells(manifest, "cpu", "quick")] == [{"task": "text"}, {"task": "tensor"}]
        assert check.proves(manifest, {"task": "text"}) == {"task": "text"}
    assert placement.BUSY > placement.IDLE
