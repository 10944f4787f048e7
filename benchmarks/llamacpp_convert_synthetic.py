"""A large checkpoint for llamacpp_convert.py that nobody has to download: a Llama with its tokenizer, random weights.

Shards of some 2 GB, as large models come. One block of normal numbers is drawn and written again and again from another
place in it: real bytes, no two rows alike within a matrix, made at the speed of the disk.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

import numpy as np

from edgecore.checkpoint.gguf_file import read_gguf
from edgecore.checkpoint.tokenizer_gguf import tokenizer_from_gguf
from edgecore.checkpoint.tokenizer_out import tokenizer_json

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, FFN, VOCABULARY = 24, 8, 128, 3072, 8192, 128256
"""Llama 3.2 3B's, whose 28 layers come to 3.2 billion parameters; other sizes have fewer layers or more."""
A_LAYER = 2 * HIDDEN * (HEADS + KV_HEADS) * HEAD_DIM + 3 * HIDDEN * FFN
SHARD = 2_000_000_000


def write_synthetic(folder: Path, billions: float, vocabulary: Path, stored: str = "bf16") -> None:
    """vocabulary: llama.cpp's ggml-vocab-llama-bpe.gguf."""
    layers = max(1, round((billions * 1e9 - VOCABULARY * HIDDEN) / A_LAYER))
    write_json(folder / "config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": HIDDEN,
        "intermediate_size": FFN, "num_hidden_layers": layers, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072, "rope_theta": 500000.0, "tie_word_embeddings": True, "bos_token_id": 128000,
        "eos_token_id": 128001, "rope_scaling": {
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    })  # fmt: skip
    tokenizer = tokenizer_from_gguf(vocabulary, read_gguf(vocabulary)[0].metadata)
    (folder / "tokenizer.json").write_text(tokenizer_json(tokenizer), encoding="utf-8")
    ends = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **ends})
    write_weights(folder, shapes(layers), stored)


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        found |= {
            f"{at}input_layernorm.weight": (HIDDEN,),
            f"{at}self_attn.q_proj.weight": (HEADS * HEAD_DIM, HIDDEN),
            f"{at}self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"{at}self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"{at}self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
            f"{at}post_attention_layernorm.weight": (HIDDEN,),
            f"{at}mlp.gate_proj.weight": (FFN, HIDDEN),
            f"{at}mlp.up_proj.weight": (FFN, HIDDEN),
            f"{at}mlp.down_proj.weight": (HIDDEN, FFN),
        }
    return found | {"model.norm.weight": (HIDDEN,)}


def write_weights(folder: Path, wanted: dict[str, tuple[int, ...]], stored: str) -> None:
    groups: list[list[str]] = [[]]
    size = 0
    for name, shape in wanted.items():
        if size > SHARD:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += 2 * int(np.prod(shape))
    drawn = np.random.default_rng(0).standard_normal(8_000_009, np.float32) * 0.02
    block = (drawn.view(np.uint32) >> 16).astype(np.uint16) if stored == "bf16" else drawn.astype(np.float16)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(groups, 1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        header, end = {}, 0
        for name in names:
            start, end = end, end + 2 * int(np.prod(wanted[name]))
            header[name] = {"dtype": stored.upper(), "shape": wanted[name], "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                write_numbers(stream, block, int(np.prod(wanted[name])), sum(name.encode()))
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})


def write_numbers(stream: BinaryIO, block: np.ndarray, count: int, place: int) -> None:
    while count:
        some = block[place % 1000 : place % 1000 + count]
        stream.write(some.tobytes())
        count -= len(some)
        place += 7


def write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
