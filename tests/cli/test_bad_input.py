"""Bad input gets a clear error, the right exit code, and loses nothing."""

import hashlib
import json

import pytest

from support.cli import edgecore
from support.tiny import tiny_llama


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny")


def digest(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_a_missing_file_is_not_found(tmp_path):
    result = edgecore("inspect", tmp_path / "none.gguf")
    assert result.code == 2
    assert "none.gguf" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 16, b"hello, this is text"])
def test_a_file_that_is_no_model_is_refused_by_name(tmp_path, content):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(content)
    result = edgecore("inspect", broken)
    assert result.code == 2, result.err
    assert "broken.gguf" in result.err


def test_a_config_without_weights_is_corrupt_and_the_folder_untouched(tmp_path):
    folder = tiny_llama(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    before = digest(folder)
    result = edgecore("convert", folder, "--backend", "reference")
    assert result.code == 2
    assert digest(folder) == before


def test_truncated_weights_are_corrupt(tmp_path):
    folder = tiny_llama(tmp_path / "m")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    result = edgecore("convert", folder, "--backend", "reference")
    assert result.code == 2
    assert "model.safetensors" in result.err


def test_an_unknown_architecture_is_refused_in_the_names_of_the_known(tmp_path):
    folder = tiny_llama(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["NoSuchLM"], "model_type": "nosuch"}))
    result = edgecore("build", folder, "--backend", "reference")
    assert result.code == 2
    assert "nosuch" in result.err.lower()
    assert "llama" in result.err


def test_an_unknown_backend_lists_those_that_exist(tiny):
    result = edgecore("build", tiny, "--backend", "nonesuch")
    assert result.code == 3
    assert "reference" in result.err


def test_an_unknown_precision_lists_those_that_exist(tiny):
    result = edgecore("build", tiny, "--backend", "reference", "--precision", "q9_9")
    assert result.code == 2
    assert "f32" in result.err


def test_an_unknown_device_lists_those_that_exist(tiny):
    result = edgecore("run", tiny, "--backend", "reference", "--device", "npu", "-p", "x", "-n", "1")
    assert result.code == 3
    assert "cpu" in result.err


def test_an_unknown_option_is_refused(tiny):
    result = edgecore("build", tiny, "--backend", "reference", "-O", "group_sice=32")
    assert result.code == 2
    assert "group_sice" in result.err


def test_an_option_without_a_value_is_refused(tiny):
    result = edgecore("build", tiny, "--backend", "reference", "-O", "group_size")
    assert result.code == 2
    assert "KEY=VALUE" in result.err


def test_a_prompt_longer_than_the_context_is_an_error_never_a_cut(tiny):
    result = edgecore("run", tiny, "--backend", "reference", "-p", "the lighthouse " * 100, "-n", "1", "-c", "32")
    assert result.code == 2
    assert "32" in result.err
    assert result.out == ""


def test_a_prompt_that_is_not_utf8_is_refused(tiny, tmp_path):
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "edgecore", "run", str(tiny), "--backend", "reference", "-n", "1"],
        input=b"\xff\xfe",
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert b"UTF-8" in done.stderr


def test_errors_as_json_carry_the_same_words(tmp_path):
    result = edgecore("inspect", tmp_path / "none.gguf", "--json")
    assert result.code == 2
    assert result.json["error"] == "ModelNotFound"
    assert "none.gguf" in result.json["what"]


def test_debug_shows_the_traceback(tmp_path):
    result = edgecore("inspect", tmp_path / "none.gguf", "--debug")
    assert result.code != 0
    assert "Traceback" in result.err


def test_wrong_tokens_for_logits_are_refused(tiny, tmp_path):
    import numpy as np

    np.save(tmp_path / "t.npy", np.zeros((2, 2)))
    result = edgecore(
        "logits", tiny, "--backend", "reference", "--tokens", tmp_path / "t.npy", "--out", tmp_path / "l.npy"
    )
    assert result.code == 2
    assert "int64" in result.err
    assert not (tmp_path / "l.npy").exists()
