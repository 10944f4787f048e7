"""A text folder as the contract's `TextSession`: network.py computes, folder.py's tokenizer reads and writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint import Tokenizer
from edgecore.contract import (
    Artifact,
    BadRequest,
    DeviceUnavailable,
    Logits,
    Message,
    Placement,
    TextContext,
    TextSession,
    Value,
)
from edgecore.contract.bounds import (
    SCORED_BYTES,
    check_append,
    check_prefill,
    check_rewind,
    check_score,
    chosen_context,
)
from edgecore_onnxruntime import folder, layout, runtime
from edgecore_onnxruntime.chips import DEVICES
from edgecore_onnxruntime.network import CHUNK, Ids, Network


class Computes(Protocol):
    """What a session asks of a network: network.py's of one graph, htp_network.py's of two with fixed shapes."""

    filled: int

    @property
    def vocab_size(self) -> int: ...
    @property
    def sliced(self) -> bool: ...
    @property
    def session(self) -> Any: ...
    def checked(self, tokens: Sequence[int]) -> Ids: ...
    def rows_at_once(self, most_bytes: int) -> int: ...
    def usable(self, count: int, total: int) -> int: ...
    def append(self, ids: Ids, keep: int, chunk: int = ...) -> NDArray[np.float32]: ...
    def run(self, ids: Ids, rows: int, total: int) -> NDArray[np.float32]: ...
    def clear(self) -> None: ...
    def placement(self) -> Placement: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Opened:
    """An artifact's network with what its folder says of it: what a session is made of."""

    network: Computes
    folder: Path
    ends: frozenset[int]
    """Tokens that end a generation, beside the tokenizer's."""
    length: int
    conditions: Mapping[str, str]

    @property
    def chunk(self) -> int:
        """Tokens computed at once in a prefill: fewer where every call computes all logits."""
        return CHUNK if self.network.sliced else self.network.rows_at_once(SCORED_BYTES)


def open_network(
    artifact: Artifact, device: str, context_length: int | None, threads: int | None, options: Mapping[str, Value]
) -> Opened:
    """Raises `ModelNotFound`, `CorruptModel`, `UnsupportedModel`, `BadRequest`, `DoesNotFit`."""
    if device != "cpu":
        hint = "edgecore convert MODEL --to onnx-htp" if device in DEVICES else ""
        raise DeviceUnavailable(f"{artifact.format} does not run on {device}", supported="cpu", hint=hint)
    found = layout.read(artifact)
    where = found.model.parent
    known = [n for n in (artifact.context_length, folder.trained_context(where), found.context) if n]
    length = chosen_context(min(known, default=0), context_length)  # The graph's tables may hold less than was trained.
    network = Network(found, runtime.session_options(threads, options), length, folder.longrope_context(where), device)
    stated = {
        "device": device,
        "threads": str(network.threads),
        "context": str(length),
        "compute": network.compute,
        "kv_cache": network.kv_cache,
        **({"activations": network.activations} if network.activations else {}),
    }
    return Opened(network, where, found.ends, length, stated)


def open_session(
    artifact: Artifact, device: str, context_length: int | None, threads: int | None, options: Mapping[str, Value]
) -> TextSession:
    """See `open_network`."""
    return OnnxruntimeSession(open_network(artifact, device, context_length, threads, options))


class OnnxruntimeContext(TextContext):
    """The network's cache together with the ids that are in it."""

    def __init__(self, opened: Opened) -> None:
        self.network = opened.network
        self._length = opened.length
        self._chunk = opened.chunk
        self._tokens: list[int] = []

    @property
    def tokens(self) -> Sequence[int]:
        return tuple(self._tokens)

    @property
    def position(self) -> int:
        return len(self._tokens)

    def prefill(self, tokens: Sequence[int]) -> Logits:
        check_prefill(tokens)
        return self.append(tokens).copy()

    def step(self, token: int) -> Logits:
        return self.append((token,)).copy()

    def append(self, tokens: Sequence[int]) -> Logits:
        """What `prefill` and `step` do; the logits are a view, valid until the next call."""
        ids = self.network.checked(tokens)
        check_append(len(ids), self.position, self._length)
        # What a rewind left behind is cut off now, and what a failure made useless is computed again.
        keep = self.network.usable(self.position, self.position + len(ids))
        if keep < self.position:
            ids = np.concatenate([np.asarray(self._tokens[keep:], np.int64), ids])
        logits = self.network.append(ids, keep, self._chunk)
        self._tokens.extend(map(int, tokens))
        return logits

    def rewind(self, n: int) -> None:
        check_rewind(n, self.position)
        _ = self.network.session
        del self._tokens[self.position - n :]

    def reset(self) -> None:
        _ = self.network.session
        self._tokens.clear()


class OnnxruntimeSession(TextSession):
    """Opens nothing itself but the tokenizer."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._network = opened.network
        self._tokens: Tokenizer = folder.open_tokenizer(opened.folder, self._network.vocab_size)
        self._context = OnnxruntimeContext(opened)

    @property
    def context_length(self) -> int:
        return self._opened.length

    @property
    def vocab_size(self) -> int:
        return self._network.vocab_size

    @property
    def eos_ids(self) -> frozenset[int]:
        return self._tokens.eos_ids | self._opened.ends

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

    def context(self) -> OnnxruntimeContext:
        _ = self._network.session
        return self._context

    def score(self, tokens: Sequence[int]) -> Iterator[Logits]:
        ids = self._network.checked(tokens)
        check_score(len(ids), self.context_length)
        return self._scored(ids)

    def _scored(self, ids: np.ndarray[Any, Any]) -> Iterator[Logits]:
        context, network = self.context(), self._network
        context.reset()
        network.clear()
        chunk = network.rows_at_once(SCORED_BYTES)
        try:
            for start in range(0, len(ids), chunk):
                if network.filled != start or context.position:
                    raise BadRequest("the session was used while it scored a text", supported="one after the other")
                some = ids[start : start + chunk]
                yield network.run(some, len(some), len(ids)).copy()
        finally:
            context.reset()
            network.clear()

    def close(self) -> None:
        self._network.close()

    @property
    def _tokenizer(self) -> Tokenizer:
        _ = self._network.session
        return self._tokens
