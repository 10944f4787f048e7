"""Sessions as the caller sees them: the same methods, answered by the worker that holds the real ones."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any

from numpy.typing import NDArray

from edgecore.contract.errors import BadRequest, from_wire
from edgecore.contract.generation import stop_strings
from edgecore.contract.placement import Placement
from edgecore.contract.sampling import Sampling
from edgecore.contract.sessions import Logits, Message, Piece, TensorSession, TensorSpec, TextContext, TextSession
from edgecore.workers.channel import Channel

PIECES_AHEAD = 32
"""Pieces that a worker may generate before its reader took them: no token waits for the caller to wake up."""


class _Remote:
    """One object in a worker. `deadline` is in seconds, for every single answer; None waits for ever."""

    def __init__(self, channel: Channel, number: int, on_close: Callable[[], None] | None) -> None:
        self.channel = channel
        self.number = number
        self.deadline: float | None = None
        self.closed = False
        self._on_close = on_close

    def __call__(self, method: str, *arguments: Any) -> Any:
        if self.closed:
            raise BadRequest("this session is closed")
        return self.channel.call(method, *arguments, target=self.number, deadline=self.deadline)

    def close(self) -> None:
        if self.closed:
            return
        try:
            if self.channel.alive:
                self("close")
        finally:
            self.closed = True
            if self._on_close:
                self._on_close()


class RemoteStream(Iterator[Any]):
    """Pieces of a stream as they come. Nothing is computed before the first is asked for; closing it cancels."""

    def __init__(self, remote: _Remote, method: str, *arguments: Any, ahead: int, **keywords: Any) -> None:
        if remote.closed:
            raise BadRequest("this session is closed")
        self._remote, self._method, self._ahead = remote, method, ahead
        self._credit = 0
        self._seen = 0
        self._held = False
        self._done = False
        channel = remote.channel
        self._number, self._inbox = channel.start(method, arguments, keywords, remote.number)
        while self._message()[0] != "answer":
            pass

    def __next__(self) -> Any:
        if self._done:
            raise StopIteration
        while True:
            if self._held and self._inbox.empty():
                self._grant(1)
            elif not self._held and self._credit <= self._ahead // 2:
                self._grant(self._ahead - self._credit)
            message = self._message()
            kind = message[0]
            if kind == "piece":
                self._credit -= 1
                self._seen += message[1] >= 0
                return Piece(message[1], message[2], message[3])
            if kind == "item":
                self._credit -= 1
                return message[1]
            if kind == "held":
                # Another call used the session: whatever was computed ahead arrived before this message.
                self._held = True
            elif kind == "end":
                self._done = True
                raise StopIteration

    def close(self) -> None:
        """Cancel; the tokens that were computed ahead are taken out of the context again."""
        if not self._done:
            self._done = True
            self._remote.channel.forget(self._number, self._seen)

    def __del__(self) -> None:
        if getattr(self, "_number", None) is not None:
            with suppress(Exception):
                self.close()

    def _grant(self, pieces: int) -> None:
        self._credit += pieces
        self._remote.channel.send("more", self._number, pieces, self._held)

    def _message(self) -> list[Any]:
        remote = self._remote
        until = None if remote.deadline is None else monotonic() + remote.deadline
        try:
            message = remote.channel.next(self._inbox, until, self._method)
        except BaseException:
            self._done = True
            remote.channel.abandon(self._number, self._inbox, self._seen)
            raise
        if message[0] == "error":
            self._done = True
            raise from_wire(message[1])
        return message


class RemoteContext(TextContext):
    """While an answer streams, the worker may be up to `PIECES_AHEAD` tokens further than what was read."""

    def __init__(self, remote: _Remote) -> None:
        self._remote = remote

    @property
    def tokens(self) -> Sequence[int]:
        tokens: list[int] = self._remote("context.tokens")
        return tokens

    @property
    def position(self) -> int:
        return int(self._remote("context.position"))

    def prefill(self, tokens: Sequence[int]) -> Logits:
        logits: Logits = self._remote("context.prefill", list(tokens))
        return logits

    def step(self, token: int) -> Logits:
        logits: Logits = self._remote("context.step", token)
        return logits

    def rewind(self, n: int) -> None:
        self._remote("context.rewind", n)

    def reset(self) -> None:
        self._remote("context.reset")


class RemoteTextSession(TextSession):
    """A `TextSession` whose work is done by a worker. `deadline` holds for every single answer and piece."""

    def __init__(self, channel: Channel, facts: Mapping[str, Any], on_close: Callable[[], None] | None = None) -> None:
        self._remote = _Remote(channel, facts["object"], on_close)
        self._facts = facts
        self._bytes: dict[int, bytes] = {}
        self._context = RemoteContext(self._remote)

    @property
    def deadline(self) -> float | None:
        """Seconds that any one answer may take, then `Timeout`; None waits for ever."""
        return self._remote.deadline

    @deadline.setter
    def deadline(self, seconds: float | None) -> None:
        self._remote.deadline = seconds

    @property
    def context_length(self) -> int:
        return int(self._facts["context_length"])

    @property
    def vocab_size(self) -> int:
        return int(self._facts["vocab_size"])

    @property
    def eos_ids(self) -> frozenset[int]:
        ids: frozenset[int] = self._facts["eos_ids"]
        return ids

    @property
    def placement(self) -> Placement:
        placement: Placement = self._remote("placement")
        return placement

    @property
    def conditions(self) -> Mapping[str, str]:
        conditions: dict[str, str] = self._remote("conditions")
        return conditions

    def tokenize(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        return list(self._remote("tokenize", text, add_special, parse_special))

    def token_bytes(self, token: int) -> bytes:
        if token not in self._bytes:
            self._bytes[token] = self._remote("token_bytes", token)
        return self._bytes[token]

    def detokenize(self, tokens: Sequence[int]) -> str:
        return str(self._remote("detokenize", list(tokens)))

    def apply_chat(self, messages: Sequence[Message]) -> str:
        return str(self._remote("apply_chat", [dict(message) for message in messages]))

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        return list(self._remote("encode_chat", [dict(message) for message in messages]))

    def context(self) -> TextContext:
        return self._context

    def score(self, tokens: Sequence[int]) -> Iterator[Logits]:
        return RemoteStream(self._remote, "score", list(tokens), ahead=1)

    def generate(
        self,
        tokens: Sequence[int],
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        reuse_cache: bool = False,
    ) -> Iterator[Piece]:
        return RemoteStream(
            self._remote, "generate", list(tokens), ahead=PIECES_AHEAD,
            max_tokens=max_tokens, sampling=sampling, stop=stop_strings(stop), reuse_cache=reuse_cache,
        )  # fmt: skip

    def close(self) -> None:
        self._remote.close()


class RemoteTensorSession(TensorSession):
    """A `TensorSession` whose work is done by a worker. `deadline` holds for every single answer."""

    def __init__(self, channel: Channel, facts: Mapping[str, Any], on_close: Callable[[], None] | None = None) -> None:
        self._remote = _Remote(channel, facts["object"], on_close)
        self._facts = facts

    @property
    def deadline(self) -> float | None:
        """Seconds that any one answer may take, then `Timeout`; None waits for ever."""
        return self._remote.deadline

    @deadline.setter
    def deadline(self, seconds: float | None) -> None:
        self._remote.deadline = seconds

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(self._facts["inputs"])

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(self._facts["outputs"])

    @property
    def placement(self) -> Placement:
        placement: Placement = self._remote("placement")
        return placement

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        outputs: dict[str, NDArray[Any]] = self._remote("call", dict(feeds))
        return outputs

    def close(self) -> None:
        self._remote.close()


class RemoteMapping(Mapping[str, Any]):
    """Weights by name, each fetched when it is asked for."""

    def __init__(self, channel: Channel, facts: Mapping[str, Any]) -> None:
        self._remote = _Remote(channel, facts["object"], None)
        self._names = dict.fromkeys(facts["names"])
        weakref.finalize(self, channel.post, "drop", facts["object"])

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        return self._remote("get", name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
