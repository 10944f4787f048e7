"""A SentencePiece model's pieces with their scores, read without the library: tokenizer.json has lost the scores.

Format: sentencepiece's `sentencepiece_model.proto`; a protocol buffer whose field 1 is the list of pieces.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgecore.checkpoint.mapping import read_bytes
from edgecore.contract import CorruptModel

MOST_PIECES = 1 << 22
LARGEST = 1 << 27
"""Bytes; the largest known have 4.7 million."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One token."""

    text: str
    score: float
    type: int
    """1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte: llama.cpp's numbers too."""


def read_pieces(file: Path) -> list[Piece]:
    """Raises `CorruptModel`."""
    data = read_bytes(file, LARGEST)
    try:
        pieces = [_piece(value) for number, value in _fields(data) if number == 1 and isinstance(value, bytes)]
    except (IndexError, struct.error, UnicodeDecodeError, ValueError) as error:
        raise CorruptModel(f"{file}: is not a SentencePiece model ({error})") from None
    if not pieces or len(pieces) > MOST_PIECES:
        raise CorruptModel(f"{file}: field 'pieces': {len(pieces)} of them")
    return pieces


def _piece(message: bytes) -> Piece:
    text, score, kind = "", 0.0, 1
    for number, value in _fields(message):
        if number == 1 and isinstance(value, bytes):
            text = value.decode()
        elif number == 2 and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif number == 3 and isinstance(value, int):
            kind = value
    if not 1 <= kind <= 6:
        raise ValueError(f"a piece of type {kind}")
    return Piece(text, score, kind)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field number and value: whole numbers as they are, everything else as bytes."""
    at = 0
    while at < len(message):
        tag, at = _number(message, at)
        match tag & 7:
            case 0:
                value, at = _number(message, at)
                yield tag >> 3, value
                continue
            case 1:
                size = 8
            case 2:
                size, at = _number(message, at)
            case 5:
                size = 4
            case wire:
                raise ValueError(f"wire type {wire}")
        if at + size > len(message):
            raise ValueError("it was cut short")
        yield tag >> 3, message[at : at + size]
        at += size


def _number(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
