"""Which tensors a GGUF file has, in llama.cpp's order, and their bytes, piece by piece: memory does not grow with the
model. What is stored as it will be written is copied; everything else goes through float32."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint import Checkpoint, Decoder, RopeScaling, Tensor, half_rotation_order
from edgecore.checkpoint.families import family_of
from edgecore.checkpoint.mapping import read_text
from edgecore.checkpoint.safetensors_file import INDEX, LONGEST_INDEX, parse_index
from edgecore.contract import Fallback, UnsupportedPrecision
from edgecore_llamacpp.header import Entry
from edgecore_llamacpp.stored import Bytes, Floats, Stored

PIECE = 1 << 20
"""Elements converted at once."""
LAYER = "model.layers."


@dataclass(frozen=True)
class Part:
    """One tensor to write."""

    name: str
    """GGUF's."""
    shape: tuple[int, ...]
    type: Stored
    sources: tuple[Tensor, ...] = ()
    """Canonical tensors that follow each other: several where the file keeps them as one."""
    values: Floats | None = None
    """The numbers themselves, where no tensor has them."""
    order: NDArray[np.intp] | None = None
    """Of q and k in interleaved rotary order: which row of a head comes at each of its places; None: as they are."""
    fallback: Fallback | None = None

    @cached_property
    def entry(self) -> Entry:
        return Entry(self.name, self.shape, self.type.number, self.type.nbytes(math.prod(self.shape)))

    def pieces(self) -> Iterator[Bytes]:
        """The bytes in the file's order. Raises `CorruptModel` for weights that are not finite, `UnsupportedPrecision`
        for those that float16 cannot hold."""
        if self.values is not None:
            yield self.type.pack(self.values)
        for tensor in self.sources:
            yield from self._copied(tensor) if self._as_stored(tensor) else self._converted(tensor)

    def _as_stored(self, tensor: Tensor) -> bool:
        return tensor.storage == self.type.name and tensor.derive is None and tensor.order is None

    def _copied(self, tensor: Tensor) -> Iterator[Bytes]:
        rows = tensor.shape[0]
        width = tensor.nbytes // rows
        for start, stop in self._steps(tensor):
            some = tensor.data[start * width : stop * width]
            stored = replace(tensor, shape=(stop - start, *tensor.shape[1:]), data=some).raw().reshape(-1)
            if self.order is not None:
                stored = stored.reshape(-1, len(self.order), width)[:, self.order].reshape(-1)
            yield stored

    def _converted(self, tensor: Tensor) -> Iterator[Bytes]:
        for start, stop in self._steps(tensor):
            values = tensor.rows(start, stop)
            if self.order is not None:
                heads = values.reshape(-1, len(self.order), *tensor.shape[1:])
                values = heads[:, self.order].reshape(values.shape)
            stored = self.type.pack(values)
            if self.type is Stored.F16 and not np.isfinite(stored.view(np.float16)).all():
                raise UnsupportedPrecision(
                    f"tensor {self.name!r} holds {np.abs(values).max():g}, which float16 cannot", supported="f32, bf16"
                )
            yield stored

    def _steps(self, tensor: Tensor) -> Iterator[tuple[int, int]]:
        """Rows of one piece; whole heads where their rows change places."""
        rows = tensor.shape[0]
        step = max(1, PIECE // math.prod(tensor.shape[1:]))
        if self.order is not None:
            step = max(1, step // len(self.order)) * len(self.order)
        for start in range(0, rows, step):
            yield start, min(start + step, rows)


def plan(model: Checkpoint, wanted: Stored) -> list[Part]:
    """Every tensor of the file, in the order of llama.cpp's converter: what it computes itself, then shard by shard, by
    name. For another source: in the order of the computation."""
    parts = [(source, _part(model.decoder, *found, wanted)) for source, found in _gathered(model).items()]
    if model.source_format != "gguf":
        shards = _shards(model)
        parts.sort(key=lambda named: (shards.get(named[0], ""), named[0]))
    return [*_rope_parts(model.decoder), *(part for _, part in parts)]


def _gathered(model: Checkpoint) -> dict[str, tuple[str, tuple[Tensor, ...]]]:
    """By the name in a Hugging Face folder: the GGUF name, and the tensors that make it up."""
    family = family_of(model.decoder)
    names = {canonical: name for name, canonical in family.gguf_names.items()}
    whole = {part: fused for fused, parts in family.fused.items() for part in parts}
    gathered: dict[str, tuple[str, tuple[Tensor, ...]]] = {}
    for canonical, tensor in model.tensors.items():
        stem, _, kind = canonical.rpartition(".")
        layer, _, inner = stem.removeprefix(LAYER).partition(".") if stem.startswith(LAYER) else ("", "", stem)
        at = f"{LAYER}{layer}." if layer else ""
        source = f"{at}{whole.get(inner, inner)}"
        name = names[source.replace(f"{LAYER}{layer}.", f"{LAYER}{{}}.", 1) if layer else source].format(layer)
        before = gathered.get(f"{source}.{kind}", ("", ()))[1]
        gathered[f"{source}.{kind}"] = (f"{name}.{kind}", (*before, tensor))
    return gathered


def _part(decoder: Decoder, name: str, sources: tuple[Tensor, ...], wanted: Stored) -> Part:
    shape = (sum(t.shape[0] for t in sources), *sources[0].shape[1:])
    order = None
    if family_of(decoder).interleaved and (".attn_q." in name or ".attn_k." in name):
        order = np.argsort(half_rotation_order(1, decoder.head_dim)).astype(np.intp)
    if len(shape) == 1:
        return Part(name, shape, Stored.F32, sources, order=order)
    if shape[-1] % wanted.block == 0:
        return Part(name, shape, wanted, sources, order=order)
    # llama.cpp's converter: what does not divide into blocks becomes F16.
    why = f"rows of {shape[-1]} do not divide into {wanted.name} blocks of {wanted.block}"
    return Part(name, shape, Stored.F16, sources, order=order, fallback=Fallback(name, "F16", why))


def _shards(model: Checkpoint) -> Mapping[str, str]:
    """The file that each tensor of a Hugging Face folder lies in; empty where there is one."""
    index = model.path / INDEX
    if not index.is_file():
        return {}
    return parse_index(index, read_text(index, LONGEST_INDEX))


def _rope_parts(decoder: Decoder) -> Iterator[Part]:
    """Divisors of the rotary frequencies, as tensors of their own."""
    rope = decoder.rope
    match rope.scaling:
        case RopeScaling.LONGROPE:
            for name, divisors in (("long", rope.long_divisors), ("short", rope.divisors)):
                values = np.array(divisors, np.float32)
                yield Part(f"rope_factors_{name}.weight", values.shape, Stored.F32, values=values)
        case RopeScaling.LLAMA3:
            values = _llama3_divisors(decoder)
            yield Part("rope_freqs.weight", values.shape, Stored.F32, values=values)
        case RopeScaling.DIVISORS:
            values = rope.frequency_divisors().astype(np.float32)
            yield Part("rope_freqs.weight", values.shape, Stored.F32, values=values)


def _llama3_divisors(decoder: Decoder) -> Floats:
    """As `Rope.frequency_divisors`, in float32 and with torch's order of steps (a number divided by a tensor is its
    reciprocal times the number): so llama.cpp's converter does it, and one last bit makes another file."""
    rope = decoder.rope
    exponents = np.arange(0, rope.dim, 2, dtype=np.float32) / np.float32(rope.dim)
    frequencies = np.float32(1) / np.power(np.float32(rope.theta), exponents)
    low, high = np.float32(rope.low_freq_factor), np.float32(rope.high_freq_factor)
    original = np.float32(rope.original_context)
    wavelengths = (np.float32(1) / frequencies) * np.float32(2 * math.pi)
    smooth = ((np.float32(1) / wavelengths) * original - low) / (high - low)
    divisors = 1 / ((1 - smooth) / np.float32(rope.factor) + smooth)
    divisors = np.where(wavelengths < original / high, np.float32(1), divisors)
    return np.where(wavelengths > original / low, np.float32(rope.factor), divisors).astype(np.float32)
