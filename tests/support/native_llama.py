"""llama.cpp's own answer to a text, through its C interface: what the oracle and our GGUF files are checked against."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def logits_of(
    file: Path, text: str | list[int], *, most: int = 512, room: int = 512
) -> tuple[list[int], NDArray[np.float32]]:
    """Ids of the text, at most so many, and logits of every position (n, vocab). One thread, float32 keys and values,
    no flash attention; nothing is logged.

    room: tokens that the context is made for."""
    import llama_cpp as c

    with _silence():
        c.llama_backend_init()
        model = c.llama_model_load_from_file(str(file).encode(), c.llama_model_default_params())
        assert model, f"llama.cpp does not load {file}"
        vocabulary = c.llama_model_get_vocab(model)
        ids = (text if isinstance(text, list) else _tokenized(vocabulary, text))[:most]
        settings = c.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = room
        settings.n_threads = settings.n_threads_batch = 1
        settings.type_k = settings.type_v = settings.flash_attn_type = 0
        context = c.llama_init_from_model(model, settings)
        count = len(ids)
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


def _tokenized(vocabulary: Any, text: str) -> list[int]:
    import llama_cpp as c

    data = text.encode()
    room = len(data) + 8
    buffer = (c.llama_token * room)()
    return list(buffer[: c.llama_tokenize(vocabulary, data, len(data), buffer, room, True, False)])


@contextmanager
def _silence() -> Iterator[None]:
    import llama_cpp as c

    silence = c.llama_log_callback(lambda *_: None)
    c.llama_log_set(silence, ctypes.c_void_p(0))
    try:
        yield
    finally:
        c.llama_log_set(c.llama_log_callback(), ctypes.c_void_p(0))
