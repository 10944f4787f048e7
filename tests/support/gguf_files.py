"""Writes a checkpoint of any family as GGUF with the `gguf` package, so that the reader is tested against a writer that
is not ours, and on what llama.cpp's own converter does not take.

from support.gguf_files import write_gguf
write_gguf(open_checkpoint(folder), tmp_path / "tiny.gguf", "Q8_0")
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint import Checkpoint, Decoder, Vocabulary
from edgecore.checkpoint.decoder import RopeScaling
from edgecore.checkpoint.families import Family, family_of


def write_gguf(model: Checkpoint, out: Path, storage: str = "F16", *, tokenizer: bool = True) -> Path:
    """Matrices as `storage` where its blocks divide their rows, the rest as F32; keys and values as llama.cpp's
    converter writes them."""
    family = family_of(model.decoder)
    writer = gguf.GGUFWriter(out, family.gguf_architectures[0])
    writer.add_name(model.name)
    _add_sizes(writer, model.decoder)
    _add_rope(writer, model.decoder)
    if tokenizer:
        _add_vocabulary(writer, model.tokenizer.vocabulary)
    for name, weight in _weights(model, family).items():
        kind = gguf.GGMLQuantizationType[storage if weight.ndim > 1 and not weight.shape[1] % 32 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(weight), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def write_vocabulary(vocabulary: Vocabulary, out: Path, architecture: str = "llama") -> Path:
    """A GGUF file of the vocabulary alone."""
    writer = gguf.GGUFWriter(out, architecture)
    _add_vocabulary(writer, vocabulary)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return out


def interleave(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """What llama.cpp's converter does to q and k (`LlamaModel.permute`)."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


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
        case RopeScaling.LLAMA3 | RopeScaling.DIVISORS:
            writer.add_tensor("rope_freqs.weight", d.rope.frequency_divisors().astype(np.float32))
        case RopeScaling.LONGROPE:
            writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
            writer.add_rope_scaling_orig_ctx_len(d.rope.original_context)
            writer.add_rope_scaling_attn_factors(d.rope.attention_factor)
            writer.add_tensor("rope_factors_short.weight", np.array(d.rope.divisors, np.float32))
            writer.add_tensor("rope_factors_long.weight", np.array(d.rope.long_divisors, np.float32))


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([int(kind) for kind in vocabulary.types])
    if vocabulary.merges:
        writer.add_token_merges(list(vocabulary.merges))
    if vocabulary.scores:
        writer.add_token_scores(list(vocabulary.scores))
    for role, token in vocabulary.special.items():
        {"bos": writer.add_bos_token_id, "eos": writer.add_eos_token_id, "unknown": writer.add_unk_token_id,
         "padding": writer.add_pad_token_id}[role](token)  # fmt: skip
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    if vocabulary.model == "llama":
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)


def _weights(model: Checkpoint, family: Family) -> dict[str, NDArray[np.float32]]:
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
        named[_gguf_name(name, decoder, family)] = weight
    return named


def _gguf_name(name: str, decoder: Decoder, family: Family) -> str:
    """The package's own name for it; ours where the package has another or none (BitNet's norms and head)."""
    architecture = next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == family.gguf_architectures[0])
    names = gguf.get_tensor_name_map(architecture, decoder.layers)
    if found := names.get_name(name, try_suffixes=(".weight", ".bias")):
        return str(found)
    stem, _, kind = name.rpartition(".")
    ours = {c.format(n): g.format(n) for g, c in family.gguf_names.items() for n in range(decoder.layers)}
    return f"{ours[stem]}.{kind}"
