"""The outside check of reader, tokenizer and oracle together: llama.cpp on the same file, where it is installed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecore.checkpoint import Oracle, open_checkpoint
from edgecore.contract import ConvertLimits, UnsupportedModel, no_progress

from support.converted import GOLDENS, TOKENIZER_OF, folder_of
from support.gguf_files import write_gguf
from support.native_llama import logits_of
from support.tiny import TEXT, tiny_llama

pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: python3 bootstrap.py test --only e2e")
converter = pytest.importorskip(
    "edgecore_llamacpp.convert", reason="needs the llama.cpp plugin: python3 bootstrap.py test --only e2e"
)
TOKENIZERS = Path(__file__).parents[2] / "plugins" / "edgecore-llamacpp" / "tests" / "converted" / "tokenizers"

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied-multi-head": {"tied": False, "kv_heads": 4},
    "multi-query-own-head-dim": {"kv_heads": 1, "head_dim": 128},
    "linear": {"rope": {"type": "linear", "factor": 4.0}},
    "llama3": {"rope": LLAMA3},
}


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_gives_the_same_ids_and_logits(case: str, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "tiny", **CASES[case])
    with open_checkpoint(folder) as source, open_checkpoint(write_gguf(source, tmp_path / "m.gguf", "F32")) as model:
        text = TEXT[-700:]
        ids, theirs = logits_of(model.path, text)
        assert ids == source.tokenizer.encode(text) == model.tokenizer.encode(text)
        for checkpoint in (source, model):
            ours = np.concatenate(list(Oracle(checkpoint.decoder, checkpoint.tensors).score(ids)))
            assert _divergence(theirs, ours).max() < 1e-5


WINDOWED = {"mistral-window": 16, "qwen2-windows": 16, "phi3-window": 20}
"""llama.cpp sees everything where these models have windows: up to so many tokens the answers are the same."""
REFUSED = {
    "qwen3-new-style-windows": "biases on the output projection",
    "gemma3-new-style-soft-caps": "attention scores scaled",
    "bitnet-packed": "relu2",
    "bitnet-unpacked": "relu2",
    "bitnet-master-weights": "relu2",
}


COMPARED = [name for name in TOKENIZER_OF if name not in REFUSED and name != "phi3-longrope-new-style"]
"""That one's short sequences are shorter than any context of llama.cpp's: it has a test of its own."""


@pytest.mark.parametrize("golden", COMPARED)
def test_files_that_we_write_answer_as_transformers_does(golden: str, tmp_path: Path) -> None:
    stored = np.load(GOLDENS / golden / "golden.npz")
    tokens, logits = (stored[name][: WINDOWED.get(golden)] for name in ("tokens", "logits"))
    file, notes = _written(folder_of(golden, TOKENIZERS / TOKENIZER_OF[golden], tmp_path / "in"), tmp_path)
    assert _divergence(logits, _answer(file, tokens.tolist())).max() < 1e-5
    assert ("different" in " ".join(notes)) == (golden in WINDOWED)


@pytest.mark.parametrize(("original", "room"), [(256, 256), (256, 512), (32, 512)], ids=["short", "by room", "long"])
def test_longrope_goes_by_the_context_in_llama_cpp(original: int, room: int, tmp_path: Path) -> None:
    """48 tokens: the model takes its long factors beyond `original` of them, llama.cpp where there is room for more."""
    golden = "phi3-longrope-new-style"
    folder = folder_of(golden, TOKENIZERS / TOKENIZER_OF[golden], tmp_path / "in")
    _edit(folder, original_max_position_embeddings=original, max_position_embeddings=1024)
    tokens = np.load(GOLDENS / golden / "golden.npz")["tokens"].tolist()
    file, notes = _written(folder, tmp_path)
    with open_checkpoint(file) as model:
        ours = np.concatenate(list(Oracle(model.decoder, model.tensors).score(tokens)))
    assert (_divergence(ours, _answer(file, tokens, room)).max() < 1e-5) == (room == original or original < 48)
    assert any("long rotary factors" in note for note in notes)


@pytest.mark.parametrize("golden", ["bitnet-packed", "bitnet-unpacked", "bitnet-master-weights"])
def test_ternary_weights_are_those_of_the_model(golden: str, tmp_path: Path) -> None:
    """With the activation that llama.cpp has, and without the rounding of activations that it has not."""
    folder = folder_of(golden, TOKENIZERS / TOKENIZER_OF[golden], tmp_path / "in")
    _edit(folder, hidden_act="silu")
    tokens = np.load(GOLDENS / golden / "golden.npz")["tokens"].tolist()
    file, notes = _written(folder, tmp_path)
    with open_checkpoint(folder) as model:
        decoder = replace(model.decoder, int8_activations=False)
        ours = np.concatenate(list(Oracle(decoder, model.tensors).score(tokens)))
    assert _divergence(ours, _answer(file, tokens)).max() < 1e-5
    assert any("8 bits" in note for note in notes)


@pytest.mark.parametrize("golden", REFUSED)
def test_what_llama_cpp_does_not_compute_is_refused_before_anything_is_written(golden: str, tmp_path: Path) -> None:
    folder = folder_of(golden, TOKENIZERS / TOKENIZER_OF[golden], tmp_path / "in")
    with pytest.raises(UnsupportedModel, match=REFUSED[golden]):
        _written(folder, tmp_path)
    assert not (tmp_path / "model.gguf").exists()


def _written(folder: Path, out: Path) -> tuple[Path, tuple[str, ...]]:
    with open_checkpoint(folder) as model:
        made = converter.convert(model, out, "f32", ConvertLimits(), no_progress)
    return out / "model.gguf", made.notes


def _edit(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def _answer(file: Path, ids: list[int], room: int = 512) -> np.ndarray:
    return logits_of(file, ids, room=room)[1]


def _divergence(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """KL divergence of each position."""
    p, q = (_log_softmax(logits.astype(np.float64)) for logits in (reference, candidate))
    return (np.exp(p) * (p - q)).sum(axis=-1)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
