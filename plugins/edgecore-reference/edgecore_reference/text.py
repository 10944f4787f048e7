"""Language models: the oracle behind the contract's `TextSession`.

A minimal text backend is a tokenizer and a context. Both come from the neutral model here, so this file shows what is
left for a backend to do: decide the context length, say where it runs, and give everything back at `close`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from edgecore.checkpoint import Checkpoint, Oracle, OracleContext
from edgecore.contract import (
    BadRequest,
    DoesNotFit,
    Logits,
    Message,
    Placement,
    PlacementSource,
    TextContext,
    TextSession,
)

PLACEMENT = Placement(
    PlacementSource.RUNTIME_ASSIGNMENT, operators={"cpu": 1.0}, detail="numpy computes on the CPU only"
)


class OracleSession(TextSession):
    """A `Checkpoint`, opened for text. Closing the session closes the checkpoint."""

    def __init__(
        self, model: Checkpoint, *, context_length: int | None, threads: int | None, resident: bool, chunk: int
    ) -> None:
        trained = model.decoder.context_length
        if context_length is not None and context_length > trained:
            model.close()
            raise DoesNotFit(
                f"a context of {context_length} tokens; the model was trained for {trained}",
                supported=f"up to {trained} tokens",
                hint=f"-c {trained}",
            )
        self._model: Checkpoint | None = model
        self._length = trained if context_length is None else context_length
        self._chunk = chunk
        self._oracle = Oracle(model.decoder, model.tensors, resident=resident)
        self._context = self._oracle.context(self._length)
        self._threads = limit_threads(threads)

    @property
    def context_length(self) -> int:
        return self._length

    @property
    def vocab_size(self) -> int:
        return self._open.decoder.vocab_size

    @property
    def eos_ids(self) -> frozenset[int]:
        return self._open.tokenizer.eos_ids

    @property
    def placement(self) -> Placement:
        return PLACEMENT

    @property
    def conditions(self) -> Mapping[str, str]:
        return {
            "device": "cpu",
            "threads": self._threads,
            "context": str(self._length),
            "compute": "float32",
            "kv_cache": "float32",
        }

    def tokenize(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        return self._open.tokenizer.encode(text, add_special=add_special, parse_special=parse_special)

    def token_bytes(self, token: int) -> bytes:
        return self._open.tokenizer.token_bytes(token)

    def detokenize(self, tokens: Sequence[int]) -> str:
        return self._open.tokenizer.decode(tokens)

    def apply_chat(self, messages: Sequence[Message]) -> str:
        return self._open.tokenizer.apply_chat(messages)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        return self._open.tokenizer.encode_chat(messages)

    def context(self) -> TextContext:
        _ = self._open
        return self._context

    def score(self, tokens: Sequence[int]) -> Iterator[Logits]:
        _ = self._open
        if len(tokens) > self._length:
            raise DoesNotFit(
                f"a text of {len(tokens)} tokens", supported=f"the context's {self._length}", hint=f"-c {len(tokens)}"
            )
        self._context.reset()
        return self._oracle.score(tokens, self._chunk)

    def close(self) -> None:
        if self._model is not None:
            self._model.close()
            self._model = None
            self._context = OracleContext(self._oracle, 0)

    @property
    def _open(self) -> Checkpoint:
        if self._model is None:
            raise BadRequest("the session is closed")
        return self._model


class Weights(Mapping[str, NDArray[np.float32]]):
    """The weights by canonical name, each dequantized when it is asked for."""

    def __init__(self, model: Checkpoint) -> None:
        self._model = model

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self._model.tensors[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._model.tensors)

    def __len__(self) -> int:
        return len(self._model.tensors)


def limit_threads(threads: int | None) -> str:
    """Tell BLAS; answer what it does then: a number, or `unknown` where the library does not listen (Accelerate)."""
    blas = ThreadpoolController().select(user_api="blas")
    if threads is not None:
        blas.limit(limits=threads)
    return str(max((library["num_threads"] for library in blas.info()), default="unknown"))
