"""A text folder for an NPU: two graphs of fixed shapes, one file of weights, and what a session computes itself.

    prefill.onnx, decode.onnx      the same computation of `chunk` tokens and of one (htp_graph.py)
    weights.data                   what both read, each tensor once
    embedding.data                 the embedding table, whose rows the session looks up; a tied head reads it too
    edgecore_htp.json              sizes, rotary frequencies, windows: `Description`
    tokenizer.json, config.json .. as beside any text model (folder.py)

A folder that was compiled ahead of time has the same files but weights.data: its graphs hold a compiled context.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint import Decoder, Rope
from edgecore.contract import CorruptModel, ModelNotFound

DESCRIPTION = "edgecore_htp.json"
PREFILL, DECODE = "prefill.onnx", "decode.onnx"
WEIGHTS, EMBEDDING = "weights.data", "embedding.data"
VERSION = 1
ALIGNED = 64
LARGEST = 65504
"""Where float16 ends."""
MASKED = -30000.0
"""What the mask adds to scores of positions that are not seen: a float16 that stays finite with any score added."""


@dataclass(frozen=True, slots=True)
class Turning:
    """One rotary embedding, as the session turns positions into the inputs `cos` and `sin`."""

    cos: str
    sin: str
    """Names of the inputs, (1, 1, tokens, dim/2)."""
    frequencies: tuple[float, ...]
    """dim/2 radians a position."""
    long_frequencies: tuple[float, ...] = ()
    """longrope's, for a sequence of more than `long_after` tokens: all its positions turn by them."""
    long_after: int = 0
    factor: float = 1.0
    """Cosines and sines are multiplied by it."""


@dataclass(frozen=True, slots=True)
class Description:
    """edgecore_htp.json."""

    context: int
    """Positions of the KV cache."""
    chunk: int
    """Tokens that prefill.onnx takes; decode.onnx takes one."""
    vocab_size: int
    hidden_size: int
    layers: int
    kv_heads: int
    head_dim: int
    embedding_scale: float
    """What rows of the table are multiplied by."""
    masks: dict[str, int]
    """Name of a mask to the positions that its layers see, their own included; 0: all."""
    turnings: tuple[Turning, ...]
    precision: str = "f16"
    """What the graphs compute in, by the precision's name."""
    masked: float = MASKED
    embedding_type: str = "float16"
    """Of the table; `int8` is followed by a float16 scale a row, from the next multiple of `ALIGNED` bytes."""
    version: int = VERSION

    @property
    def long_after(self) -> int:
        """Tokens after which longrope turns a whole sequence otherwise; 0 for a model without it."""
        return max((turning.long_after for turning in self.turnings), default=0)

    def write(self, folder: Path) -> None:
        (folder / DESCRIPTION).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def embedding(self, folder: Path) -> NDArray[Any] | ScaledRows:
        """The table (vocab, hidden), mapped. Raises `ModelNotFound`, `CorruptModel`."""
        file = folder / EMBEDDING
        if not file.is_file():
            raise ModelNotFound(f"{file} does not exist", supported=f"{EMBEDDING} beside {DESCRIPTION}")
        shape, type = (self.vocab_size, self.hidden_size), np.dtype(self.embedding_type)
        levels = math.prod(shape) * type.itemsize
        scales = _aligned(levels) if type == np.int8 else 0
        # Behind the scales stand the zero points of a tied head, which nothing here reads.
        due = scales and scales + 2 * self.vocab_size
        most = _aligned(due) + self.vocab_size if scales else levels
        size = file.stat().st_size
        if not max(levels, due) <= size <= most:
            what = "truncated" if size < max(levels, due) else "not what is described"
            raise CorruptModel(f"{file}: {what}: {size} bytes for {shape} of {type}")
        table = np.memmap(file, type, "r", shape=shape)
        return ScaledRows(table, np.memmap(file, np.float16, "r", scales, self.vocab_size)) if scales else table


@dataclass(frozen=True, slots=True)
class ScaledRows:
    """A table in 8 bits with a scale a row, read as one in floating point."""

    levels: NDArray[np.int8]
    scales: NDArray[np.float16]

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        scales = self.scales[rows].astype(np.float32)
        return np.asarray(self.levels[rows].astype(np.float32) * scales[..., None])


