"""Writes a checkpoint as GGUF with the `gguf` package, so that the reader is tested against a writer that is not ours.

from support.gguf_files import write_gguf
write_gguf(open_checkpoint(folder), tmp_path / "tiny.gguf", "Q8_0")
"""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint import Checkpoint

_NAMES = (
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    (r"model.layers.(\d+).input_layernorm", r"blk.\1.attn_norm"),
    (r"model.layers.(\d+).post_attention_layernorm", r"blk.\1.ffn_norm"),
    (r"model.layers.(\d+).self_attn.([qkv])_proj", r"blk.\1.attn_\2"),
    (r"model.layers.(\d+).self_attn.o_proj", r"blk.\1.attn_output"),
    (r"model.layers.(\d+).mlp.(gate|up|down)_proj", r"blk.\1.ffn_\2"),
)


def write_gguf(model: Checkpoint, out: Path, storage: str = "F16", *, tokenizer: bool = True) -> Path:
    """Matrices as `storage`, the rest as F32; keys and values as llama.cpp's converter writes them."""
    d = model.decoder
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_name(model.name)
    writer.add_block_count(d.layers)
    writer.add_context_length(d.context_length)
    writer.add_embedding_length(d.hidden_size)
    writer.add_feed_forward_length(d.intermediate_size)
    writer.add_head_count(d.heads)
    writer.add_head_count_kv(d.kv_heads)
    writer.add_key_length(d.head_dim)
    writer.add_value_length(d.head_dim)
    writer.add_layer_norm_rms_eps(d.norm_epsilon)
    writer.add_rope_freq_base(d.rope.theta)
    writer.add_rope_dimension_count(d.rope.dim)
    writer.add_vocab_size(d.vocab_size)
    if d.rope.scaling == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(d.rope.factor)
    elif d.rope.scaling != "none":
        writer.add_tensor("rope_freqs.weight", d.rope.frequency_divisors().astype(np.float32))
    if tokenizer:
        add_tokenizer(writer, model)
    quantization = gguf.GGMLQuantizationType[storage]
    for name, tensor in model.tensors.items():
        data = tensor.read()
        if ".q_proj." in name or ".k_proj." in name:
            data = interleave(data, d.heads if ".q_proj." in name else d.kv_heads)
        kind = quantization if len(tensor.shape) > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def interleave(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """What llama.cpp's converter does to q and k (`LlamaModel.permute`)."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def gguf_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    for pattern, replacement in _NAMES:
        if re.fullmatch(pattern, stem):
            return re.sub(pattern, replacement, stem) + "." + kind
    raise KeyError(name)


def add_tokenizer(writer: gguf.GGUFWriter, model: Checkpoint) -> None:
    tokenizer = model.tokenizer
    writer.add_tokenizer_model(tokenizer.model)
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types([int(kind) for kind in tokenizer.types])
    if tokenizer.merges:
        writer.add_token_merges(list(tokenizer.merges))
    if tokenizer.scores:
        writer.add_token_scores(list(tokenizer.scores))
    for role, token in tokenizer.special.items():
        {"bos": writer.add_bos_token_id, "eos": writer.add_eos_token_id, "unknown": writer.add_unk_token_id,
         "padding": writer.add_pad_token_id}[role](token)  # fmt: skip
    writer.add_add_bos_token(tokenizer.add_bos)
    if tokenizer.model == "llama":
        writer.add_add_space_prefix(tokenizer.add_space_prefix)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
