"""Keys and values as `convert_hf_to_gguf.py` writes them for a decoder; of a GGUF source its own, as they stand."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from contextlib import suppress
from math import prod
from typing import Any

from edgecore.checkpoint import Checkpoint, Decoder, RopeScaling
from edgecore.checkpoint.families import family_of
from edgecore.checkpoint.families.gemma3 import PATTERN
from edgecore.checkpoint.fields import Fields
from edgecore.checkpoint.mapping import read_text
from edgecore.contract import CorruptModel
from edgecore_llamacpp import header
from edgecore_llamacpp.header import Kind
from edgecore_llamacpp.parts import Part
from edgecore_llamacpp.tokenizer_metadata import describe_tokenizer

FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
"""llama.cpp's `llama_ftype`."""
QUANTIZATION_VERSION = 2
LARGEST_CARD = 1 << 22
"""Bytes of a model card."""
REWRITTEN = ("general.file_type", "general.quantization_version", "general.alignment", "general.architecture")
SAYS_HEAD_LENGTH = ("llama", "mistral", "qwen3", "gemma3")
"""Families whose transformers config has a `head_dim` even where config.json has none: the converter asks that."""


def metadata_of(model: Checkpoint, precision: str, parts: Sequence[Part]) -> header.Metadata:
    """Raises `UnsupportedModel` for a tokenizer that llama.cpp has no name for."""
    metadata = header.Metadata(_architecture(model))
    metadata.put("general.architecture", metadata.architecture)
    if model.source_format == "gguf":
        _keep(metadata, model)
        metadata.put("general.file_type", FILE_TYPES[precision])
        metadata.put("general.quantization_version", QUANTIZATION_VERSION)
        return metadata
    if model.decoder.rope.scaling is RopeScaling.LONGROPE:
        metadata.put("{arch}.rope.scaling.attn_factor", model.decoder.rope.attention_factor)
    metadata.put("general.type", "model")
    _describe_origin(metadata, model, sum(prod(part.shape) for part in parts))
    describe_decoder(metadata, model, FILE_TYPES[precision])
    metadata.put("general.quantization_version", QUANTIZATION_VERSION)
    describe_tokenizer(metadata, model)
    return metadata


def _architecture(model: Checkpoint) -> str:
    declared = model.metadata.get("general.architecture") if model.source_format == "gguf" else None
    return str(declared or family_of(model.decoder).gguf_architectures[0])


def _keep(metadata: header.Metadata, model: Checkpoint) -> None:
    """Byte by byte: the types of its numbers are the writer's own affair."""
    kept = {k: v for k, v in model.metadata.items() if k not in REWRITTEN and not k.startswith("split.")}
    with model.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for key, stored in header.stored_values(mapped, kept).items():
            metadata.put_raw(key, stored)


def _describe_origin(metadata: header.Metadata, model: Checkpoint, parameters: int) -> None:
    """Name, authors, licence, recommended sampling: read by the `gguf` package out of the folder's name, its model card
    and its generation settings, as llama.cpp's converter does."""
    import gguf

    for name in ("README.md", "generation_config.json"):
        if (model.path / name).exists():
            read_text(model.path / name, LARGEST_CARD)  # the package asks neither how large a file is nor where it lies
    writer = gguf.GGUFWriter(None, metadata.architecture)
    try:
        card = gguf.Metadata.load(None, model.path, None, parameters)
        generation = gguf.Metadata.load_generation_config(model.path)
        if card.sampling_penalty_repeat is None and "repetition_penalty" in generation:
            card.sampling_penalty_repeat = generation["repetition_penalty"]  # later releases of the package read it
        card.name = card.name or model.path.name
        card.size_label = card.size_label or gguf.size_label(parameters, parameters, 0, 0)
        card.set_gguf_meta_model(writer)
    except Exception as error:  # whatever YAML and its guesses raise
        raise CorruptModel(f"{model.path}: the model card or generation_config.json cannot be read ({error})") from None
    for key, value in writer.kv_data[0].items():
        if key != "general.architecture":
            _take(metadata, key, value)


def _take(metadata: header.Metadata, key: str, value: Any) -> None:
    if value.type == Kind.ARRAY:
        texts = all(isinstance(item, str) for item in value.value)
        metadata.put_array(key, value.value, Kind.STRING if texts else Kind.INT32)
    else:
        with suppress(TypeError, ValueError, OverflowError, AttributeError):  # a card's number that is none
            metadata.put(key, value.value, Kind(value.type))


