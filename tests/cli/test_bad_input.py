"""Bad input gets a clear error, the right exit code, and loses nothing."""

import hashlib
import json
import sys
from pathlib import Path

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


@pytest.mark.parametrize(
    "arguments",
    [("inspect",), ("inspect", "x", "--bogus"), ("chat", "x"), ("build", "x", "-O", "y"), ("run", "x", "-n", "-5")],
)
def test_usage_errors_as_json_are_one_document_too(arguments):
    result = edgecore(*arguments, "--json")
    assert result.code == 2
    assert result.json["error"] == "BadRequest"
    assert result.json["hint"] == f"edgecore {arguments[0]} --help"


@pytest.mark.parametrize("value", ["nan", "inf", "1e300"])
@pytest.mark.parametrize("option", ["--timeout", "--memory-limit"])
def test_a_limit_that_is_no_number_of_this_world_is_refused(tiny, option, value):
    result = edgecore("build", tiny, "--backend", "reference", option, value)
    assert result.code == 2
    assert option in result.err


def test_a_seed_that_no_generator_takes_is_refused(tiny):
    result = edgecore("run", tiny, "--backend", "reference", "-p", "x", "-n", "1", "--seed", 2**64)
    assert result.code == 2
    assert "seed" in result.err


def test_a_result_that_cannot_be_written_is_a_bad_request_that_names_it(tiny, tmp_path):
    for out in (tmp_path, tmp_path / "none" / "answer.txt"):
        result = edgecore("run", tiny, "--backend", "reference", "-p", "x", "-n", "1", "-o", out)
        assert result.code == 2, result.err
        assert str(out) in result.err


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell of Unix")
def test_closed_standard_input_is_an_empty_one(tiny):
    import subprocess

    for verb, code in (("run", 2), ("tokenize", 0), ("chat", 0)):
        line = f'"{sys.executable}" -m edgecore {verb} "{tiny}" --backend reference <&-'
        done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert "NoneType" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs pipes of Unix")
def test_a_reader_that_left_is_no_failed_check():
    import subprocess

    with subprocess.Popen(
        [sys.executable, "-m", "edgecore", "backends", "reference"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        assert run.stdout
        assert run.stderr
        run.stdout.close()
        said = run.stderr.read()
    assert run.returncode == 0
    assert said == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_a_full_standard_output_is_an_error_without_a_traceback():
    import subprocess

    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "edgecore", "backends", "--json"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "No space left" in done.stderr


def test_logits_never_replace_the_tokens(tiny, tmp_path):
    import numpy as np

    tokens = tmp_path / "t.npy"
    np.save(tokens, np.array([1, 2, 3]))
    before = tokens.read_bytes()
    result = edgecore("logits", tiny, "--backend", "reference", "--tokens", tokens, "--out", tokens)
    assert result.code == 2
    assert tokens.read_bytes() == before


def test_tokens_in_an_npz_are_refused(tiny, tmp_path):
    import numpy as np

    np.savez(tmp_path / "t.npz", a=np.array([1]))
    result = edgecore(
        "logits", tiny, "--backend", "reference", "--tokens", tmp_path / "t.npz", "--out", tmp_path / "l.npy"
    )
    assert result.code == 2
    assert ".npz" in result.err


def test_doctor_answers_where_nothing_can_be_recorded(tmp_path):
    (tmp_path / "home").touch()
    result = edgecore("doctor", "--json", EDGECORE_HOME=str(tmp_path / "home"))
    assert result.code in (0, 3), result.out  # 3: only the reference is installed
    assert result.json["machine"]


def test_an_empty_name_removes_nothing():
    result = edgecore("cache", "rm", "")
    assert result.code == 2
