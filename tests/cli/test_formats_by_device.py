"""A backend whose devices take different formats: what is wanted decides which is made and where it is compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.cli import edgecore
from support.plugins import MANIFEST, install_plugin
from support.tiny import tiny_llama

VOCAB = 512  # of the tiny model
BOTH = (
    MANIFEST.format(name="toy", contract="1.0", package="edgecore_toy", distribution="edgecore-toy")
    + """
[[devices]]
name = "npu"

[[devices]]
name = "npu-emulator"
emulated = true

[[formats]]
name = "toy-npu"
task = "text"
marker = "npu.json"

[[precisions]]
name = "f32"
bits = 32
by = "convert"

[[precisions]]
name = "a16w8"
bits = 8
by = "quantize"

[[claims]]
task = "text"
families = ["llama"]
formats = ["toy"]
precisions = ["f32"]
devices = ["cpu"]

[[claims]]
task = "text"
families = ["llama"]
formats = ["toy-npu"]
precisions = ["f16", "a16w8"]
devices = ["npu", "npu-emulator"]
"""
)
BOARD = """
schema = 1
name = "board"
title = "The Board"
[match]
[[units]]
name = "npu"
[[suited]]
backend = "toy"
device = "npu"
why = "it compiles"
"""
WRITES = """
@hookimpl
def edgecore_compile(artifact, out, profile, options, progress, device):
    raise UnsupportedModel("never asked here")

@hookimpl
def edgecore_probe():
    return Probe((ProbedDevice("cpu", True), ProbedDevice("npu", False, reason="there is none"),
                  ProbedDevice("npu-emulator", {emulator})))

@hookimpl
def edgecore_convert(source, out, format, precision, options, limits, progress):
    (out / "model.toy").write_text(f"{{format}} {{precision}} chunk {{limits.prefill_chunk}}")
    return Made((PayloadFile("model.toy", "model"),))

@hookimpl
def edgecore_quantize(artifact, out, precision, calibration, options, progress):
    (out / "model.toy").write_text(f"{{precision}} of {{artifact.format}} {{artifact.precision}}")
    return Made((PayloadFile("model.toy", "model"),))

@hookimpl
def edgecore_run(artifact, device, context_length, threads, options):
    (artifact.path.parent.parent / "opened.log").open("a").write(f"{{artifact.format}} on {{device}}\\n")
    return Session({{**options, "vocab": {vocab}}})
"""


@pytest.fixture(autouse=True)
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_plugin(tmp_path / "site", hooks=WRITES.format(emulator=True, vocab=VOCAB), manifest=BOTH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "tiny")


def built(model: Path, *more: object, verb: str = "build") -> tuple[str, str, list[str]]:
    """Format, what the plugin was asked for, and the notes."""
    made = edgecore(verb, model, "--backend", "toy", "--keep-refused", "--allow-unverified", "--json", *more)
    assert made.code == 0, made.err
    notes = [*made.json["quality"]["notes"], *made.json["quality"]["reasons"]]
    return made.json["format"], (Path(made.json["path"]) / "model.toy").read_text(), notes


def test_a_precision_is_made_in_the_first_format_that_claims_it(model: Path) -> None:
    assert built(model, "--precision", "f16")[:2] == ("toy", "toy f16 chunk None")


def test_a_precision_of_the_npu_alone_is_quantized_from_its_format(model: Path) -> None:
    format, asked, notes = built(model, "--precision", "a16w8")
    assert (format, asked) == ("toy-npu", "a16w8 of toy-npu f16")
    assert any("npu-emulator: an emulator, not the device itself" in note for note in notes)


def test_a_format_that_is_named_is_made_and_one_that_does_not_go_with_the_precision_is_refused(model: Path) -> None:
    asked = built(model, "--precision", "f16", "--to", "toy-npu", "--prefill-chunk", "32", verb="convert")
    assert asked[:2] == ("toy-npu", "toy-npu f16 chunk 32")


def test_an_artifact_of_one_format_is_not_quantized_to_a_precision_of_another(model: Path) -> None:
    made = edgecore("build", model, "--backend", "toy", "--precision", "f16", "--keep-refused", "--json")
    refused = edgecore("quantize", made.json["id"], "--precision", "a16w8")
    assert refused.code == 2
    assert "a16w8 is made of toy-npu, and this is toy" in refused.err
    assert "edgecore build SOURCE --backend toy --precision a16w8" in refused.err


def test_where_none_of_its_devices_is_here_an_artifact_is_unverified(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_plugin(tmp_path / "other", hooks=WRITES.format(emulator=False, vocab=VOCAB), manifest=BOTH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "other"))
    _, _, notes = built(model, "--precision", "a16w8")
    assert notes == ["toy-npu a16w8 is for npu, npu-emulator, which is not here"]


def test_a_source_run_on_a_device_is_built_for_it(model: Path) -> None:
    run = edgecore("run", model, "--backend", "toy", "--device", "npu-emulator", "--keep-refused", "-p", "a", "-n", "2")
    assert run.code == 0, run.err
    assert "building a16w8 for toy" in run.err


def test_a_profiles_device_takes_what_is_made_for_it_and_nothing_else(model: Path, tmp_path: Path) -> None:
    board = tmp_path / "board.toml"
    board.write_text(BOARD)
    refused = edgecore("build", model, "--profile", board, "--precision", "f32", "--allow-unverified")
    assert refused.code == 2
    assert "f32 is not for npu" in refused.err
    assert "f16, a16w8" in refused.err
