"""A folder with weights becomes a model that computes: by whose code, in what numbers, on how many threads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from edgecore.checkpoint import Decoder, Rope
from edgecore.contract import Artifact, BadRequest, ModelNotFound, Value, usable_threads
from edgecore.contract.bounds import chosen_context
from edgecore_mlx import devices, folder, installation, loading, memory, other
from edgecore_mlx.cache import packed_bytes
from edgecore_mlx.decoder import Model
from edgecore_mlx.network import Computes, Network
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
    if found is None:
        made = _of_mlx_lm(where, device, threads, options)
    else:
        made = _own(found, device, length, threads, options)
    border = made.rope.original_context if made.rope is not None and made.rope.is_long(length) else 0
    stated = {
        "device": device,
        "threads": str(made.threads),
        "context": str(length),
        "compute": _compute(device, made.dtype),
        "kv_cache": made.kv_cache or NAMES[made.dtype],
        **({"blas": installation.blas().name} if device == "cpu" else {}),
    }
    network = Network(made.model, device, border, int(options.get("prefill_step_size", 0)))
    return Opened(network, where, length, stated)


@dataclass(frozen=True)
class _Made:
    """A model in memory, and what there is to say of it."""

    model: Computes
    dtype: mx.Dtype
    threads: int
    rope: Rope | None = None
    kv_cache: str = ""
    """Empty: it is kept as it is computed."""


def _own(found: loading.Found, device: str, length: int, threads: int, options: Mapping[str, Value]) -> _Made:
    """By decoder.py."""
    dtype = mx.float32 if device == "cpu" else found.dtype
    unpacked, kv = bool(options.get("unpacked", False)), _kv(found.decoder, options)
    weights = found.nbytes(dtype, unpacked)
    memory.check_fits(weights, device)
    both = weights + _cache_bytes(found.decoder, length, dtype, kv)
    memory.check_fits(both, device, f"the model with a KV cache of {length} tokens")
    loaded = loading.load(found, _kept(device, dtype, threads, unpacked))
    model = Model(found.decoder, loaded.matrices, loaded.vectors, fused=device != "cpu", kv=kv)
    packed = f"{kv['bits']} bits in groups of {kv['group_size']}" if kv else ""
    return _Made(model, dtype, threads, found.decoder.rope, packed)


def _of_mlx_lm(where: Path, device: str, threads: int, options: Mapping[str, Value]) -> _Made:
    """By mlx_lm's own code, which knows nothing of our threads, and takes no orders of ours."""
    if asked := [name for name in ("kv_bits", "unpacked") if options.get(name)]:
        raise BadRequest(
            f"{asked[0]}: {where} is of an architecture outside the neutral model, which mlx_lm computes",
            supported=f"{asked[0]} with families of the neutral model",
        )
    memory.check_fits(_in_memory(where, device), device)
    model, dtype = other.load(where, mx.float32 if device == "cpu" else None)
    return _Made(model, dtype, installation.blas().limit(threads))


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


def _in_memory(where: Path, device: str) -> int:
    """Bytes of a folder's weights; on `cpu` numbers have four."""
    sizes = {"F16": 2, "BF16": 2} if device == "cpu" else {}
    return sum(stored.nbytes * sizes.get(stored.dtype, 1) for stored in folder.tensors(where).values())
