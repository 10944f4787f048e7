"""A GGUF model as the contract's `TextSession`, on libllama's low-level calls.

Logits are copied only for those who ask for them; `generate` reads them where they lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from ctypes import create_string_buffer

import numpy as np

from edgecore.checkpoint.chat import render_guarded
from edgecore.contract import (
    BadRequest,
    CannotDo,
    Logits,
    Message,
    Piece,
    Placement,
    Sampling,
    TextContext,
    TextSession,
)
from edgecore.contract.bounds import (
    SCORED_BYTES,
    check_append,
    check_prefill,
    check_rewind,
    check_score,
    chosen_context,
)
from edgecore.contract.generation import check_room
from edgecore_llamacpp import generating, placement
from edgecore_llamacpp.model import KV_TYPES, UBATCH, Context, Model
from edgecore_llamacpp.native import libllama


class LlamaContext(TextContext):
    """libllama's cache together with the ids that are in it."""

    def __init__(self, low: Context, length: int) -> None:
        self.low = low
        self.length = length
        self._tokens: list[int] = []

    @property
    def tokens(self) -> Sequence[int]:
        return tuple(self._tokens)

    @property
    def position(self) -> int:
        return len(self._tokens)

    def prefill(self, tokens: Sequence[int]) -> Logits:
        check_prefill(tokens)
        self.append(tokens)
        return self.low.last_logits().copy()

    def step(self, token: int) -> Logits:
        self.append((token,))
        return self.low.last_logits().copy()

    def append(self, tokens: Sequence[int]) -> None:
        """What `prefill` and `step` do, logits left where they are."""
        ids = self.low.model.checked(tokens)
        check_append(len(ids), self.position, self.length)
        try:
            self.low.decode(ids)
        except BaseException:
            self.low.truncate(self.position)
            raise
        self._tokens.extend(ids.tolist())

    def rewind(self, n: int) -> None:
        check_rewind(n, self.position)
        del self._tokens[self.position - n :]
        self.low.truncate(self.position)

    def reset(self) -> None:
        self._tokens.clear()
        self.low.clear()


class LlamaSession(TextSession):
    """Opens nothing itself: whoever made `model` has decided device and file."""

    def __init__(
        self, model: Model, *, context_length: int | None, threads: int, kv_cache: str, flash_attention: str
    ) -> None:
        """Raises `DoesNotFit` for a context longer than the model was trained for, or than the memory."""
        self._model = model
        self._length = chosen_context(model.trained_context, context_length)
        self._threads = threads
        self._kv_cache = kv_cache
        low = Context(model, self._length, threads, kv_cache=kv_cache, flash_attention=flash_attention)
        self._context = LlamaContext(low, self._length)
        self._placement: Placement | None = None

    @property
    def context_length(self) -> int:
        return self._length

    @property
    def vocab_size(self) -> int:
        return self._model.vocab_size

    @property
    def eos_ids(self) -> frozenset[int]:
        return self._model.eos_ids

    @property
    def placement(self) -> Placement:
        if self._placement is None:
            self._placement = placement.measured(self._model, self._threads)
        return self._placement

    @property
    def conditions(self) -> Mapping[str, str]:
        return conditions(self._model, self._threads, self._length, self._kv_cache)

    def tokenize(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise BadRequest(f"the text is not valid Unicode: {error}", supported="text that UTF-8 can hold") from None
        self._model.pointer  # noqa: B018  (raises when closed)
        if self._model.composer is not None:
            data = self._model.composer(text, parse_special).encode()
        room = len(data) + 16
        while True:
            buffer = (libllama.llama_token * room)()
            count = libllama.llama_tokenize(
                self._model.vocab, data, len(data), buffer, room, add_special, parse_special
            )
            if count >= 0:
                return list(buffer[:count])
            room = -count

    def token_bytes(self, token: int) -> bytes:
        if not 0 <= token < self.vocab_size:
            raise BadRequest(f"token id {token}", supported=f"ids from 0 to {self.vocab_size - 1}")
        self._model.pointer  # noqa: B018
        room = 64
        while True:
            buffer = create_string_buffer(room)
            count = libllama.llama_token_to_piece(self._model.vocab, token, buffer, room, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def detokenize(self, tokens: Sequence[int]) -> str:
        text = super().detokenize(tokens)
        return text[1:] if self._adds_space and text.startswith(" ") else text

    @property
    def _adds_space(self) -> bool:
        """A SentencePiece vocabulary encodes text as if a space stood before it; the text itself has none."""
        return self.token_bytes(self.tokenize("a", add_special=False)[0]).startswith(b" ")

    def apply_chat(self, messages: Sequence[Message]) -> str:
        template = libllama.llama_model_chat_template(self._model.pointer, None)
        if not template:
            raise CannotDo("the model has no chat template", hint="edgecore run, which takes a plain prompt")
        ids = {
            "bos_token": libllama.llama_vocab_bos(self._model.vocab),
            "eos_token": libllama.llama_vocab_eos(self._model.vocab),
        }
        special = {
            name: libllama.llama_vocab_get_text(self._model.vocab, token).decode("utf-8", "replace")
            for name, token in ids.items()
            if token >= 0
        }
        return render_guarded(
            template.decode("utf-8", "replace"), {**special, "messages": list(messages), "add_generation_prompt": True}
        )

    def context(self) -> LlamaContext:
        self._model.pointer  # noqa: B018
        return self._context

    def score(self, tokens: Sequence[int]) -> Iterator[Logits]:
        ids = self._model.checked(tokens)
        check_score(len(ids), self._length)
        return self._scored(ids)

    def _scored(self, ids: np.ndarray) -> Iterator[Logits]:
        context = self.context()
        chunk = min(UBATCH, max(1, SCORED_BYTES // (4 * self.vocab_size)))
        context.reset()
        try:
            for start in range(0, len(ids), chunk):
                yield context.low.decode_all(ids[start : start + chunk], start).copy()
        finally:
            context.reset()

    def generate(
        self,
        tokens: Sequence[int],
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        reuse_cache: bool = False,
    ) -> Iterator[Piece]:
        check_room(len(tokens), max_tokens, self._length)
        return generating.pieces(self, list(tokens), max_tokens, sampling or Sampling(), stop, reuse_cache)

    def close(self) -> None:
        self._context.low.close()
        self._model.close()


def conditions(model: Model, threads: int, length: int, kv_cache: str) -> dict[str, str]:
    """What must agree before two measurements may be compared. Between operators everything is float32; what a kernel
    rounds inside itself (activations to 8 bits for quantized weights) belongs to the weights' type."""
    return {
        "device": model.device,
        "threads": str(threads),
        "context": str(length),
        "compute": "float32",
        "kv_cache": KV_TYPES[kv_cache][1],
    }
