"""A text folder as the contract's `TextSession`: network.py computes, folder.py's tokenizer reads and writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from edgecore.checkpoint import Tokenizer
from edgecore.contract import (
    Artifact,
    BadRequest,
    Logits,
    Message,
    Placement,
    TextContext,
    TextSession,
    Value,
)
from edgecore.contract.bounds import SCORED_BYTES, check_append, check_prefill, check_rewind, check_score
from edgecore_mlx import folder
from edgecore_mlx.network import Ids
from edgecore_mlx.opening import Opened, open_model


def open_session(
    artifact: Artifact, device: str, context_length: int | None, threads: int | None, options: Mapping[str, Value]
) -> TextSession:
    """See `opening.open_model`."""
    return MlxSession(open_model(artifact, device, context_length, threads, options))


class MlxContext(TextContext):
    """The network's cache together with the ids that are in it."""

    def __init__(self, opened: Opened) -> None:
        self.network = opened.network
        self._length = opened.length
        self._tokens: list[int] = []

    @property
    def tokens(self) -> Sequence[int]:
        return tuple(self._tokens)

    @property
    def position(self) -> int:
        return len(self._tokens)

    def prefill(self, tokens: Sequence[int]) -> Logits:
        check_prefill(tokens)
        ids = self.network.checked(tokens)
        check_append(len(ids), self.position, self._length)
        # What a rewind left behind is cut off now, and what a failure made useless is computed again.
        keep = self.network.usable(self.position, self.position + len(ids))
        if keep < self.position:
            ids = np.concatenate([np.asarray(self._tokens[keep:], np.int64), ids])
        logits = self.network.append(ids, keep)
        self._tokens.extend(map(int, tokens))
        return logits

    def step(self, token: int) -> Logits:
        return self.prefill((token,))

    def rewind(self, n: int) -> None:
        check_rewind(n, self.position)
        _ = self.network.model
        del self._tokens[self.position - n :]

    def reset(self) -> None:
        _ = self.network.model
        self._tokens.clear()


class MlxSession(TextSession):
    """Opens nothing itself but the tokenizer."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._network = opened.network
        self._tokens: Tokenizer = folder.open_tokenizer(opened.folder, self._network.vocab_size)
        self._context = MlxContext(opened)

    @property
    def context_length(self) -> int:
        return self._opened.length

    @property
    def vocab_size(self) -> int:
        return self._network.vocab_size

    @property
    def eos_ids(self) -> frozenset[int]:
        return self._tokens.eos_ids

    @property
    def placement(self) -> Placement:
        return self._network.placement()

    @property
    def conditions(self) -> Mapping[str, str]:
        return self._opened.conditions

    def tokenize(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        return self._tokenizer.encode(text, add_special=add_special, parse_special=parse_special)

    def token_bytes(self, token: int) -> bytes:
        return self._tokenizer.token_bytes(token)

    def detokenize(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens)

    def apply_chat(self, messages: Sequence[Message]) -> str:
        return self._tokenizer.apply_chat(messages)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        return self._tokenizer.encode_chat(messages)

    def context(self) -> MlxContext:
        _ = self._network.model
        return self._context

    def score(self, tokens: Sequence[int]) -> Iterator[Logits]:
        ids = self._network.checked(tokens)
        check_score(len(ids), self.context_length)
        return self._scored(ids)

    def _scored(self, ids: Ids) -> Iterator[Logits]:
        context, network = self.context(), self._network
        context.reset()
        network.clear()
        chunk = network.rows_at_once(SCORED_BYTES)
        try:
            for start in range(0, len(ids), chunk):
                if network.filled != start or context.position:
                    raise BadRequest("the session was used while it scored a text", supported="one after the other")
                yield network.run(ids[start : start + chunk], len(ids))
        finally:
            context.reset()
            network.clear()

    def close(self) -> None:
        self._network.close()

    @property
    def _tokenizer(self) -> Tokenizer:
        _ = self._network.model
        return self._tokens
