"""Reading tokenizer.model, SentencePiece's own file, without its library: pieces, scores, kinds and settings.

A protocol buffer is lengths and numbers, and this one needs fifty lines; the libraries that read it are native code
that a stranger's file would go straight into, and one more dependency.

Format: sentencepiece's `sentencepiece_model.proto`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgecore.checkpoint.fields import short
from edgecore.checkpoint.mapping import read_bytes
from edgecore.contract.errors import CorruptModel, UnsupportedModel

LARGEST = 1 << 26
"""Bytes; the largest known (Gemma 3) have 4.7 million."""
MOST_PIECES = 1 << 21
LONGEST_PIECE = 4096
"""Bytes of one piece; SentencePiece itself makes none longer than 64 characters."""
MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""A piece's kind; llama.cpp took over the numbers."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One token. Spaces are `▁`."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True, slots=True)
class Settings:
    """What of the trainer's and normalizer's settings decides ids."""

    add_dummy_prefix: bool = True
    unknown_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    padding_id: int = -1
    """-1 for none, as with the others."""


def read_sentencepiece(file: Path) -> tuple[list[Piece], Settings]:
    """Raises `CorruptModel` and `UnsupportedModel` naming file and field."""
    data = read_bytes(file, LARGEST)
    settings = _settings(file, data)
    pieces: list[Piece] = []
    for number, _, value in _walk(file, "pieces", data):
        if number == 1 and isinstance(value, bytes):
            if len(pieces) == MOST_PIECES:
                raise CorruptModel(f"{file}: field 'pieces': more than {MOST_PIECES} of them")
            pieces.append(_piece(file, len(pieces), value))
    if not pieces:
        raise CorruptModel(f"{file}: field 'pieces': has no items")
    return pieces, settings


def read_settings(file: Path) -> Settings:
    """As `read_sentencepiece`, without looking into the pieces."""
    return _settings(file, read_bytes(file, LARGEST))


def _settings(file: Path, data: bytes) -> Settings:
    trainer = normalizer = b""
    for number, _, value in _walk(file, "model", data):
        if isinstance(value, bytes):
            # A field that comes twice: protocol buffers merge the messages, which is what appending their bytes does.
            trainer += value if number == 2 else b""
            normalizer += value if number == 3 else b""
    trained = _numbers(file, "trainer_spec", trainer)
    normal = _numbers(file, "normalizer_spec", normalizer)

    def refuse(field: str, why: str, supported: str) -> UnsupportedModel:
        return UnsupportedModel(f"{file}: field {field!r}: {why}", supported=supported)

    kind = trained.get(3, 1)
    if kind != 2:
        raise refuse("trainer_spec.model_type", MODEL_TYPES.get(kind, str(kind)), "bpe")
    if trained.get(24, 0):
        raise refuse("trainer_spec.treat_whitespace_as_suffix", "true", "false")
    for number, _, value in _walk(file, "normalizer_spec", normalizer):
        if number == 2 and value:
            raise refuse("normalizer_spec.precompiled_charsmap", "text is rewritten before it is split", "identity")
    if normal.get(4, 1):
        raise refuse("normalizer_spec.remove_extra_whitespaces", "true", "false")
    if not normal.get(5, 1):
        raise refuse("normalizer_spec.escape_whitespaces", "false", "true")
    return Settings(
        add_dummy_prefix=bool(normal.get(3, 1)),
        unknown_id=trained.get(40, 0),
        bos_id=_signed(trained.get(41, 1)),
        eos_id=_signed(trained.get(42, 2)),
        padding_id=_signed(trained.get(43, -1)),
    )


def _numbers(file: Path, field: str, message: bytes) -> dict[int, int]:
    return {number: value for number, _, value in _walk(file, field, message) if isinstance(value, int)}


def _signed(value: int) -> int:
    """An int32: negative ones are written as 64 bits."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _piece(file: Path, index: int, message: bytes) -> Piece:
    text, score, kind = b"", 0.0, NORMAL
    field = f"pieces[{index}]"
    size = message[1] if len(message) > 6 else 0
    if message[:1] == b"\n" and 0 < size == len(message) - 7 < 128 and message[size + 2] == 0x15:
        # Text, score and nothing else: the field by field way takes a second for 200,000 pieces.
        text, (score,) = message[2:-5], struct.unpack_from("<f", message, size + 3)
    else:
        for number, wire, value in _walk(file, field, message):
            if number == 1 and isinstance(value, bytes):
                text = value
            elif number == 2 and wire == 5 and isinstance(value, bytes):
                (score,) = struct.unpack("<f", value)
            elif number == 3 and isinstance(value, int):
                kind = value
    if not text or len(text) > LONGEST_PIECE:
        raise CorruptModel(f"{file}: field {field!r}: has {len(text)} bytes of text")
    if not NORMAL <= kind <= BYTE:
        raise CorruptModel(f"{file}: field {field!r}: type {kind} is none")
    if score - score != 0:
        raise CorruptModel(f"{file}: field {field!r}: its score is {score}")
    try:
        return Piece(text.decode(), score, kind)
    except UnicodeDecodeError:
        raise CorruptModel(f"{file}: field {field!r}: {short(text)} is not UTF-8") from None


def _walk(file: Path, field: str, message: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """Field number, wire type and value of a message: whole numbers as they are, everything else as bytes."""

    def wrong(why: str) -> CorruptModel:
        return CorruptModel(f"{file}: field {field!r}: is no protocol buffer: {why}")

    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at, wrong)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(message, at, wrong)
            yield number, wire, value
            continue
        if wire == 2:
            size, at = _varint(message, at, wrong)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise wrong(f"wire type {wire} at byte {at}")
        if size > end - at:
            raise wrong(f"{size} bytes are said to follow byte {at} of {end}")
        yield number, wire, message[at : at + size]
        at += size


def _varint(message: bytes, at: int, wrong: Callable[[str], CorruptModel]) -> tuple[int, int]:
    value = shift = 0
    while at < len(message):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise wrong(f"a number of more than 64 bits before byte {at}")
    raise wrong("it ends within a number")
