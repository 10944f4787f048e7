"""Small checkpoints with real tokenizer files, and the account of a GGUF file that two converters are compared by.

    from support.converted import TOKENIZER_OF, account, folder_of
    folder = folder_of("qwen3-tied", "bpe-qwen", tokenizers, tmp_path / "in")
    account(tmp_path / "model.gguf")

Used by the script that runs llama.cpp's converter and by the test that runs ours: neither may see another checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

GOLDENS = Path(__file__).parents[1] / "checkpoint" / "goldens"
TOKENIZER_OF = {
    "grouped-query-tied": "bpe-smollm",
    "multi-head-untied-bf16": "spm-user",
    "multi-query-own-head-dim": "bpe-llama3",
    "rope-llama3": "bpe-llama3",
    "rope-linear": "spm-fast",
    "biases-new-style-config": "bpe-smollm",
    "sharded": "spm-fast",
    "mistral-window": "spm",
    "mistral-own-head-dim": "spm-fast",
    "qwen2-biases": "bpe-qwen",
    "qwen2-windows": "bpe-qwen",
    "qwen3-tied": "bpe-qwen",
    "qwen3-new-style-windows": "bpe-qwen",
    "gemma3-old-style": "spm-gemma",
    "gemma3-new-style-soft-caps": "spm-gemma",
    "phi3-window": "spm-fast",
    "phi3-longrope-partial": "bpe-phi4",
    "phi3-longrope-new-style": "spm",
    "bitnet-packed": "spm",
    "bitnet-unpacked": "spm",
    "bitnet-master-weights": "spm",
    "bitnet-plain-silu": "spm-fast",
}
"""Every golden with a kind of tokenizer that its family comes with; without the untied BitNet, for whose output matrix
neither llama.cpp's converter nor its runtime has a place."""
WITHOUT = {"gemma3-new-style-soft-caps": ("attn_logit_softcapping",)}
"""Fields left out of a config, because llama.cpp's converter fails on them (and ours refuses them)."""
PRECISIONS = ("f32", "f16", "bf16", "q8_0")


def folder_of(golden: str, tokenizer: Path, out: Path) -> Path:
    """A folder with the golden's config and weights and the tokenizer's files."""
    out.mkdir(parents=True)
    for file in (*(GOLDENS / golden).iterdir(), *tokenizer.iterdir()):
        if file.suffix != ".npz":
            shutil.copy(file, out / file.name)
    if golden in WITHOUT:
        config = json.loads((out / "config.json").read_text())
        (out / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in WITHOUT[golden]}))
    return out


VOCABULARIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama-bpe": ("grouped-query-tied", {"tokenizer_class": "PreTrainedTokenizerFast"}, {}),
    "qwen2": ("qwen3-tied", {"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False}, {}),
    "gpt-2": ("grouped-query-tied", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}, {}),
    "llama-spm": ("mistral-own-head-dim", {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}, {}),
    "phi-3": ("phi3-window", {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}, {"eos_token_id": 32000}),
}
"""Vocabularies that llama.cpp's sources carry: a golden whose config goes with each, the tokenizer's settings, and what
its config says otherwise."""


PIECES = 32000
"""Of Llama 2's tokenizer.model; Phi-3 adds tokens to them in its JSON files."""


def vocabulary_folder(kind: str, vocabulary: Path, out: Path) -> Path:
    """A model one layer deep and 64 wide with a real vocabulary, as tokenizer.json, or tokenizer.model where it is one.

    vocabulary: `ggml-vocab-KIND.gguf`, or another GGUF file with the same tokenizer."""
    from safetensors.numpy import load_file, save_file

    from edgecore.checkpoint.gguf_file import read_gguf
    from edgecore.checkpoint.tokenizer_gguf import tokenizer_from_gguf
    from edgecore.checkpoint.tokenizer_out import tokenizer_json

    golden, settings, differs = VOCABULARIES[kind]
    out.mkdir(parents=True)
    metadata = read_gguf(vocabulary)[0].metadata
    tokenizer = tokenizer_from_gguf(vocabulary, metadata)
    weights = load_file(GOLDENS / golden / "model.safetensors")
    for name in weights.keys() & {"model.embed_tokens.weight", "lm_head.weight"}:
        weights[name] = np.zeros((tokenizer.vocab_size, weights[name].shape[1]), weights[name].dtype)
    save_file(weights, out / "model.safetensors")
    config = json.loads((GOLDENS / golden / "config.json").read_text())
    special = {role: metadata.get(f"tokenizer.ggml.{role}_token_id") for role in ("bos", "eos")}
    config |= {"vocab_size": tokenizer.vocab_size, **{f"{role}_token_id": i for role, i in special.items()}, **differs}
    (out / "config.json").write_text(json.dumps(config))
    texts = {f"{role}_token": tokenizer.tokens[i] for role, i in special.items() if i is not None}
    added = {
        str(i): {"content": tokenizer.tokens[i], "special": tokenizer.types[i] == 3}
        for i in range(tokenizer.vocab_size if kind == "phi-3" else 0)
        if i >= PIECES or tokenizer.types[i] == 4
    }
    settings = settings | ({"added_tokens_decoder": added} if added else {})
    (out / "tokenizer_config.json").write_text(json.dumps(settings | texts))
    if tokenizer.model == "gpt2":
        (out / "tokenizer.json").write_text(tokenizer_json(tokenizer), encoding="utf-8")
    else:
        types = [3 if kind == 4 else int(kind) for kind in tokenizer.types]
        pieces = zip(tokenizer.tokens, tokenizer.scores, types, strict=True)
        (out / "tokenizer.model").write_bytes(sentencepiece_model(list(pieces)[:PIECES]))
    return out


