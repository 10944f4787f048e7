"""Writes a checkpoint of any family as GGUF with the `gguf` package: a source that says what such a file can say, and
no more, where llama.cpp's own converter cannot run or does not take the family.

from support.gguf_families import write_family_gguf
write_family_gguf(open_checkpoint(folder), tmp_path / "model.gguf", "Q8_0")
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from edgecore.checkpoint import Checkpoint, Decoder
from edgecore.checkpoint.decoder import RopeScaling
from edgecore.checkpoint.families import Family, known

from support.gguf_files import add_tokenizer, interleave


def write_family_gguf(model: Checkpoint, out: Path, storage: str = "F32", *, tokenizer: bool = False) -> Path:
    """Matrices as `storage` where its blocks divide their rows; the rest as F32."""
    decoder = model.decoder
    family = next(f for f in known() if f.name == decoder.family)
    writer = gguf.GGUFWriter(out, family.gguf_architectures[0])
    _add_sizes(writer, decoder)
    _add_rope(writer, decoder)
    if tokenizer:
        add_tokenizer(writer, model)
    for name, weight in _weights(model, family).items():
        kind = gguf.GGMLQuantizationType[storage if weight.ndim > 1 and not weight.shape[1] % 32 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(weight), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _add_sizes(writer: gguf.GGUFWriter, d: Decoder) -> None:
    writer.add_block_count(d.layers)
    writer.add_context_length(d.context_length)
    writer.add_embedding_length(d.hidden_size)
    writer.add_feed_forward_length(d.intermediate_size)
    writer.add_head_count(d.heads)
    writer.add_head_count_kv(d.kv_heads)
    writer.add_key_length(d.head_dim)
    writer.add_value_length(d.head_dim)
    writer.add_layer_norm_rms_eps(d.norm_epsilon)
    writer.add_vocab_size(d.vocab_size)
    if d.window and d.family in ("gemma3", "phi3"):
        writer.add_sliding_window(d.window)
        writer.add_sliding_window_pattern([bool(d.layer_window(layer)) for layer in range(d.layers)])
    if d.logit_softcap:
        writer.add_final_logit_softcapping(d.logit_softcap)


def _add_rope(writer: gguf.GGUFWriter, d: Decoder) -> None:
    writer.add_rope_freq_base(d.rope.theta)
    writer.add_rope_dimension_count(d.rope.dim)
    if d.local_rope is not None:
        writer.add_rope_freq_base_swa(d.local_rope.theta)
    match d.rope.scaling:
        case RopeScaling.LINEAR:
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(d.rope.factor)
        case RopeScaling.LLAMA3:
            writer.add_tensor("rope_freqs.weight", d.rope.frequency_divisors().astype(np.float32))
        case RopeScaling.LONGROPE:
            writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
            writer.add_rope_scaling_orig_ctx_len(d.rope.original_context)
            writer.add_rope_scaling_attn_factors(d.rope.attention_factor)
            writer.add_tensor("rope_factors_short.weight", np.array(d.rope.divisors, np.float32))
            writer.add_tensor("rope_factors_long.weight", np.array(d.rope.long_divisors, np.float32))


def _weights(model: Checkpoint, family: Family) -> dict[str, np.ndarray]:
    """By GGUF name, in GGUF's order of rows, fused where the family's files are."""
    decoder = model.decoder
    weights = {name: tensor.read() for name, tensor in model.tensors.items()}
    for name in list(weights):
        for whole, parts in family.fused.items():
            at, part, kind = name.partition(parts[0])
            if part:
                weights[f"{at}{whole}{kind}"] = np.concatenate([weights.pop(f"{at}{p}{kind}") for p in parts])
    named = {}
    for name, weight in weights.items():
        if family.interleaved and (".q_proj." in name or ".k_proj." in name):
            weight = interleave(weight, decoder.heads if ".q_proj." in name else decoder.kv_heads)
        named[_gguf_name(name, family)] = weight
    return named


def _gguf_name(name: str, family: Family) -> str:
    stem, _, kind = name.rpartition(".")
    layer = stem.split(".")[2] if stem.startswith("model.layers.") else ""
    canonical = stem.replace(f"layers.{layer}.", "layers.{}.", 1) if layer else stem
    return {c: g for g, c in family.gguf_names.items()}[canonical].format(layer) + "." + kind