def describe_decoder(metadata: header.Metadata, model: Checkpoint, file_type: int) -> None:
    """The sizes and settings of the architecture, and among them, where the converter has it, the file's type."""
    decoder = model.decoder
    if decoder.family == "phi3":
        _describe_phi(metadata, model, file_type)
        return
    metadata.put("{arch}.block_count", decoder.layers)
    for key, value in _sizes(decoder).items():
        metadata.put(f"{{arch}}.{key}", value)
    if decoder.family != "bitnet":
        _describe_scaling(metadata, decoder)
    metadata.put("{arch}.rope.freq_base", decoder.rope.theta)
    if decoder.local_rope is not None:
        metadata.put("{arch}.rope.freq_base_swa", decoder.local_rope.theta)
    metadata.put("{arch}.attention.layer_norm_rms_epsilon", decoder.norm_epsilon)
    if decoder.family in SAYS_HEAD_LENGTH or model.metadata.get("head_dim") is not None:
        metadata.put("{arch}.attention.key_length", decoder.head_dim)
        metadata.put("{arch}.attention.value_length", decoder.head_dim)
    metadata.put("general.file_type", file_type)
    match decoder.family:
        case "gemma3":
            _describe_gemma(metadata, decoder)
        case "llama" | "mistral":
            metadata.put("{arch}.vocab_size", decoder.vocab_size)
            metadata.put("{arch}.rope.dimension_count", decoder.rope.dim)
        case "bitnet":
            metadata.put("{arch}.rope.scaling.type", "linear")
            metadata.put("{arch}.rope.scaling.factor", decoder.rope.factor)


def _sizes(decoder: Decoder) -> dict[str, int]:
    return {
        "context_length": decoder.context_length,
        "embedding_length": decoder.hidden_size,
        "feed_forward_length": decoder.intermediate_size,
        "attention.head_count": decoder.heads,
        "attention.head_count_kv": decoder.kv_heads,
    }


def _describe_scaling(metadata: header.Metadata, decoder: Decoder) -> None:
    if decoder.rope.scaling is RopeScaling.LINEAR:
        metadata.put("{arch}.rope.scaling.type", "linear")
        metadata.put("{arch}.rope.scaling.factor", decoder.rope.factor)


def _describe_gemma(metadata: header.Metadata, decoder: Decoder) -> None:
    if decoder.logit_softcap:
        metadata.put("{arch}.final_logit_softcapping", decoder.logit_softcap)
    if decoder.window:
        metadata.put("{arch}.attention.sliding_window", decoder.window)
        windowed = [bool(decoder.layer_window(layer)) for layer in range(decoder.layers)]
        if windowed != [(layer + 1) % PATTERN != 0 for layer in range(decoder.layers)]:
            # llama.cpp's converter leaves it out, and llama.cpp then takes every sixth layer for a full one.
            metadata.put_array("{arch}.attention.sliding_window_pattern", windowed, Kind.BOOL)


def _describe_phi(metadata: header.Metadata, model: Checkpoint, file_type: int) -> None:
    decoder = model.decoder
    sizes = _sizes(decoder)
    config = Fields(model.path / "config.json", model.metadata)
    original = decoder.rope.original_context
    if decoder.rope.scaling is not RopeScaling.LONGROPE:
        original = config.integer("original_max_position_embeddings", 4096)  # transformers' default
    metadata.put("{arch}.context_length", sizes.pop("context_length"))
    metadata.put("{arch}.rope.scaling.original_context_length", original)
    metadata.put("{arch}.embedding_length", sizes.pop("embedding_length"))
    metadata.put("{arch}.feed_forward_length", sizes.pop("feed_forward_length"))
    metadata.put("{arch}.block_count", decoder.layers)
    for key, value in sizes.items():
        metadata.put(f"{{arch}}.{key}", value)
    metadata.put("{arch}.attention.layer_norm_rms_epsilon", decoder.norm_epsilon)
    metadata.put("{arch}.rope.dimension_count", decoder.rope.dim)
    metadata.put("{arch}.rope.freq_base", decoder.rope.theta)
    _describe_scaling(metadata, decoder)
    metadata.put("general.file_type", file_type)
    metadata.put("{arch}.attention.sliding_window", decoder.window)
