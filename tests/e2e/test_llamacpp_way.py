"""The whole way with a real runtime: from a checkpoint to measured, verified artifacts, through the command line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from support.cli import edgecore
from support.tiny import tiny_llama


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny")


def leftovers(home):
    """Files below the artifacts folder that no listed artifact owns; folders of locks and of work stay, empty."""
    listed = {a["id"] for a in edgecore("cache", "ls", "--json", EDGECORE_HOME=str(home)).json["artifacts"]}
    folder = Path(home) / "artifacts"
    return [p for p in folder.rglob("*") if p.is_file() and not {".locks", *listed} & set(p.parts)]


def test_without_a_backend_the_only_usable_one_is_taken(tiny):
    made = edgecore("build", tiny, "--precision", "q8_0", "--json")
    assert made.code == 0, made.err
    assert made.json["backend"] == "llamacpp"
    assert made.json["quality"]["verdict"] == "accepted"
    assert 8 < made.json["bits_per_weight"] < 9.5


def test_a_class_of_precision_names_the_recommended_one(tiny):
    made = edgecore("build", tiny, "--backend", "llamacpp", "--precision", "medium", "--json")
    assert made.json["precision"] == "q8_0"


def test_convert_then_quantize_gives_what_build_gives(tiny):
    half = edgecore("convert", tiny, "--backend", "llamacpp", "--to", "gguf", "--json")
    assert half.code == 0, half.err
    quantized = edgecore("quantize", half.json["id"], "--precision", "q8_0", "--json")
    assert quantized.code == 0, quantized.err
    built = edgecore("build", tiny, "--backend", "llamacpp", "--precision", "q8_0", "--json")
    assert built.json["id"] == quantized.json["id"]


def test_a_format_finds_its_backend_there_and_back(tiny, tmp_path):
    """F16 all the way, so that nothing is lost: folder, GGUF, folder."""
    how = ["--precision", "f16", "--json"]
    there = edgecore("convert", tiny, "--to", "gguf", "-o", tmp_path / "there", *how)
    assert there.code == 0, there.err
    assert there.json["backend"] == "llamacpp"
    gguf = next((tmp_path / "there").rglob("*.gguf"))
    back = edgecore("convert", gguf, "--to", "hf", "-o", tmp_path / "back", *how)
    assert back.code == 0, back.err
    assert back.json["backend"] == "reference"
    before, after = (load_file(f / "model.safetensors") for f in (tiny, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_the_exported_file_runs_natively_where_it_lies(tiny, tmp_path):
    made = edgecore("build", tiny, "--backend", "llamacpp", "--precision", "q8_0", "-o", tmp_path / "out", "--json")
    gguf = next((tmp_path / "out").rglob("*.gguf"))
    how = ["-p", "The lamp", "-n", "6", "--temp", "0", "--json"]
    native = edgecore("run", gguf, "--backend", "llamacpp", *how, EDGECORE_HOME=str(tmp_path / "home"))
    assert native.code == 0, native.err
    assert native.json["tokens"] == edgecore("run", made.json["id"], *how).json["tokens"]
    assert not list((tmp_path / "home").glob("artifacts/*"))


def test_two_backends_agree_on_logits(tiny, tmp_path):
    np.save(tmp_path / "tokens.npy", np.arange(40, 72, dtype=np.int64))
    for backend, precision in (("reference", "f32"), ("llamacpp", "f32")):
        result = edgecore("logits", tiny, "--backend", backend, "--precision", precision,
                          "--tokens", tmp_path / "tokens.npy", "--out", tmp_path / f"{backend}.npy")  # fmt: skip
        assert result.code == 0, result.err
    a, b = (np.load(tmp_path / f"{name}.npy") for name in ("reference", "llamacpp"))
    assert np.abs(a - b).max() < 0.05
    assert (a.argmax(-1) == b.argmax(-1)).mean() > 0.95


def test_a_type_that_needs_calibration_is_refused_with_that_reason(tiny):
    result = edgecore("build", tiny, "--backend", "llamacpp", "--precision", "iq2_xxs")
    assert result.code == 2
    assert "calibration" in result.err


def test_garbage_is_refused_by_evidence_and_kept_only_on_request(tiny):
    refused = edgecore("build", tiny, "--backend", "llamacpp", "--precision", "tq2_0")
    assert refused.code == 1, refused.err
    assert "refused" in refused.err
    listed = [a["precision"] for a in edgecore("cache", "ls", "--json").json["artifacts"]]
    assert "tq2_0" not in listed
    kept = edgecore("build", tiny, "--backend", "llamacpp", "--precision", "tq2_0", "--keep-refused", "--json")
    assert kept.code == 0, kept.err
    assert kept.json["quality"]["verdict"] == "refused"
    again = edgecore("build", tiny, "--backend", "llamacpp", "--precision", "tq2_0")
    assert again.code == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs kill -9, which Windows lacks")
@pytest.mark.parametrize("delay", [0.3, 0.8, 1.5, 2.5])
def test_kill_9_at_any_moment_leaves_nothing_that_counts_as_an_artifact(tiny, delay, edgecore_home):
    process = subprocess.Popen(
        [sys.executable, "-m", "edgecore", "build", str(tiny), "--backend", "llamacpp", "--precision", "q4_k_m"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    verified = edgecore("cache", "verify", "--json")
    assert not any(verified.json.values())
    made = edgecore("build", tiny, "--backend", "llamacpp", "--precision", "q4_k_m", "--json")
    assert made.code == 0, made.err
    assert not leftovers(edgecore_home)


def test_two_processes_build_the_same_artifact_once(tiny):
    command = [sys.executable, "-m", "edgecore", "build", str(tiny), "--backend", "llamacpp", "--precision", "q8_0"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    results = [p.communicate(timeout=240) for p in both]
    assert [p.returncode for p in both] == [0, 0], results
    assert results[0][0] == results[1][0]
    assert len(edgecore("cache", "ls", "--json").json["artifacts"]) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="needs a file-size limit, which Windows lacks")
def test_a_full_disk_is_an_error_not_a_file(tiny, edgecore_home):
    import resource

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    done = subprocess.run(
        [sys.executable, "-m", "edgecore", "convert", str(tiny), "--backend", "llamacpp"],
        capture_output=True, text=True, check=False, preexec_fn=limit, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert not edgecore("cache", "ls", "--json").json["artifacts"]
    assert not leftovers(edgecore_home)


def test_a_file_that_makes_libllama_abort_is_an_answer(tiny, tmp_path):
    """Metadata and sizes are right, so only the runtime notices: the rope dimension count contradicts the heads."""
    made = edgecore("convert", tiny, "--backend", "llamacpp", "-o", tmp_path / "out", "--json")
    assert made.code == 0, made.err
    good = next((tmp_path / "out").rglob("*.gguf")).read_bytes()
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(good[: len(good) // 2])
    result = edgecore("run", bad, "--backend", "llamacpp", "-p", "x", "-n", "1")
    assert result.code in (2, 4)
    assert "bad.gguf" in result.err
    assert "Traceback" not in result.err


def test_ctrl_c_leaves_no_orphan(tiny):
    process = subprocess.Popen(
        [sys.executable, "-m", "edgecore", "run", str(tiny), "--backend", "llamacpp", "-p", "The", "-n", "400"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.read(1)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=15)
    _gone, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
