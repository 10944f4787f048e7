"""A model and its contexts in libllama: pointers with an owner, failures with a type.

Not edgecore's contract yet: `session` makes a `TextSession` of it, `benchmark` a native loop, `imatrix` watches it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint import open_checkpoint
from edgecore.checkpoint.gguf_file import read_gguf
from edgecore.contract import BadRequest, CorruptModel, DoesNotFit, EdgecoreError, UnsupportedModel
from edgecore.contract.bounds import checked_ids
from edgecore_llamacpp import native
from edgecore_llamacpp.composing import Composer, composes
from edgecore_llamacpp.native import libllama

Tokens = NDArray[np.int32]
BATCH, UBATCH = 2048, 512
"""llama-bench's: tokens handed over at once, and computed at once."""
KV_TYPES = {"f32": (0, "float32"), "f16": (1, "float16"), "q8_0": (8, "q8_0")}
"""Option to ggml's number, and to the word that measurements are compared by."""
FLASH = {
    "auto": libllama.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": libllama.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": libllama.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}


class Model:
    """Weights and vocabulary of a GGUF file, mapped."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        """Raises `CorruptModel`, `UnsupportedModel`. The header is checked first: libllama aborts on some damages."""
        native.start()
        metadata = read_gguf(path)[0].metadata
        self.path = path
        self.device = device
        self._none = (ctypes.c_void_p * 1)(None)
        params = libllama.llama_model_default_params()
        if device == "cpu":
            params.devices = ctypes.cast(self._none, ctypes.c_void_p)
            params.n_gpu_layers = 0
        native.forget_words()
        self._pointer = libllama.llama_model_load_from_file(str(path).encode(), params)
        if not self._pointer:
            raise _refused(path, native.last_words())
        self.vocab = libllama.llama_model_get_vocab(self._pointer)
        self.vocab_size = int(libllama.llama_vocab_n_tokens(self.vocab))
        self.composer = Composer(self.vocab) if composes(metadata) else None
        self.trained_context = int(libllama.llama_model_n_ctx_train(self._pointer))

    @property
    def pointer(self) -> Any:
        if self._pointer is None:
            raise BadRequest("the session is closed")
        return self._pointer

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Every token that libllama takes for the end of a generation."""
        is_end = libllama.llama_vocab_is_eog
        return frozenset(i for i in range(self.vocab_size) if is_end(self.vocab, i))

    def close(self) -> None:
        """After its contexts."""
        if self._pointer is not None:
            libllama.llama_model_free(self._pointer)
            self._pointer = None

    def checked(self, tokens: Sequence[int]) -> Tokens:
        """Token ids as libllama takes them. Raises `BadRequest` for ids outside the vocabulary."""
        return checked_ids(tokens, self.vocab_size).astype(np.int32)


def _refused(path: Path, why: str) -> EdgecoreError:
    """The header is sound and libllama would not load it: of another architecture, or contradicting itself."""
    try:
        open_checkpoint(path).close()
    except UnsupportedModel:
        return UnsupportedModel(f"{path}: libllama does not load it: {why}", supported="models that llama.cpp knows")
    except CorruptModel as error:
        return error
    return CorruptModel(f"{path}: libllama does not load it: {why}")


class Context:
    """One sequence with its KV cache."""

    def __init__(
        self,
        model: Model,
        length: int,
        threads: int,
        *,
        kv_cache: str = "f16",
        flash_attention: str = "auto",
        ubatch: int = UBATCH,
        observer: Any = None,
    ) -> None:
        """observer: a `ggml_backend_sched_eval_callback`, kept alive here. Raises `DoesNotFit`."""
        self.model = model
        self._observer = observer
        params = libllama.llama_context_default_params()
        params.n_ctx = length
        params.n_batch, params.n_ubatch = BATCH, ubatch
        params.n_seq_max = 1
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = FLASH[flash_attention]
        params.type_k = params.type_v = KV_TYPES[kv_cache][0]
        params.offload_kqv = params.op_offload = model.device != "cpu"
        params.no_perf = True
        if observer is not None:
            params.cb_eval = observer
        native.forget_words()
        self._pointer = libllama.llama_init_from_model(model.pointer, params)
        if not self._pointer:
            raise DoesNotFit(
                f"a context of {length} tokens with a {kv_cache} KV cache: {native.last_words()}", hint="a smaller -c"
            )
        self._pool = None if "OPENMP" in native.features() else native.Threadpool(self._pointer, threads)
        self._views: dict[tuple[int, int], NDArray[np.float32]] = {}

    @property
    def pointer(self) -> Any:
        if self._pointer is None:
            raise BadRequest("the session is closed")
        return self._pointer

    def decode(self, tokens: Tokens) -> None:
        """Appends tokens; only the last one's logits are computed."""
        pointer = self.pointer
        for start in range(0, len(tokens), BATCH):
            some = tokens[start : start + BATCH]
            batch = libllama.llama_batch_get_one(some.ctypes.data_as(_TOKEN_POINTER), len(some))
            self._run(pointer, batch)

    def decode_all(self, tokens: Tokens, position: int) -> NDArray[np.float32]:
        """Appends up to `UBATCH` tokens; a view of all their logits, (n, vocab), valid until the next call."""
        count = len(tokens)
        batch = libllama.llama_batch_init(count, 0, 1)
        try:
            batch.n_tokens = count
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(token), position + i, 1, 1
                batch.seq_id[i][0] = 0
            self._run(self.pointer, batch)
        finally:
            libllama.llama_batch_free(batch)
        return self._view(libllama.llama_get_logits(self.pointer), count)

    def _run(self, pointer: Any, batch: Any) -> None:
        if status := libllama.llama_decode(pointer, batch):
            raise EdgecoreError(f"libllama could not compute: llama_decode answered {status}; {native.last_words()}")

    def last_logits(self) -> NDArray[np.float32]:
        """A view of the last token's logits, (vocab,), valid until the next call."""
        row: NDArray[np.float32] = self._view(libllama.llama_get_logits_ith(self.pointer, -1), 1)[0]
        return row

    def _view(self, pointer: Any, rows: int) -> NDArray[np.float32]:
        """The address hardly ever changes, and making a view costs more than looking one up."""
        key = (ctypes.addressof(pointer.contents), rows)
        if key not in self._views:
            self._views.clear()
            self._views[key] = np.ctypeslib.as_array(pointer, (rows, self.model.vocab_size))
        return self._views[key]

    def synchronize(self) -> None:
        libllama.llama_synchronize(self.pointer)

    def clear(self) -> None:
        """Forgets everything. Cells are only marked free: attention never looks at one that is not marked used."""
        libllama.llama_memory_clear(libllama.llama_get_memory(self.pointer), False)

    def truncate(self, length: int) -> None:
        """Forgets all but the first `length` tokens."""
        libllama.llama_memory_seq_rm(libllama.llama_get_memory(self.pointer), 0, length, -1)

    def close(self) -> None:
        if self._pointer is not None:
            libllama.llama_free(self._pointer)
            self._pointer = None
            self._views.clear()
            if self._pool:
                self._pool.free()


_TOKEN_POINTER = ctypes.POINTER(libllama.llama_token)


def observer(callback: Callable[[Any, bool], bool]) -> Any:
    """`callback(tensor: native.Tensor, ask)` as libllama takes it. Asked before an operator runs whether its result is
    wanted, and called again with it; False then stops the computation. It must not raise."""

    @libllama.ggml_backend_sched_eval_callback  # type: ignore[untyped-decorator]
    def called(tensor: int, ask: bool, _data: Any) -> bool:
        return callback(native.Tensor.from_address(tensor), ask)

    return called
