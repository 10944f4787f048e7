"""The merges of a BPE tokenizer as OpenVINO's BPETokenizer, which begins otherwise than the `tokenizers` library does.

It cuts a piece into the longest strings of its table that no merge makes, wherever a text spells one; the library
begins with characters, or bytes. So a string that is neither gets a spelling in the table that no text has. And it
always merges: pieces that the library takes whole are given another name first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset15 as opset
from openvino_tokenizers import _get_factory
from openvino_tokenizers.utils import create_string_constant_node, unicode_to_bytes
from tokenizers import models

from edgecore.checkpoint import Tokenizer, TokenType

Pair = tuple[str, str]
Nodes = list[ov.Output]
"""Strings are three of them (begins, ends, bytes), rows of strings five, and a flag for each that is a token."""
NEVER = b"\xff"
"""Begins what no text spells: it is no part of UTF-8."""
LEAST_CACHED = 20_000
"""Pieces whose ids the operation remembers, as openvino_tokenizers has it."""


class NotExpressible(Exception):
    """What the operations cannot do, in words."""


def bpe(nodes: Nodes, tokenizer: Tokenizer, model: Mapping[str, Any], added: Mapping[bytes, int]) -> Nodes:
    """Rows of strings to rows of ids. `added`: strings that are tokens as they stand, whatever the merges say."""
    if not model.get("byte_fallback") and tokenizer.model != "gpt2":
        raise NotExpressible("SentencePiece without bytes: the operation counts unknown bytes, not characters")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix") or model.get("dropout"):
        raise NotExpressible("BPE with marks inside words")
    vocab: dict[str, int] = model["vocab"]
    spelled = _alphabet if tokenizer.model == "gpt2" else str.encode
    names = {token: name for token in vocab if (name := spelled(token))}
    bases = {name for token, name in names.items() if len(token) == 1} | set(added)
    merges, made = _reachable(_pairs(model), names, bases)
    table = [NEVER + f"{i}".encode() for i in range(tokenizer.vocab_size)]
    for token, name in names.items():
        if len(token) == 1 or name in made:
            table[vocab[token]] = name
    if model.get("byte_fallback"):
        for byte in range(256):
            i = vocab.get(f"<0x{byte:02X}>", -1)
            if i >= 0 and (byte >= 128 or chr(byte) not in vocab):
                table[i] = bytes([byte])
    for name, i in added.items():
        table[i] = name
    whole = {name: i for name, i in added.items() if name in made}
    if model.get("ignore_merges"):
        merger = models.BPE(vocab, _pairs(model))
        whole |= {
            name: vocab[token]
            for token, name in names.items()
            if tokenizer.types[vocab[token]] is TokenType.NORMAL
            and [t.id for t in merger.tokenize(token)] != [vocab[token]]
        }
    others = {name: NEVER * 2 + f"{i}".encode() for name, i in whole.items()}
    if others:
        nodes = _renamed(nodes, others)
    found = {**added, **{others[name]: i for name, i in whole.items()}}
    inputs = [*nodes, *create_string_constant_node(table)]
    for side in (0, 1):
        inputs += create_string_constant_node([names[merge[side]] for merge in merges])
    if found:
        inputs += create_string_constant_node(list(found))
        inputs.append(opset.constant(np.array(list(found.values()), np.int32)).output(0))
    settings = {
        "unk_token": "",
        "fuse_unk": False,
        "suffix_indicator": "",
        "end_suffix": "",
        "byte_fallback": False,
        "cache_capacity": max(LEAST_CACHED, len(vocab) // 5),
    }
    ids: Nodes = _get_factory().create("BPETokenizer", inputs, settings).outputs()
    return ids


def _renamed(nodes: Nodes, names: Mapping[bytes, bytes]) -> Nodes:
    """Pieces that are keys of `names` get the other name: their bounds point behind the text, where the names stand."""
    begins, ends, spelled = create_string_constant_node(list(names.values()))
    zero, none = opset.constant(np.int32(0)), opset.constant(np.int32(-1)).output(0)
    order = opset.constant(np.arange(len(names), dtype=np.int32)).output(0)
    asked = [*nodes[2:], *create_string_constant_node(list(names)), order, none]
    place = _get_factory().create("VocabEncoder", asked).output(0)
    hit, at = opset.greater_equal(place, zero), opset.maximum(place, zero)
    length = opset.convert(opset.shape_of(nodes[4]), "i32")
    moved = [
        opset.select(hit, opset.add(opset.gather(bounds, at, zero), length), own).output(0)
        for bounds, own in ((begins, nodes[2]), (ends, nodes[3]))
    ]
    return [*nodes[:2], *moved, opset.concat([nodes[4], spelled], 0).output(0)]


def _reachable(pairs: Sequence[Pair], names: Mapping[str, bytes], bases: Set[bytes]) -> tuple[list[Pair], set[bytes]]:
    """The merges of which both sides can come about, in their order, and what they make: those of a GGUF file's scores
    may be of strings that no text has."""
    known, left = set(bases), list(pairs)
    made: set[bytes] = set()
    while True:
        later = []
        for pair in left:
            one, two, both = (names.get(part, b"") for part in (*pair, pair[0] + pair[1]))
            if one in known and two in known and both:
                known.add(both)
                made.add(both)
            else:
                later.append(pair)
        if len(later) == len(left):
            never = set(later)
            return [pair for pair in pairs if pair not in never], made
        left = later


def _pairs(model: Mapping[str, Any]) -> list[Pair]:
    split = (m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"])
    return [(left, right) for left, right in split]


def _alphabet(token: str) -> bytes:
    """GPT-2's printable characters as the bytes that they stand for; nothing for one of others, which no text makes."""
    table = unicode_to_bytes()
    return bytes(table[c] for c in token) if all(c in table for c in token) else b""
