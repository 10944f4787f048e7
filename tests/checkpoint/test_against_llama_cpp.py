"""The outside check of reader, tokenizer and oracle together: llama.cpp on the same file, where it is installed."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecore.checkpoint import Oracle, open_checkpoint

from support.gguf_files import write_gguf
from support.tiny import TEXT, tiny_llama

llama_cpp = pytest.importorskip("llama_cpp")

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


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    silence = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silence, ctypes.c_void_p(0))
    yield
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(), ctypes.c_void_p(0))


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_gives_the_same_ids_and_logits(case: str, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "tiny", **CASES[case])
    with open_checkpoint(folder) as source, open_checkpoint(write_gguf(source, tmp_path / "m.gguf", "F32")) as model:
        text = TEXT[-700:]
        ids, theirs = _llama_cpp(model.path, text)
        assert ids == source.tokenizer.encode(text) == model.tokenizer.encode(text)
        for checkpoint in (source, model):
            ours = np.concatenate(list(Oracle(checkpoint.decoder, checkpoint.tensors).score(ids)))
            assert _divergence(theirs, ours).max() < 1e-5


def _llama_cpp(file: Path, text: str) -> tuple[list[int], np.ndarray]:
    """Ids of the text and logits of every position, float32 keys and values, no flash attention."""
    c = llama_cpp
    c.llama_backend_init()
    model = c.llama_model_load_from_file(str(file).encode(), c.llama_model_default_params())
    vocabulary = c.llama_model_get_vocab(model)
    data, room = text.encode(), 2048
    buffer = (c.llama_token * room)()
    count = c.llama_tokenize(vocabulary, data, len(data), buffer, room, True, False)
    ids = list(buffer[:count])
    settings = c.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 512
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = settings.flash_attn_type = 0
    context = c.llama_init_from_model(model, settings)
    batch = c.llama_batch_init(count, 0, 1)
    batch.n_tokens = count
    for position, token in enumerate(ids):
        batch.token[position], batch.pos[position] = token, position
        batch.n_seq_id[position], batch.seq_id[position][0], batch.logits[position] = 1, 0, 1
    assert c.llama_decode(context, batch) == 0
    size = c.llama_vocab_n_tokens(vocabulary)
    logits = np.ctypeslib.as_array(c.llama_get_logits(context), shape=(count * size,)).reshape(count, size).copy()
    c.llama_batch_free(batch)
    c.llama_free(context)
    c.llama_model_free(model)
    return ids, logits


def _divergence(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """KL divergence of each position."""
    p, q = (_log_softmax(logits.astype(np.float64)) for logits in (reference, candidate))
    return (np.exp(p) * (p - q)).sum(axis=-1)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
