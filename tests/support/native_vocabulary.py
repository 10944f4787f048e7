"""llama.cpp's own token ids, from the vocabulary of a GGUF file alone.

with native_vocabulary(file) as encode:
    encode("text", add_special=False, parse_special=True)
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def native_vocabulary(file: Path) -> Iterator[Callable[[str, bool, bool], list[int]]]:
    """Arguments of what it yields: text, add_special, parse_special. Nothing is logged."""
    import llama_cpp as c

    silence = c.llama_log_callback(lambda *_: None)
    c.llama_log_set(silence, ctypes.c_void_p(0))
    settings = c.llama_model_default_params()
    settings.vocab_only = True
    model = c.llama_model_load_from_file(str(file).encode(), settings)
    assert model, file
    vocabulary = c.llama_model_get_vocab(model)

    def encode(text: str, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode()
        buffer = (c.llama_token * (len(data) + 16))()
        count = c.llama_tokenize(vocabulary, data, len(data), buffer, len(buffer), add_special, parse_special)
        assert count >= 0
        return list(buffer[:count])

    try:
        yield encode
    finally:
        c.llama_model_free(model)
        c.llama_log_set(c.llama_log_callback(), ctypes.c_void_p(0))


def with_pre(vocabulary: Path, pre: str, out: Path) -> Path:
    """A copy of a GGUF file without tensors, whose `tokenizer.ggml.pre` is another."""
    data = vocabulary.read_bytes()
    key = b"tokenizer.ggml.pre"
    at = data.index(key) + len(key)
    kind, length = struct.unpack_from("<IQ", data, at)
    assert kind == 8
    name = pre.encode()
    out.write_bytes(data[: at + 4] + struct.pack("<Q", len(name)) + name + data[at + 12 + length :])
    return out
