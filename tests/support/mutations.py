"""Damaged headers by the thousand, from a fixed seed: each mutation knows the format well enough to get past the first
check and do harm behind it.

    data = damaged_gguf(random.Random(0), gguf_seeds())
"""

from __future__ import annotations

import copy
import json
import random
import struct
from dataclasses import dataclass
from typing import Any

ABSURD = (
    0, 1, 2, 3, 4, 7, 8, 9, 12, 31, 32, 33, 63, 64, 255, 256, 4095, 65535, 65536, 1 << 20, 1 << 24, (1 << 31) - 1,
    1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 33, (1 << 64) - 1,
)  # fmt: skip
"""What a count, length, offset or type number is replaced by."""
ODD: tuple[Any, ...] = (
    None, True, False, -1, -0.0, 0.5, 1e308, float("inf"), float("nan"), 10**400, 10**4200, "", "x", "F32", "F64", "\0",
    "\ud800", "../x", "a" * 5000, [], [0], [[]], [1] * 9, [1 << 62, 1 << 62], {}, {"dtype": "F32"}, *ABSURD,
)  # fmt: skip
"""What a JSON value is replaced by."""


@dataclass(frozen=True)
class Seed:
    """A good file, and where its numbers and its entries stand."""

    data: bytes
    numbers: tuple[tuple[int, str], ...] = ()
    """Offset and struct code of each count, length, type, axis and offset."""
    entries: tuple[tuple[int, int], ...] = ()
    """Start and end of each metadata entry and each entry of the tensor table."""
    header: int = 0
    """Where the header ends: damage behind it is no damage to a header."""


