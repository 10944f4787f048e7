"""A text folder for an NPU as the contract's `TextSession`: htp_network.py computes."""

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
    DeviceUnavailable,
    DoesNotFit,
    Logits,
    Message,
    Placement,
    TextContext,
    TextSession,
    Value,
)
from edgecore.contract.bounds import check_prefill, check_rewind
from edgecore_onnxruntime import folder, htp_folder, qnn
from edgecore_onnxruntime.htp_network import Network


@dataclass(frozen=True)
class Opened:
    """An artifact's network with what its folder says of it: what a session is made of."""

    network: Network
    folder: Path
    length: int
    conditions: Mapping[str, str]


def open_session(
    artifact: Artifact, device: str, context_length: int | None, threads: int | None, options: Mapping[str, Value]
) -> TextSession:
    """Raises `DeviceUnavailable`, `PlacementRefused`, `ModelNotFound`, `CorruptModel`, `BadRequest`, `DoesNotFit`."""
    if device not in qnn.DEVICES:
        raise DeviceUnavailable(
            f"{device} does not run {artifact.format}, whose shapes are fixed for an NPU",
            supported=", ".join(qnn.DEVICES),
            hint="edgecore convert MODEL --to onnxruntime --format onnx-genai  # for a CPU",
        )
    where = _folder(artifact)
    description = htp_folder.read(where)
    length = chosen_context(description.context, context_length)
    network = Network(where, lambda file: qnn.open_on_npu(file, threads, device, options), device)
    conditions = {
        "device": device,
        "threads": str(threads or ""),
        "context": str(description.context),
        "compute": artifact.precision,
        "kv_cache": str(network.kv_type),
    }
    return HtpSession(Opened(network, where, length, conditions))


def chosen_context(made_for: int, asked: int | None) -> int:
    """Tokens. Raises `DoesNotFit` for more than the graphs were made for."""
    if asked is not None and asked > made_for:
        raise DoesNotFit(
            f"a context of {asked} tokens; the graphs were made for {made_for}",
            supported=f"up to {made_for} tokens",
            hint=f"edgecore convert MODEL --to onnxruntime --max-context {asked}",
        )
    return asked or made_for


class HtpContext(TextContext):
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
        total = self.position + len(ids)
        if total > self._length:
            raise DoesNotFit(
                f"{len(ids)} tokens after {self.position}; the context holds {self._length}",
                supported=f"up to {self._length - self.position} more",
                hint=f"edgecore convert MODEL --to onnxruntime --max-context {total}",
            )
        # What a rewind left behind is not counted any more, and what longrope turns otherwise is computed again.
        keep = self.network.usable(self.position, total)
        if keep < self.position:
            ids = np.concatenate([np.asarray(self._tokens[keep:], np.int64), ids])
        logits = self.network.append(ids, keep)
        self._tokens.extend(map(int, tokens))
        return logits

    def step(self, token: int) -> Logits:
        return self.prefill((token,))

    def rewind(self, n: int) -> None:
        check_rewind(n, self.position)
        self.network.check_open()
        del self._tokens[self.position - n :]

    def reset(self) -> None:
        self.network.check_open()
        self._tokens.clear()


class HtpSession(TextSession):
    """Opens nothing itself but the tokenizer."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._network = opened.network
        self._tokens: Tokenizer = folder.open_tokenizer(opened.folder, self._network.vocab_size)
        self._context = HtpContext(opened)

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

    def context(self) -> HtpContext:
        self._network.check_open()
        return self._context

    def score(self, tokens: Sequence[int]) -> Iterator[Logits]:
        ids = self._network.checked(tokens)
        if len(ids) > self.context_length:
            raise DoesNotFit(f"a text of {len(ids)} tokens", supported=f"the context's {self.context_length}")
        return self._scored(ids)

    def _scored(self, ids: np.ndarray[Any, Any]) -> Iterator[Logits]:
        context, network = self.context(), self._network
        context.reset()
        network.truncate(0)
        chunk = network.description.chunk
        try:
            for start in range(0, len(ids), chunk):
                if network.filled != start or context.position:
                    raise BadRequest("the session was used while it scored a text", supported="one after the other")
                yield network.run(ids[start : start + chunk], len(ids)).astype(np.float32)
        finally:
            context.reset()
            network.truncate(0)

    def close(self) -> None:
        self._network.close()

    @property
    def _tokenizer(self) -> Tokenizer:
        self._network.check_open()
        return self._tokens


def _folder(artifact: Artifact) -> Path:
    file = artifact.model
    return file if file.is_dir() else file.parent
