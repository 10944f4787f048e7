"""`build --profile`: the backend that the profile names compiles, and what has not been seen to run is kept on request
only. The toy compiles for an NPU that is not here and for the CPU that is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.cli import Result, edgecore
from support.plugins import MANIFEST, install_plugin

COMPILES = """
from edgecore.contract import DeviceUnavailable

@hookimpl
def edgecore_compile(artifact, out, profile, options, progress, device):
    progress(0, 1, "compiling")
    text = f"{device} of {profile['name']}, platform {options['platform']}: {artifact.model.name}"
    (out / "model.blob").write_text(text)
    (out.parent.parent / "compiled.log").open("a").write(text + "\\n")
    return Made((PayloadFile("model.blob", "model"),), requires={"device": device, "platform": options["platform"]},
                format="toy-blob")

@hookimpl
def edgecore_run(artifact, device, context_length, threads, options):
    if artifact.requires.get("device", device) != device:
        raise DeviceUnavailable(f"it requires {artifact.requires}")
    return Session(options)
"""
MANIFEST_OF_BOTH = (
    MANIFEST.format(name="toy", contract="1.0", package="edgecore_toy", distribution="edgecore-toy")
    + """
[[devices]]
name = "npu"

[[formats]]
name = "toy-blob"
task = "text"
suffixes = [".blob"]

[[options.compile]]
name = "platform"
type = "str"
default = "1"
"""
)
PROFILE = """
schema = 1
name = "board"
title = "The Board"
[match]
[[units]]
name = "npu"
[[suited]]
backend = "reference"
device = "cpu"
why = "it compiles nothing"
[[suited]]
backend = "toy"
device = "{device}"
why = "it compiles"
options = {{ platform = "7" }}
"""


@pytest.fixture(autouse=True)
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed, so that its files are known by their suffix."""
    install_plugin(tmp_path / "site", hooks=COMPILES, manifest=MANIFEST_OF_BOTH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.toy"
    path.write_bytes(b"toy")
    return path


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """A machine whose NPU is not here."""
    path = tmp_path / "board.toml"
    path.write_text(PROFILE.format(device="npu"))
    return path


def build(model: Path, profile: object, *more: str) -> Result:
    return edgecore("build", model, "--profile", profile, *more)


def test_what_cannot_run_here_is_refused_before_any_work_unless_it_is_allowed(model: Path, board: Path) -> None:
    refused = build(model, board)
    assert refused.code == 1
    assert "compiled for the npu of The Board, which is not here: there is none" in refused.err
    assert "--allow-unverified" in refused.err


EMULATES = """
@hookimpl
def edgecore_probe():
    devices = (ProbedDevice("cpu", True), ProbedDevice("npu", False, reason="there is none"),
               ProbedDevice("npu-emulator", True))
    return Probe(devices, {}, {})
"""
EMULATOR = """
[[devices]]
name = "npu-emulator"
emulated = true

[[claims]]
task = "text"
families = ["llama"]
formats = ["toy"]
precisions = ["f16"]
devices = ["npu", "npu-emulator"]
"""
RUNS_THERE = COMPILES.replace("if artifact.requires", "if device != 'npu-emulator' and artifact.requires")


def test_where_an_emulator_is_here_the_result_is_compared_on_it_and_not_before(
    model: Path, board: Path, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "site")
    install_plugin(tmp_path / "site", hooks=RUNS_THERE + EMULATES, manifest=MANIFEST_OF_BOTH + EMULATOR)
    refused = build(model, board)
    assert refused.code == 1
    assert "nothing to compare it with" in refused.err, "the toy's source is no model: it came as far as that"
    made = build(model, board, "--allow-unverified", "--json")
    assert made.code == 0, made.err
    assert "which is not here" not in str(made.json["quality"])
    identity = made.json["id"]
    assert edgecore("run", identity, "-p", "a", "-n", "1", "--allow-unverified").code == 3, "it is for the NPU"
    ran = edgecore("run", identity, "-p", "a", "-n", "1", "--allow-unverified", "--device", "npu-emulator")
    assert ran.code == 0, ran.err


def test_the_result_is_an_artifact_that_says_what_it_requires(model: Path, board: Path) -> None:
    made = build(model, board, "--allow-unverified", "--json")
    assert made.code == 0, made.err
    assert (made.json["format"], made.json["quality"]["verdict"]) == ("toy-blob", "unverified")
    assert "which is not here" in made.json["quality"]["reasons"][0]
    blob = Path(made.json["path"]) / "model.blob"
    assert blob.read_text() == "npu of board, platform 7: model.toy", "options of the profile reach the compiler"
    found = edgecore("inspect", made.json["id"], "--json").json
    assert found["requires"] == {"device": "npu", "platform": "7"}
    assert found["chain"][-1].startswith("compile ")


def test_the_same_request_is_a_cache_hit_and_another_profile_or_option_is_not(model: Path, board: Path) -> None:
    ids = [build(model, board, "--allow-unverified").out for _ in range(2)]
    assert ids[0] == ids[1]
    assert build(model, board, "--allow-unverified", "-O", "platform=8").out not in ids
    board.write_text(board.read_text().replace("The Board", "The Board 2"))
    assert build(model, board, "--allow-unverified").out not in ids
    model.write_bytes(b"another")
    assert build(model, board, "--allow-unverified").out not in ids


def test_running_it_elsewhere_says_what_it_requires(model: Path, board: Path) -> None:
    identity = build(model, board, "--allow-unverified").out.strip()
    run = ("run", identity, "-p", "a", "-n", "1")
    assert edgecore(*run).code == 1, "unverified stays unverified"
    refused = edgecore(*run, "--allow-unverified")
    assert refused.code == 3
    assert "requires {'device': 'npu', 'platform': '7'}" in refused.err


def test_for_a_device_that_is_here_it_is_compared_or_says_why_not(model: Path, board: Path) -> None:
    board.write_text(PROFILE.format(device="cpu"))
    made = build(model, board, "--allow-unverified", "--json")
    assert made.code == 0, made.err
    assert "which is not here" not in str(made.json["quality"])
    ran = edgecore("run", made.json["id"], "-p", "a", "-n", "2", "--allow-unverified")
    assert ran.code == 0, ran.err


@pytest.mark.parametrize(
    ("profile", "backend", "code", "named"),
    [
        ("commodore-64", "toy", 2, "no profile 'commodore-64'"),
        ("x86-64-v3", "toy", 2, "names no device of backend 'toy'"),
        ("board", "reference", 2, "compiles ahead of time for board"),
    ],
)
def test_a_profile_that_nothing_here_compiles_for_is_refused(
    model: Path, board: Path, profile: str, backend: str, code: int, named: str
) -> None:
    given = board if profile == "board" else profile
    refused = build(model, given, "--allow-unverified", "--backend", backend)
    assert refused.code == code, refused.err
    assert named in refused.err
    assert "Traceback" not in refused.err


@pytest.mark.parametrize("verb", ["convert", "quantize", "run", "evaluate"])
def test_verbs_that_compile_nothing_say_which_does(model: Path, verb: str) -> None:
    refused = edgecore(verb, model, "--profile", "x86-64-v3", "--precision", "f16")
    assert refused.code == 2
    assert "edgecore build MODEL --profile x86-64-v3" in refused.err


@pytest.mark.parametrize("shape", ["x", "=1", "x=a,b", "x=1,b"])
def test_a_shape_that_is_none_is_refused(model: Path, shape: str) -> None:
    refused = edgecore("convert", model, "--shape", shape)
    assert refused.code == 2
    assert "INPUT=N,N" in refused.err
