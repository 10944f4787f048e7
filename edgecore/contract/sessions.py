"""An opened artifact. A minimal text backend is a tokenizer and a context; everything else is built on these two.

`TextSession` and `TensorSession` are what `edgecore_run` answers and what `edgecore.open` gives to users. The caller's
proxy has the same methods, so code does not know whether it talks to a worker.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgecore.contract.errors import CannotDo
from edgecore.contract.placement import Placement
from edgecore.contract.sampling import Sampling

Logits = NDArray[np.float32]
Message = Mapping[str, str]
"""`{"role": "user", "content": "..."}`."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One step of a generation."""

    token: int
    """The token id; -1 on the last piece when it carries only withheld text or the finish."""
    text: str
    """Complete characters only; empty while a character or a possible stop string is incomplete."""
    finish: str = ""
    """Empty until the last piece, then `eos`, `stop` or `length`."""


class TextContext(ABC):
    """One sequence with its KV cache. Positions count tokens seen."""

    @property
    @abstractmethod
    def tokens(self) -> Sequence[int]:
        """Ids in the cache, in order."""

    @property
    def position(self) -> int:
        """How many tokens the cache holds."""
        return len(self.tokens)

    @abstractmethod
    def prefill(self, tokens: Sequence[int]) -> Logits:
        """Append tokens (at least one), answer the last position's logits, float32 (vocab,).

        Raises `DoesNotFit` when they exceed the context, and then the cache is as before; `BadRequest` for ids outside
        the vocabulary. The answer is the caller's to keep.
        """

    @abstractmethod
    def step(self, token: int) -> Logits:
        """Append one token; answers and raises as `prefill`."""

    @abstractmethod
    def rewind(self, n: int) -> None:
        """Forget the last n tokens. Raises `BadRequest` when there are fewer."""

    @abstractmethod
    def reset(self) -> None:
        """Forget everything; what follows does not depend on what was."""


class TextSession(ABC):
    """A language model, opened. Close it, or use it in a `with` block."""

    @property
    @abstractmethod
    def context_length(self) -> int:
        """Tokens that fit, prompt and answer together."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Length of a row of logits."""

    @property
    @abstractmethod
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end a generation: end of sequence, end of turn."""

    @property
    @abstractmethod
    def placement(self) -> Placement:
        """Where the work runs, and who says so."""

    @property
    def conditions(self) -> Mapping[str, str]:
        """What must agree before two measurements may be compared: `device`, `threads`, `context`, `compute` and
        `kv_cache`."""
        return {}

    @abstractmethod
    def tokenize(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids. `add_special` adds what the model wants at the start (BOS); special tokens that stand in `text`
        are plain text unless `parse_special`."""

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes that one token adds, perhaps part of a character; empty for control tokens."""

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Text of the tokens; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", "replace")

    @abstractmethod
    def apply_chat(self, messages: Sequence[Message]) -> str:
        """The prompt that the model's own chat template makes, to look at; `encode_chat` gives its ids.

        Raises `CannotDo` where the model has no template.
        """

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the prompt that `apply_chat` makes, in which the template's own special tokens are special and
        those that stand in a message are text.

        Raises as `apply_chat`; `BadRequest` where a message spells special tokens and the template takes it apart.
        """
        from edgecore.contract.chat_marks import encode_chat

        return encode_chat(self, messages)

    @abstractmethod
    def context(self) -> TextContext:
        """The session's context, empty at first. Always the same object: batches are not in version 1."""

    def score(self, tokens: Sequence[int]) -> Iterator[Logits]:
        """Logits of every position, float32 (chunk, vocab), chunk by chunk in order; memory bounded by the chunk.

        The context is reset before and after. Raises `CannotDo` where the backend has no capability `logits`.
        """
        raise CannotDo("this backend gives no logits", hint="edgecore backends")

    def generate(
        self,
        tokens: Sequence[int],
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        reuse_cache: bool = False,
    ) -> Iterator[Piece]:
        """Continue `tokens`, piece by piece; closing the iterator cancels. The context holds prompt and answer
        afterwards.

        A prompt that does not fit with `max_tokens` raises `DoesNotFit` before any work; without `max_tokens` the same
        is raised when the context is full. `stop` strings are not part of the answer. `sampling` None means llama.cpp's
        defaults. With `reuse_cache` the beginning that `tokens` shares with the context (a chat's earlier turns) is not
        computed again; without it the answer depends on nothing that ran before.
        """
        from edgecore.contract.generation import generate

        return generate(
            self,
            tokens,
            max_tokens=max_tokens,
            sampling=sampling or Sampling(),
            stop=stop,
            reuse_cache=reuse_cache,
        )

    @abstractmethod
    def close(self) -> None:
        """Give back memory. Calls after it raise `BadRequest`; closing twice is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a tensor model."""

    name: str
    dtype: str
    """numpy's name; `bfloat16`, `float8_e4m3fn`, `int4` and the like by ml_dtypes' name."""
    shape: tuple[int | str, ...]
    """An int is fixed, a string names a symbolic dimension."""


class TensorSession(ABC):
    """A tensor model, opened: named arrays in, named arrays out."""

    @property
    @abstractmethod
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    @abstractmethod
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    @abstractmethod
    def placement(self) -> Placement:
        """Where the work runs, and who says so."""

    @abstractmethod
    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All outputs by name. Missing, surplus, wrongly typed or shaped feeds raise `BadRequest` naming the input."""

    @abstractmethod
    def close(self) -> None:
        """Give back memory; closing twice is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
