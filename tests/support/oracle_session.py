"""The oracle as a session, honest or broken on purpose: a backend whose faults are known.

`spoil` gets every row of logits and may change it; `weights` replaces some of the source's; `silent` gives no logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from edgecore.checkpoint.opening import Checkpoint
from edgecore.checkpoint.oracle import Oracle
from edgecore.contract.errors import CannotDo
from edgecore.contract.placement import Placement, PlacementSource
from edgecore.contract.sessions import Logits, Message, TextContext, TextSession


class OracleSession(TextSession):
    def __init__(
        self,
        model: Checkpoint,
        *,
        weights: Mapping[str, object] | None = None,
        spoil: Callable[[Logits], Logits] = lambda rows: rows,
        silent: bool = False,
        compute: str = "f32",
        context_length: int | None = None,
    ) -> None:
        self._model, self._spoil, self._silent, self._compute = model, spoil, silent, compute
        tensors = {**model.tensors, **(weights or {})}
        self._oracle = Oracle(model.decoder, tensors, resident=True)  # type: ignore[arg-type]
        self._length = context_length or model.decoder.context_length
        self._context = self._oracle.context(self._length)

    context_length = property(lambda self: self._length)
    vocab_size = property(lambda self: self._model.decoder.vocab_size)
    eos_ids = property(lambda self: self._model.tokenizer.eos_ids)
    placement = property(lambda self: Placement(PlacementSource.OUTSIDE, {"cpu": 1.0}))
    conditions = property(lambda self: {"device": "cpu", "compute": self._compute})

    def tokenize(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        return self._model.tokenizer.encode(text, add_special=add_special, parse_special=parse_special)

    def token_bytes(self, token: int) -> bytes:
        return self._model.tokenizer.token_bytes(token)

    def apply_chat(self, messages: Sequence[Message]) -> str:
        return self._model.tokenizer.apply_chat(messages)

    def context(self) -> TextContext:
        return self._context

    def score(self, tokens: Sequence[int]) -> Iterator[Logits]:
        if self._silent:
            raise CannotDo("this backend gives no logits")
        self._context.reset()
        for chunk in self._oracle.score(tokens, chunk=50):
            yield self._spoil(np.array(chunk))

    def close(self) -> None:
        pass
