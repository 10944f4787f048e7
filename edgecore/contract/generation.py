"""The generation loop that every text backend gets for free, and that conformance holds native loops to.

Streaming has two traps, and both are handled here once: a token may end inside a UTF-8 character, and a stop string may
span tokens. Text is withheld until neither can be undone.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence

from edgecore.contract.errors import BadRequest, DoesNotFit
from edgecore.contract.sampling import Sampler, Sampling
from edgecore.contract.sessions import Piece, TextSession


class TextStream:
    """Turns token bytes into text that never ends inside a character and never shows a stop string or its start."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop_strings(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def push(self, data: bytes, final: bool = False) -> str:
        """Text that may be shown now. Sets `stopped` when a stop string is complete: what follows is dropped."""
        if self.stopped:
            return ""
        text = self._held + self._decoder.decode(data, final)
        found = [at for at in (text.find(s) for s in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        hold = 0 if final else self._possible_start(text)
        shown, self._held = text[: len(text) - hold], text[len(text) - hold :]
        return shown

    def _possible_start(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = max(map(len, self._stop), default=1) - 1
        for n in range(min(longest, len(text)), 0, -1):
            if any(s.startswith(text[-n:]) for s in self._stop):
                return n
        return 0


def stop_strings(stop: Sequence[str]) -> tuple[str, ...]:
    """The stop strings without empty ones; a single string is one, not its characters."""
    return tuple(s for s in ([stop] if isinstance(stop, str) else stop) if s)


def check_room(prompt: int, max_tokens: int | None, context_length: int) -> None:
    """Raises `DoesNotFit` when prompt and answer exceed the context, `BadRequest` for an empty prompt."""
    if prompt == 0:
        raise BadRequest("the prompt has no tokens", supported="a prompt of at least one token")
    need = prompt + (max_tokens if max_tokens is not None else 1)
    if need > context_length:
        raise DoesNotFit(
            f"the prompt has {prompt} tokens and the answer up to {need - prompt}; the context holds {context_length}",
            supported=f"prompt and answer together up to {context_length} tokens",
            hint=f"-c {need} for a longer context, if the model was trained for it, or a smaller -n",
        )


def shared_prefix(cached: Sequence[int], tokens: Sequence[int]) -> int:
    """How many leading tokens need no computing. The last token always does, because its logits are wanted."""
    common = 0
    for a, b in zip(cached, tokens[:-1], strict=False):
        if a != b:
            break
        common += 1
    return common


def generate(
    session: TextSession,
    tokens: Sequence[int],
    *,
    max_tokens: int | None,
    sampling: Sampling,
    stop: Sequence[str],
    reuse_cache: bool = False,
) -> Iterator[Piece]:
    """See `TextSession.generate`. The room is checked at the call, not at the first piece."""
    check_room(len(tokens), max_tokens, session.context_length)
    return _pieces(session, list(tokens), max_tokens, Sampler(sampling), TextStream(stop), reuse_cache)


def _pieces(
    session: TextSession,
    tokens: list[int],
    max_tokens: int | None,
    sample: Sampler,
    stream: TextStream,
    reuse_cache: bool,
) -> Iterator[Piece]:
    context = session.context()
    common = shared_prefix(context.tokens, tokens) if reuse_cache else 0
    if common:
        context.rewind(context.position - common)
    else:
        context.reset()
    logits = context.prefill(tokens[common:])
    made = 0
    while max_tokens is None or made < max_tokens:
        token = sample(logits)
        if token in session.eos_ids:
            yield Piece(token, stream.push(b"", final=True), "eos")
            return
        made += 1
        text = stream.push(session.token_bytes(token))
        if stream.stopped:
            yield Piece(token, text, "stop")
            return
        yield Piece(token, text)
        if made != max_tokens:
            logits = context.step(token)
    yield Piece(-1, stream.push(b"", final=True), "length")