def damaged_gguf(draw: random.Random, seeds: list[Seed]) -> bytes:
    seed = draw.choice(seeds)
    data = bytearray(seed.data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        kind = draw.random()
        if kind < 0.45:
            at, code = draw.choice(seed.numbers)
            if at + struct.calcsize(code) <= len(data):
                value = draw.choice(ABSURD) + draw.choice((0, 0, 0, -1, 1))
                struct.pack_into(code, data, at, value % (1 << 8 * struct.calcsize(code)))
        elif kind < 0.65:
            _splice(draw, seed, data)
        else:
            _damage_bytes(draw, data, seed.header)
    return bytes(data)


def damaged_safetensors(draw: random.Random, seeds: list[bytes]) -> bytes:
    data = draw.choice(seeds)
    length = int.from_bytes(data[:8], "little")
    if draw.random() < 0.35:
        raw = bytearray(data)
        _damage_bytes(draw, raw, 8 + length)
        return bytes(raw)
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    for _ in range(draw.choice((1, 1, 2))):
        _damage_entry(draw, header)
    text = json.dumps(header).encode()
    if draw.random() < 0.1:
        name, entry = draw.choice(list(header.items()))
        text = text[:-1] + b"," + json.dumps({name: entry}).encode()[1:]
    text += b" " * draw.choice((0, 0, -len(text) % 8, 1))
    size = draw.choice(ABSURD) if draw.random() < 0.03 else len(text) + draw.choice((0, 0, 0, 0, 0, 0, 0, -1, 1, 8))
    return max(0, size).to_bytes(8, "little") + text + (body[: draw.randrange(len(body))] if size % 13 == 0 else body)


def _damage_entry(draw: random.Random, header: dict[str, Any]) -> None:
    name = draw.choice(list(header))
    entry = header[name]
    kind = draw.random()
    if kind < 0.05:
        header[name] = odd(draw)
    elif kind < 0.1:
        del header[name]
        header["x" if header else ""] = entry
    elif kind < 0.15:
        header["__metadata__"] = draw.choice(({"a": "b"}, {"a": 1}, odd(draw)))
    elif not isinstance(entry, dict) or not entry:
        header[name] = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    elif kind < 0.3:
        other = header[draw.choice(list(header))]
        if isinstance(other, dict) and "data_offsets" in other:
            entry["data_offsets"], other["data_offsets"] = other["data_offsets"], entry.get("data_offsets")
    elif kind < 0.4:
        entry.pop(draw.choice(list(entry)))
    elif kind < 0.5:
        # The same number of elements in another shape: still a good file.
        if isinstance(entry.get("shape"), list):
            draw.shuffle(entry["shape"])
    else:
        field = draw.choice(list(entry))
        value = entry[field]
        if isinstance(value, list) and value and draw.random() < 0.7:
            value[draw.randrange(len(value))] = odd(draw)
        elif isinstance(value, list) and draw.random() < 0.5:
            value.append(1)
        else:
            entry[field] = odd(draw)


def odd(draw: random.Random) -> Any:
    """A copy: what is damaged next may be the value itself."""
    return copy.deepcopy(draw.choice(ODD))


def _splice(draw: random.Random, seed: Seed, data: bytearray) -> None:
    """An entry doubled, dropped, or put in the place of another."""
    start, end = draw.choice(seed.entries)
    piece = seed.data[start:end]
    other_start, other_end = draw.choice(seed.entries)
    choice = draw.randrange(4)
    if choice == 0:
        data[start:start] = piece
    elif choice == 1:
        del data[start:end]
    elif choice == 2:
        data[other_start:other_end] = piece
    else:
        count_at = draw.choice((8, 16))
        data[start:start] = piece
        (count,) = struct.unpack_from("<Q", data, count_at)
        struct.pack_into("<Q", data, count_at, (count + 1) % (1 << 64))


def _damage_bytes(draw: random.Random, data: bytearray, header: int) -> None:
    header = min(header, len(data))
    if not header:
        return
    choice = draw.randrange(5)
    at = draw.randrange(header)
    if choice == 0:
        data[at] ^= 1 << draw.randrange(8)
    elif choice == 1:
        data[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
    elif choice == 2:
        del data[draw.choice((at, draw.randrange(len(data)))) :]
    elif choice == 3:
        source = draw.randrange(header)
        size = draw.randint(1, 24)
        data[at : at + size] = data[source : source + size]
    else:
        data[at:at] = bytes(draw.randrange(256) for _ in range(draw.randint(1, 9)))


class GgufBuilder:
    """Writes a GGUF header and remembers where everything in it stands."""

    def __init__(self, tensors: int, entries: int, version: int = 3) -> None:
        self.data = bytearray(b"GGUF")
        self.numbers: list[tuple[int, str]] = []
        self.entries: list[tuple[int, int]] = []
        for code, value in (("<I", version), ("<Q", tensors), ("<Q", entries)):
            self.number(code, value)

    def number(self, code: str, value: float) -> None:
        self.numbers.append((len(self.data), code.replace("f", "I").replace("d", "Q").replace("i", "I")))
        self.data += struct.pack(code, value)

    def text(self, value: str) -> None:
        self.number("<Q", len(value.encode()))
        self.data += value.encode()

    def entry(self, key: str, kind: int, code: str, value: Any) -> None:
        """One key with its value; a list is an array. The code of text is ``s``."""
        start = len(self.data)
        self.text(key)
        if isinstance(value, list):
            self.number("<I", 9)
            self.number("<I", kind)
            self.number("<Q", len(value))
        else:
            self.number("<I", kind)
        for item in value if isinstance(value, list) else [value]:
            if code == "s":
                self.text(item)
            else:
                self.number(code, item)
        self.entries.append((start, len(self.data)))

    def tensor(self, name: str, axes: tuple[int, ...], kind: int, offset: int) -> None:
        """`axes` in ggml's order, the contiguous one first."""
        start = len(self.data)
        self.text(name)
        self.number("<I", len(axes))
        for axis in axes:
            self.number("<Q", axis)
        self.number("<I", kind)
        self.number("<Q", offset)
        self.entries.append((start, len(self.data)))

    def seed(self, body: int, alignment: int = 32) -> Seed:
        header = len(self.data)
        data = bytes(self.data) + bytes(-header % alignment + body)
        return Seed(data, tuple(self.numbers), tuple(self.entries), header)


def gguf_seeds() -> list[Seed]:
    """A small file with every kind of value and several tensor types, one with its own alignment, an empty one."""
    all_kinds = GgufBuilder(tensors=4, entries=9)
    all_kinds.entry("general.architecture", 8, "s", "llama")
    all_kinds.entry("llama.block_count", 4, "<I", 1)
    all_kinds.entry("llama.rope.freq_base", 6, "<f", 1e4)
    all_kinds.entry("llama.wide", 10, "<Q", 1 << 40)
    all_kinds.entry("general.flag", 7, "<B", 1)
    all_kinds.entry("tokenizer.ggml.tokens", 8, "s", ["<s>", "a", "é", "🙂", ""])
    all_kinds.entry("tokenizer.ggml.scores", 6, "<f", [0.0, -1.0, -2.0, -3.0, -4.0])
    all_kinds.entry("tokenizer.ggml.token_type", 5, "<i", [3, 1, 1, 1, 1])
    all_kinds.entry("tokenizer.flags", 7, "<B", [0, 1])
    all_kinds.tensor("token_embd.weight", (32, 5), 8, 0)
    all_kinds.tensor("blk.0.attn_norm.weight", (32,), 0, 192)
    all_kinds.tensor("blk.0.attn_q.weight", (32, 2), 1, 320)
    all_kinds.tensor("blk.0.ffn_up.weight", (256, 1), 12, 448)
    aligned = GgufBuilder(tensors=2, entries=1, version=2)
    aligned.entry("general.alignment", 4, "<I", 64)
    aligned.tensor("a", (8, 2, 2, 1), 0, 0)
    aligned.tensor("b", (4,), 30, 128)
    empty = GgufBuilder(tensors=0, entries=1)
    empty.entry("general.name", 8, "s", "x")
    return [all_kinds.seed(592), aligned.seed(136, 64), empty.seed(0)]


def safetensors_seeds() -> list[bytes]:
    """A small file of several types with metadata, and one with scalars and many axes."""
    return [
        _safetensors({"__metadata__": {"format": "pt"}, **_packed(embed=("F16", [6, 4]), norm=("F32", [4]),
                                                                 bias=("BF16", [4]), mask=("U8", [2, 2, 2]))}),
        _safetensors(_packed(scalar=("F32", []), deep=("I8", [1, 2, 1, 2, 1, 2, 1, 2]))),
    ]  # fmt: skip


def _packed(**tensors: tuple[str, list[int]]) -> dict[str, Any]:
    header, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = {"F32": 4, "F16": 2, "BF16": 2}.get(dtype, 1)
        for axis in shape:
            size *= axis
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return header


def _safetensors(header: dict[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    body = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    return len(text).to_bytes(8, "little") + text + bytes(body)
