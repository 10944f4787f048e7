"""A text folder as the contract's `TextSession`: network.py computes, folder.py's tokenizer reads and writes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from edgecore.checkpoint import Decoder, Tokenizer
from edgecore.contract import (
    Artifact,
    BadRequest,
    Logits,
    Message,
    ModelNotFound,
    Placement,
    TextContext,
    TextSession,
    Value,
    usable_threads,
)
from edgecore.contract.bounds import (
    SCORED_BYTES,
    check_append,
    check_prefill,
    check_rewind,
    check_score,
    chosen_context,
)
from edgecore_mlx import devices, folder, installation, loading, memory, other
from edgecore_mlx.cache import packed_bytes
from edgecore_mlx.decoder import Model
from edgecore_mlx.network import Computes, Ids, Network
from edgecore_mlx.recipe import AFFINE, GROUPS

MOST_THREADS = 512
NAMES = {mx.float32: "f32", mx.float16: "f16", mx.bfloat16: "bf16"}


@dataclass(frozen=True)
class Opened:
    """An artifact's model with what its folder says of it: what a session is made of."""

    network: Network
    folder: Path
    length: int
    conditions: Mapping[str, str]

    @property
    def model(self) -> Computes:
        """Callable: (tokens, cache, last) -> logits. Raises `BadRequest` once closed."""
        return self.network.model


def open_model(
    artifact: Artifact, device: str, context_length: int | None, threads: int | None, options: Mapping[str, Value]
) -> Opened:
    """Raises `ModelNotFound`, `CorruptModel`, `UnsupportedModel`, `BadRequest`, `DeviceUnavailable`, `DoesNotFit`."""
    where = artifact.model
    if not where.is_dir():
        raise ModelNotFound(f"{where}: no such folder", supported="a folder that mlx_lm wrote, or edgecore")
    devices.use(device)
    memory.limit(options)
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise BadRequest(f"{threads} threads", supported=f"1 to {MOST_THREADS} threads")
    threads = (threads or usable_threads()) if device == "cpu" else 1
    found = loading.find(where)
    known = [n for n in (artifact.context_length, folder.trained_context(where)) if n]
    length = chosen_context(min(known, default=0), context_length)
    border, kv, dtype = 0, {}, mx.float32 if device == "cpu" else None
    model: Computes
    if found is None:
        _only_neutral(where, options)
        memory.check_fits(_in_memory(where, device), device)
        model, dtype = other.load(where, dtype)
        threads = installation.blas().limit(threads)  # mlx_lm's code knows nothing of ours
    else:
        dtype, rope = dtype or found.dtype, found.decoder.rope
        unpacked = bool(options.get("unpacked", False))
        weights = found.nbytes(dtype, unpacked)
        memory.check_fits(weights, device)
        kv = _kv(found.decoder, options)
        both = weights + _cache_bytes(found.decoder, length, dtype, kv)
        memory.check_fits(both, device, f"the model with a KV cache of {length} tokens")
        loaded = loading.load(found, _kept(device, dtype, threads, unpacked))
        model = Model(found.decoder, loaded.matrices, loaded.vectors, fused=device != "cpu", kv=kv)
        border = rope.original_context if rope.is_long(length) else 0
    stated = {
        "device": device,
        "threads": str(threads),
        "context": str(length),
        "compute": _compute(device, dtype),
        "kv_cache": f"{kv['bits']} bits in groups of {kv['group_size']}" if kv else NAMES[dtype],
    }
    network = Network(model, device, border, int(options.get("prefill_step_size", 0)))
    return Opened(network, where, length, stated)


def _compute(device: str, dtype: mx.Dtype) -> str:
    """What products are computed in."""
    return "tf32" if device == "gpu" and dtype == mx.float32 and os.environ.get(devices.TF32) != "0" else NAMES[dtype]


def _kept(device: str, dtype: mx.Dtype, threads: int, unpacked: bool) -> loading.Kept:
    """On `cpu` what one stream would compute alone is split: everything where MLX's BLAS has one thread."""
    if device != "cpu":
        return loading.Kept(dtype, unpacked=unpacked)
    streams = tuple(mx.new_thread_local_stream(mx.cpu) for _ in range(threads - 1))
    has_threads = installation.blas().limit(threads) == threads
    return loading.Kept(dtype, True, unpacked, () if has_threads else streams, streams)


def _kv(decoder: Decoder, options: Mapping[str, Value]) -> dict[str, int]:
    """How the KV cache is packed; empty: not. A group is the largest, up to the one asked for, that divides a head."""
    if not (bits := int(options.get("kv_bits", 0))):
        return {}
    most = int(options.get("kv_group_size", 64))
    for size in reversed(GROUPS[AFFINE]):
        if size <= most and decoder.head_dim % size == 0:
            return {"bits": bits, "group_size": size}
    raise BadRequest(
        f"kv_bits={bits}: heads of {decoder.head_dim} elements cannot be packed in groups",
        supported="heads of multiples of 32",
        hint="the same command without kv_bits",
    )


def _cache_bytes(decoder: Decoder, length: int, dtype: mx.Dtype, kv: Mapping[str, int]) -> int:
    """It grows as it is used: what can never fit is refused at the beginning."""
    elements = 2 * decoder.layers * decoder.kv_size * length
    return packed_bytes(elements, kv) if kv else elements * dtype.size


def _only_neutral(where: Path, options: Mapping[str, Value]) -> None:
    """Raises `BadRequest` for options that mlx_lm's own code cannot follow."""
    if asked := [name for name in ("kv_bits", "unpacked") if options.get(name)]:
        raise BadRequest(
            f"{asked[0]}: {where} is of an architecture outside the neutral model, which mlx_lm computes",
            supported=f"{asked[0]} with families of the neutral model",
        )


def _in_memory(where: Path, device: str) -> int:
    """Bytes of a folder's weights; on `cpu` numbers have four."""
    sizes = {"F16": 2, "BF16": 2} if device == "cpu" else {}
    return sum(stored.nbytes * sizes.get(stored.dtype, 1) for stored in folder.tensors(where).values())


def open_session(
    artifact: Artifact, device: str, context_length: int | None, threads: int | None, options: Mapping[str, Value]
) -> TextSession:
    """See `open_model`."""
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
