"""`edgecore backends NAME`: each claim as the conformance suite left it on this machine, from what it noted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgecore import paths, registry
from edgecore.cli.backends import command
from edgecore.registry import Entry
from edgecore.verbs import proving

from support.plugins import MANIFEST, write_plugin

TWO_DEVICES = """
[[devices]]
name = "npu"
emulated = true

[[claims]]
task = "text"
families = ["llama"]
formats = ["toy"]
precisions = ["f16"]
devices = ["npu"]
"""
NOON, EVENING = "2026-11-21T12:00:00+00:00", "2026-11-21T18:00:00+00:00"
Note = Callable[..., None]


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    manifest = MANIFEST.format(name="toy", contract="1.0", package="edgecore_toy", distribution="edgecore-toy")
    return write_plugin(tmp_path / "toy", manifest=manifest + TWO_DEVICES)


@pytest.fixture
def entry(plugin: Path) -> Entry:
    return registry.find(plugin)


@pytest.fixture
def note(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> Note:
    """Writes what a run on a device notes: every claim of it has `state`, and nothing is another since."""
    monkeypatch.setattr(proving, "_suite_version", lambda: "1.0")

    def write(device: str, state: str, **other: Any) -> None:
        claims = [
            {"task": "text", "family": "llama", "format": "toy", "precision": "f16", "device": device, "state": state}
        ]
        noted = {
            "when": NOON, "level": "quick", "suite": "1.0", "plugin": entry.version, "runtime": entry.runtime_version,
            "manifest": hashlib.sha256(entry.data.encode()).hexdigest(), "origin": entry.origin,
            "drivers": {"toy": "3.1"}, "claims": claims, **other,
        }  # fmt: skip
        file = proving.file_of("toy", device)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(noted))

    return write


def probed(entry: Entry, when: str, versions: dict[str, str]) -> None:
    paths.index().mkdir(parents=True, exist_ok=True)
    probe = {"when": when, "plugin": entry.version, "devices": [], "versions": versions}
    (paths.index() / "probe-toy.json").write_text(json.dumps(probe))


def told(plugin: Path) -> dict[str, tuple[str, str]]:
    """State and reason by device, as `--json` has them."""
    done = CliRunner().invoke(command, [str(plugin), "--json"], standalone_mode=False)
    return {claim["device"]: (claim["state"], claim["why"]) for claim in json.loads(done.output)["claims"]}


def test_without_a_note_every_claim_is_unproven_and_the_next_command_is_told(plugin: Path) -> None:
    assert {state for state, _ in told(plugin).values()} == {"unproven"}
    shown = CliRunner().invoke(command, [str(plugin)], standalone_mode=False).output
    assert "0 of 2 claims are proven on this machine" in shown
    assert f"edgecore conformance run --backend {plugin}" in shown


@pytest.mark.parametrize("state", ["proven", "emulated", "unproven", "refuted"])
def test_a_claim_stands_as_it_was_noted(plugin: Path, note: Note, state: str) -> None:
    note("cpu", state)
    assert told(plugin)["cpu"] == (state, f"quick, {NOON}")
    assert told(plugin)["npu"][0] == "unproven", "a run on one device says nothing of another"
    shown = CliRunner().invoke(command, [str(plugin)], standalone_mode=False).output
    assert f"{1 if state == 'proven' else 0} of 2 claims are proven on this machine" in shown, "emulated is not proven"
    assert f"  {state}  " in shown


@pytest.mark.parametrize("state", ["proven", "emulated"])
@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"plugin": "0.9"}, "plugin 0.9 (now "),
        ({"runtime": "1.0"}, "runtime 1.0 (now "),
        ({"suite": "0.9"}, "suite 0.9 (now 1.0)"),
        ({"manifest": "0" * 64}, "another manifest"),
        ({"origin": "installed"}, "origin installed (now path)"),
        ({"plugin": "0.9", "suite": "0.9"}, "suite 0.9 (now 1.0)"),
    ],
)
def test_what_was_proven_with_something_else_is_stale(
    plugin: Path, note: Note, state: str, other: dict[str, Any], says: str
) -> None:
    note("cpu", state, **other)
    stands, why = told(plugin)["cpu"]
    assert stands == "stale"
    assert why.startswith(f"{state} with ")
    assert says in why


def test_another_driver_makes_stale_when_it_was_probed_after_the_run(plugin: Path, note: Note, entry: Entry) -> None:
    note("cpu", "proven")
    probed(entry, EVENING, {"toy": "3.2"})
    assert told(plugin)["cpu"] == ("stale", "proven with toy 3.1 (now 3.2)")
    note("cpu", "proven", when="2026-11-21T20:00:00+00:00", drivers={"toy": "3.3"})
    assert told(plugin)["cpu"][0] == "proven", "a probe from before the run knows older drivers"


def test_what_was_refuted_stays_refuted_and_says_with_what(plugin: Path, note: Note) -> None:
    note("cpu", "refuted", suite="0.9")
    assert told(plugin)["cpu"] == ("refuted", f"quick, {NOON}, with suite 0.9 (now 1.0)")


def test_a_suite_that_is_not_installed_makes_nothing_stale(
    plugin: Path, note: Note, monkeypatch: pytest.MonkeyPatch
) -> None:
    note("cpu", "proven", suite="0.9")
    monkeypatch.setattr(proving, "_suite_version", lambda: "")
    assert told(plugin)["cpu"][0] == "proven"


@pytest.mark.parametrize("state", ["stale", "splendid", None, ["proven"]])
def test_a_state_that_no_run_gives_is_unproven(plugin: Path, note: Note, state: Any) -> None:
    note("cpu", state)
    assert told(plugin)["cpu"] == ("unproven", f"quick, {NOON}: not among it")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"claims": []}', '{"claims": 5, "when": "", "level": ""}', '{"claims": [1]}']
)
def test_a_note_that_cannot_be_read_is_none(plugin: Path, text: str) -> None:
    file = proving.file_of("toy", "cpu")
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert told(plugin)["cpu"] == ("unproven", "the conformance suite has not run on this device")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"when": "", "devices": []}'])
def test_a_probe_that_cannot_be_read_was_never_made(plugin: Path, text: str) -> None:
    paths.index().mkdir(parents=True, exist_ok=True)
    (paths.index() / "probe-toy.json").write_text(text)
    done = CliRunner().invoke(command, [str(plugin), "--json"], standalone_mode=False)
    assert json.loads(done.output)["probe"] is None
