"""The neutral model written as GGUF, piece by piece: the metadata that llama.cpp's converter writes, without torch.

A GGUF source keeps its own metadata, tokenizer and chat template included, exactly as they stand; only types change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from edgecore.checkpoint import Checkpoint, GgufArray, RopeScaling, Tensor, half_rotation_order
from edgecore.checkpoint.families import Family, known
from edgecore.contract import (
    ConvertLimits,
    DoesNotFit,
    Fallback,
    Made,
    PayloadFile,
    Progress,
    UnsupportedModel,
    UnsupportedPrecision,
)
from edgecore_llamacpp import weights
from edgecore_llamacpp.disk import full_disk

MODEL = "model.gguf"
FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
PIECE = 1 << 22
"""Elements converted at once, so that memory does not grow with the tensor."""
REWRITTEN = ("general.file_type", "general.quantization_version", "general.alignment", "general.architecture")


def convert(model: Checkpoint, out: Path, precision: str, limits: ConvertLimits, progress: Progress) -> Made:
    """Writes `model.gguf` into `out`."""
    decoder = model.decoder
    if limits.max_context is not None and limits.max_context > decoder.context_length:
        raise DoesNotFit(
            f"a context of {limits.max_context} tokens; the model was trained for {decoder.context_length}",
            supported=f"up to {decoder.context_length} tokens",
        )
    plan = list(_plan(model, _family(model), Type[precision.upper()]))
    writer = gguf.GGUFWriter(None, _architecture(model))
    (_keep_metadata if model.source_format == "gguf" else _describe)(writer, model)
    writer.add_file_type(FILE_TYPES[precision])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for part in plan:
        writer.add_tensor_info(part.name, part.shape, np.dtype(np.float32), part.nbytes, part.type)
    file = out / MODEL
    with full_disk(file):
        _write(writer, file, plan, progress)
    lossy = [name for name in model.storage if name not in ("F32", "F16", "BF16")]
    return Made(
        files=(PayloadFile(MODEL, "model"),),
        weights=weights.measure(file, tuple(p.fallback for p in plan if p.fallback)),
        notes=(f"dequantized from {', '.join(lossy)}: what had been lost before is not restored",) if lossy else (),
        tools={"gguf": _version()},
    )


@dataclass(frozen=True)
class _Part:
    """One tensor to write."""

    name: str
    shape: tuple[int, ...]
    type: Type
    source: Tensor | NDArray[np.float32]
    order: NDArray[np.intp] | None = None
    """Which canonical row comes at each place of the file; None where they come as they are."""
    fallback: Fallback | None = None

    @cached_property
    def nbytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[self.type]
        return math.prod(self.shape) // block * size

    def pieces(self) -> Iterator[NDArray[Any]]:
        """The bytes in the file's order."""
        if not isinstance(self.source, Tensor):
            yield self.source
        elif self.order is not None or len(self.shape) == 1:
            whole = self.source.read()
            yield self._stored(whole if self.order is None else whole[self.order])
        else:
            step = max(1, PIECE // math.prod(self.shape[1:]))
            for start in range(0, self.shape[0], step):
                yield self._stored(self.source.rows(start, min(start + step, self.shape[0])))

    def _stored(self, values: NDArray[np.float32]) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            stored: NDArray[Any] = gguf.quants.quantize(np.ascontiguousarray(values), self.type)
        if self.type == Type.F16 and not np.isfinite(stored).all() and np.isfinite(values).all():
            raise UnsupportedPrecision(
                f"tensor {self.name!r} holds {np.abs(values).max():g}, which float16 cannot", supported="f32, bf16"
            )
        return stored


def _plan(model: Checkpoint, family: Family, wanted: Type) -> Iterator[_Part]:
    names = {canonical: name for name, canonical in family.gguf_names.items()}
    decoder = model.decoder
    for canonical, tensor in model.tensors.items():
        name = _gguf_name(canonical, names)
        order = None
        if family.interleaved and ".attn_q." in name:
            order = np.argsort(half_rotation_order(decoder.heads, decoder.head_dim))
        elif family.interleaved and ".attn_k." in name:
            order = np.argsort(half_rotation_order(decoder.kv_heads, decoder.head_dim))
        kind, fallback = (Type.F32, None) if len(tensor.shape) == 1 else _fitting(name, tensor.shape[-1], wanted)
        yield _Part(name, tensor.shape, kind, tensor, order, fallback)
    if decoder.rope.scaling in (RopeScaling.LLAMA3, RopeScaling.DIVISORS):
        divisors = decoder.rope.frequency_divisors().astype(np.float32)
        yield _Part("rope_freqs.weight", divisors.shape, Type.F32, divisors)


def _fitting(name: str, columns: int, wanted: Type) -> tuple[Type, Fallback | None]:
    """llama.cpp's converter: what does not divide into blocks becomes F16."""
    block = gguf.GGML_QUANT_SIZES[wanted][0]
    if columns % block == 0:
        return wanted, None
    return Type.F16, Fallback(name, "F16", f"rows of {columns} do not divide into {wanted.name} blocks of {block}")


def _gguf_name(canonical: str, names: Mapping[str, str]) -> str:
    stem, _, kind = canonical.rpartition(".")
    parts = stem.split(".")
    number = next((part for part in parts if part.isdecimal()), "")
    pattern = ".".join("{}" if part == number else part for part in parts)
    return f"{names[pattern].format(number)}.{kind}"


def _write(writer: Any, file: Path, plan: list[_Part], progress: Progress) -> None:
    """Header first, then each tensor as it is read. The library's `write_tensor_data` wants whole tensors and hides why
    a write failed, so the data is written here, into its file and with its padding."""
    total, done = sum(part.nbytes for part in plan), 0
    try:
        writer.write_header_to_file(file)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        stream = writer.fout[0]
        writer.write_padding(stream, stream.tell())
        for part in plan:
            for piece in part.pieces():
                progress(done, total, "writing")
                stream.write(np.ascontiguousarray(piece).data)
                done += piece.nbytes
            writer.write_padding(stream, part.nbytes)
        stream.flush()
    finally:
        writer.close()
    progress(total, total, "writing")


def _family(model: Checkpoint) -> Family:
    return next(family for family in known() if family.name == model.decoder.family)


def _architecture(model: Checkpoint) -> str:
    declared = model.metadata.get("general.architecture")
    return str(declared or _family(model).gguf_architectures[0])


def _keep_metadata(writer: Any, model: Checkpoint) -> None:
    for key, value in model.metadata.items():
        if key in REWRITTEN or key.startswith("split."):
            continue
        if isinstance(value, GgufArray):
            writer.add_key_value(key, value.read(), gguf.GGUFValueType.ARRAY, gguf.GGUFValueType(value.kind))
        else:
            writer.add_key_value(key, value, _scalar_type(key, value))


def _scalar_type(key: str, value: Any) -> gguf.GGUFValueType:
    """Widths are not kept by the reader; these are the converter's for every key that libllama reads."""
    if isinstance(value, bool):
        return gguf.GGUFValueType.BOOL
    if isinstance(value, str):
        return gguf.GGUFValueType.STRING
    if isinstance(value, float):
        return gguf.GGUFValueType.FLOAT32
    if not 0 <= value < 1 << 32:
        return gguf.GGUFValueType.INT64 if value < 0 else gguf.GGUFValueType.UINT64
    return gguf.GGUFValueType.UINT32


def _describe(writer: Any, model: Checkpoint) -> None:
    """What `convert_hf_to_gguf.py` writes for a decoder of this family."""
    decoder, tokenizer = model.decoder, model.tokenizer
    writer.add_type("model")
    writer.add_name(model.name)
    writer.add_size_label(gguf.size_label(model.parameters, 0, 0, 0))
    writer.add_block_count(decoder.layers)
    writer.add_context_length(decoder.context_length)
    writer.add_embedding_length(decoder.hidden_size)
    writer.add_feed_forward_length(decoder.intermediate_size)
    writer.add_head_count(decoder.heads)
    writer.add_head_count_kv(decoder.kv_heads)
    writer.add_rope_freq_base(decoder.rope.theta)
    writer.add_rope_dimension_count(decoder.rope.dim)
    if decoder.rope.scaling is RopeScaling.LINEAR:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(decoder.rope.factor)
    writer.add_layer_norm_rms_eps(decoder.norm_epsilon)
    writer.add_vocab_size(decoder.vocab_size)
    writer.add_key_length(decoder.head_dim)
    writer.add_value_length(decoder.head_dim)
    if not tokenizer.pre and tokenizer.model == "gpt2":
        raise UnsupportedModel(
            "llama.cpp has no name for this model's pre-tokenizer",
            supported="pre-tokenizers of models that llama.cpp knows",
            hint="edgecore plugin install llamacpp --export",
        )
    _describe_tokenizer(writer, model)


def _describe_tokenizer(writer: Any, model: Checkpoint) -> None:
    tokenizer, size = model.tokenizer, model.decoder.vocab_size
    missing = size - tokenizer.vocab_size
    if missing < 0:
        raise UnsupportedModel(f"the tokenizer has {tokenizer.vocab_size} tokens, the embedding table {size}")
    writer.add_tokenizer_model(tokenizer.model)
    writer.add_tokenizer_pre(tokenizer.pre or "default")
    writer.add_token_list([*tokenizer.tokens, *(f"[PAD{size - missing + i}]" for i in range(missing))])
    if tokenizer.scores:
        writer.add_token_scores([*tokenizer.scores, *([-10000.0] * missing)])
    writer.add_token_types([*map(int, tokenizer.types), *([int(gguf.TokenType.UNUSED)] * missing)])
    if tokenizer.merges:
        writer.add_token_merges(list(tokenizer.merges))
    add = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "unknown": writer.add_unk_token_id,
        "padding": writer.add_pad_token_id,
    }
    for role, token in tokenizer.special.items():
        add[role](token)
    writer.add_add_bos_token(tokenizer.add_bos)
    writer.add_add_eos_token(tokenizer.add_eos)
    if tokenizer.model == "llama":
        writer.add_add_space_prefix(tokenizer.add_space_prefix)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _version() -> str:
    from importlib.metadata import version

    return version("gguf")
