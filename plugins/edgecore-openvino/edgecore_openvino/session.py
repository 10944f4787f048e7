"""A text folder as the contract's `TextSession`: network.py computes, folder.py's tokenizer reads and writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from edgecore.contract.bounds import (
    SCORED_BYTES,
    check_append,
    check_prefill,
    check_rewind,
    check_score,
    chosen_context,
)
from edgecore_openvino import folder, runtime
from edgecore_openvino.network import CHUNK, Network


@dataclass(frozen=True)
class Opened:
    """An artifact's network with what its folder says of it: what a session is made of."""

    network: Network
    folder: Path
    length: int
    conditions: Mapping[str, str]

    @property
    def chunk(self) -> int:
        """Tokens computed at once in a prefill: fewer where every call computes all logits."""
        return CHUNK if self.network.sliced else self.network.rows_at_once(SCORED_BYTES)


def open_network(
    artifact: Artifact, device: str, context_length: int | None, threads: int | None, options: Mapping[str, Value]
) -> Opened:
    """Raises `ModelNotFound`, `CorruptModel`, `UnsupportedModel`, `BadRequest`, `DoesNotFit`, and of the runtime's
    `DeviceUnavailable` and `PlacementRefused`."""
    xml = folder.model_file(artifact)
    length = chosen_context(artifact.context_length or folder.trained_context(xml.parent), context_length)
    properties = runtime.properties(device, threads, options)
    in_pages = options["attention_backend"] == "paged"
    if in_pages and device == "cpu":
        # Blobs of such graphs are written and never read back: OpenVINO 2026.4 leaves the heads' sizes out of them.
        properties.pop("CACHE_DIR", None)
    elif "CACHE_DIR" in properties:
        # Without weights in it a blob is small; the runtime reads them from where it is told, or misses its own cache.
        properties |= {"CACHE_MODE": "OPTIMIZE_SIZE", "WEIGHTS_PATH": str(xml.with_suffix(".bin"))}
    network = Network(xml, device, properties, length, folder.longrope_context(xml.parent), in_pages=in_pages)
    attention = "paged" if network.in_pages else "stateful"  # not what was asked: some graphs cannot be paged
    stated = {**runtime.stated(network.compiled), "attention": attention, "context": str(length)}
    return Opened(network, xml.parent, length, stated)


def open_session(
    artifact: Artifact, device: str, context_length: int | None, threads: int | None, options: Mapping[str, Value]
) -> TextSession:
    """See `open_network`."""
    return OpenvinoSession(open_network(artifact, device, context_length, threads, options))


class OpenvinoContext(TextContext):
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
        _ = self.network.request
        del self._tokens[self.position - n :]

    def reset(self) -> None:
        _ = self.network.request
        self._tokens.clear()


class OpenvinoSession(TextSession):
    """Opens nothing itself but the tokenizer."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._network = opened.network
        self._tokens: Tokenizer = folder.open_tokenizer(opened.folder, self._network.vocab_size)
        self._context = OpenvinoContext(opened)

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

    def context(self) -> OpenvinoContext:
        _ = self._network.request
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
                yield network.run(some, len(some), len(ids)).astype(np.float32)
        finally:
            context.reset()
            network.clear()

    def close(self) -> None:
        self._network.close()

    @property
    def _tokenizer(self) -> Tokenizer:
        _ = self._network.request
        return self._tokens
