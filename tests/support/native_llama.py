"""llama.cpp's own answer to a text, through its C interface: what the oracle and our GGUF files are checked against."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def logits_of(file: Path, text: str, *, most: int = 512, context: int = 512) -> tuple[list[int], NDArray[np.float32]]:
    """Ids of the text, at most so many, and logits of every position (n, vocab). One thread, float32 keys and values,
    no flash attention; nothing is logged."""
    import llama_cpp as c

    silence = c.llama_log_callback(lambda *_: None)
    c.llama_log_set(silence, ctypes.c_void_p(0))
    c.llama_backend_init()
    model = c.llama_model_load_from_file(str(file).encode(), c.llama_model_default_params())
    vocabulary = c.llama_model_get_vocab(model)
    data, room = text.encode(), len(text.encode()) + 8
    buffer = (c.llama_token * room)()
    count = min(most, c.llama_tokenize(vocabulary, data, len(data), buffer, room, True, False))
    ids = list(buffer[:count])
    settings = c.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = context
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = settings.flash_attn_type = 0
    opened = c.llama_init_from_model(model, settings)
    batch = c.llama_batch_init(count, 0, 1)
    batch.n_tokens = count
    for position, token in enumerate(ids):
        batch.token[position], batch.pos[position] = token, position
        batch.n_seq_id[position], batch.seq_id[position][0], batch.logits[position] = 1, 0, 1
    assert c.llama_decode(opened, batch) == 0
    size = c.llama_vocab_n_tokens(vocabulary)
    logits = np.ctypeslib.as_array(c.llama_get_logits(opened), shape=(count * size,)).reshape(count, size).copy()
    c.llama_batch_free(batch)
    c.llama_free(opened)
    c.llama_model_free(model)
    c.llama_log_set(c.llama_log_callback(), ctypes.c_void_p(0))
    return ids, logits