def sentencepiece_model(pieces: Iterable[tuple[str, float, int]]) -> bytes:
    """A BPE `tokenizer.model` of texts, scores and types: a protocol buffer, sentencepiece_model.proto."""
    out = bytearray()
    for text, score, kind in pieces:
        data = text.encode()
        piece = b"\x0a" + _varint(len(data)) + data + b"\x15" + struct.pack("<f", score) + b"\x18" + _varint(kind)
        out += b"\x0a" + _varint(len(piece)) + piece
    trainer = b"\x18\x02\x98\x02\x01"  # model_type BPE, byte_fallback
    normalizer = b"\x0a\x08identity\x18\x01\x20\x00"  # a space before the text, spaces as they are
    return bytes(out) + b"\x12" + _varint(len(trainer)) + trainer + b"\x1a" + _varint(len(normalizer)) + normalizer


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def account(file: Path) -> dict[str, Any]:
    """`tensors`: name to [type number, shape as in the file, sha256 of the bytes, and of an F32 matrix the largest
    magnitude]; `metadata`: key to [type number,
    value], an array's being [9, type of its items, how many, sha256 of their bytes]. Both in the file's order.

    A reader of its own, of finished files that two writers made: it compares bytes, so it keeps none of them apart.
    """
    data = file.read_bytes()
    cursor = _Cursor(data)
    magic, version, tensor_count, entry_count = struct.unpack_from("<4sIQQ", data)
    assert (magic, version) == (b"GGUF", 3)
    cursor.at = 24
    metadata = {cursor.text(): cursor.value(cursor.number("I")) for _ in range(entry_count)}
    table = []
    for _ in range(tensor_count):
        name, axes = cursor.text(), cursor.number("I")
        shape = [cursor.number("Q") for _ in range(axes)]
        table.append((name, axes, shape, cursor.number("I"), cursor.number("Q")))
    begin = -(-cursor.at // 32) * 32
    tensors = {}
    for name, axes, shape, kind, offset in table:
        elements = 1
        for size in shape:
            elements *= size
        size = {0: 4 * elements, 1: 2 * elements, 8: elements // 32 * 34, 30: 2 * elements}[kind]
        stored = data[begin + offset : begin + offset + size]
        assert len(stored) == size
        tensors[name] = [kind, shape, hashlib.sha256(stored).hexdigest()]
        if kind == 0 and axes == 2:
            tensors[name].append(float(np.abs(np.frombuffer(stored, "<f4")).max()))
    return {"tensors": tensors, "metadata": metadata}


class _Cursor:
    SIZES = (1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8)

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize(code)
        return value

    def text(self) -> str:
        length = self.number("Q")
        self.at += length
        return self.data[self.at - length : self.at].decode()

    def value(self, kind: int) -> list[Any]:
        if kind == 8:
            return [kind, self.text()]
        if kind != 9:
            return [kind, self.number("BbHhIif?__Qqd"[kind])]
        inner, count = self.number("I"), self.number("Q")
        start = self.at
        for _ in range(count if inner == 8 else 0):
            self.at += 8 + struct.unpack_from("<Q", self.data, self.at)[0]
        self.at += count * self.SIZES[inner]
        stored = self.data[start : self.at]
        return [kind, inner, count, hashlib.sha256(stored).hexdigest()]