@dataclass(frozen=True, slots=True)
class Table:
    """The embedding table as weights.py counts and reads weights."""

    folder: Path
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        description = read(self.folder)
        return description.vocab_size, description.hidden_size

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        type = np.dtype(read(self.folder).embedding_type)
        return self.elements * type.itemsize + (2 * self.shape[0] if type == np.int8 else 0)

    def read(self) -> NDArray[np.float32]:
        return np.asarray(read(self.folder).embedding(self.folder)[:], np.float32)


def described(decoder: Decoder, context: int, chunk: int) -> Description:
    """What a session of this model's graphs needs to know."""
    from edgecore_onnxruntime.htp_graph import hidden_scale, mask_name, rotary_names

    layers = range(decoder.layers)
    ropes = {rotary_names(decoder, layer): decoder.layer_rope(layer) for layer in layers}
    return Description(
        context=context,
        chunk=chunk,
        vocab_size=decoder.vocab_size,
        hidden_size=decoder.hidden_size,
        layers=decoder.layers,
        kv_heads=decoder.kv_heads,
        head_dim=decoder.head_dim,
        embedding_scale=decoder.embedding_scale / hidden_scale(decoder),
        masks={mask_name(decoder, layer): decoder.layer_window(layer) for layer in layers},
        turnings=tuple(_turning(*names, rope) for names, rope in ropes.items()),
    )


def _turning(cos: str, sin: str, rope: Rope) -> Turning:
    after = rope.original_context if rope.is_long(rope.original_context + 1) else 0
    long = tuple(rope.frequencies(after + 1).tolist()) if after else ()
    return Turning(cos, sin, tuple(rope.frequencies().tolist()), long, after, rope.attention_factor)


def read(folder: Path) -> Description:
    """Raises `ModelNotFound`; `CorruptModel` for a description that is not ours or contradicts itself."""
    file = folder / DESCRIPTION
    if not file.is_file():
        raise ModelNotFound(f"{file} does not exist", supported=f"a folder with {PREFILL}, {DECODE} and {DESCRIPTION}")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        turnings = tuple(
            Turning(**{**t, "frequencies": tuple(t["frequencies"]), "long_frequencies": tuple(t["long_frequencies"])})
            for t in values.pop("turnings")
        )
        found = Description(**values, turnings=turnings)
        _check(found)
    except (ValueError, TypeError, KeyError, AttributeError, UnicodeDecodeError) as error:
        raise CorruptModel(f"{file}: not a description of an NPU's folder: {error}") from None
    return found


_COUNTS = {"context": 1 << 24, "chunk": 1 << 24, "vocab_size": 1 << 32, "hidden_size": 1 << 24, "layers": 1000,
           "kv_heads": 1 << 16, "head_dim": 1 << 16}  # fmt: skip
"""The largest that are believed: what is said is used to make arrays."""


def _aligned(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED


def _check(found: Description) -> None:
    if found.version != VERSION:
        raise ValueError(f"version {found.version}, and this is version {VERSION}")
    for name, most in _COUNTS.items():
        value = getattr(found, name)
        if type(value) is not int or not 1 <= value <= most:
            raise ValueError(f"{name} is {value!r}, no count up to {most}")
    if found.chunk > found.context:
        raise ValueError(f"chunk {found.chunk} is larger than context {found.context}")
    if found.embedding_type not in ("float16", "float32", "int8"):
        raise ValueError(f"embedding_type {found.embedding_type!r}")
    numbers = [found.embedding_scale, found.masked, *found.masks.values()]
    for turning in found.turnings:
        numbers += [*turning.frequencies, *turning.long_frequencies, turning.long_after, turning.factor]
        if len(turning.long_frequencies) not in (0, len(turning.frequencies)):
            raise ValueError(f"{turning.cos} has {len(turning.long_frequencies)} long frequencies")
    if wrong := [number for number in numbers if not isinstance(number, int | float) or not math.isfinite(number)]:
        raise ValueError(f"{wrong[0]!r} is no number")
    if any(type(window) is not int or window < 0 for window in found.masks.values()):
        raise ValueError(f"masks are {found.masks}, no counts of positions")
    if not -LARGEST <= found.masked <= -1000:
        raise ValueError(f"masked is {found.masked}, which hides nothing, or is no float16")
    if not 0 < found.embedding_scale <= LARGEST or max(map(abs, numbers)) > LARGEST << 16:
        raise ValueError("numbers that make no float16")
