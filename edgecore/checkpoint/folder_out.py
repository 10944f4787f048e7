"""The way back: the neutral model as a Hugging Face folder, for transformers, llama.cpp's converter, MLX, and edgecore.

    with open_checkpoint(Path("model.gguf")) as model:
        write_folder(model, out, "bf16")

A plugin whose own format is such a folder with other weights takes `folder_config` and `write_tokenizer` from here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecore.checkpoint import ternary_out
from edgecore.checkpoint.decoder import Decoder
from edgecore.checkpoint.families import Family, family_of, known
from edgecore.checkpoint.safetensors_out import Entry, plain, write_safetensors
from edgecore.checkpoint.tensors import Tensor
from edgecore.checkpoint.tokenizer_out import has_tokenizer, special_ids, write_tokenizer
from edgecore.contract.artifacts import Made, PayloadFile, Weights
from edgecore.contract.errors import UnsupportedModel, UnsupportedPrecision
from edgecore.contract.progress import Progress, no_progress

if TYPE_CHECKING:
    from edgecore.checkpoint.opening import Checkpoint

DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
"""Our precisions by safetensors' names."""
TORCH = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_FLOATS = tuple(DTYPES.values())


def write_folder(
    model: Checkpoint, out: Path, precision: str = "f32", *, vectors: str = "f32", progress: Progress = no_progress
) -> Made:
    """Writes config.json, model.safetensors and the tokenizer's files into `out`, in the memory of a piece of a tensor.

    precision: of the matrices: `f32` (exact for every source), `f16` or `bf16`.
    vectors:   of norms, biases and BitNet's scales: `f32`, or `same` as the matrices.
    progress:  gets bytes written, and may raise to stop.
    Raises `UnsupportedPrecision` where a number does not fit, `UnsupportedModel` for what a config cannot say.
    """
    config = folder_config(model, precision)
    entries = folder_weights(model, precision, vectors)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (out / "config.json").write_text(text, encoding="utf-8")
    tokenizer_files = write_tokenizer(model, out)

    def report(done: int, total: int, stage: str = "") -> None:
        model.forget()  # what was written is not read again
        progress(done, total, stage)

    write_safetensors(out / "model.safetensors", entries, report)
    return Made(
        files=(
            PayloadFile("model.safetensors", "weights"),
            PayloadFile("config.json", "config"),
            *(PayloadFile(name, "tokenizer") for name in tokenizer_files),
        ),
        weights=_measured(model, entries),
        notes=tuple(_notes(model)),
    )


def folder_config(model: Checkpoint, precision: str = "f32") -> dict[str, Any]:
    """config.json: the decoder in its family's words, the tokenizer's special ids, the type of the weights."""
    if precision not in DTYPES:
        raise UnsupportedPrecision(f"{precision!r} in a Hugging Face folder", supported=", ".join(DTYPES))
    return decoder_config(model.decoder) | special_ids(model) | {"torch_dtype": TORCH[precision]}


def decoder_config(decoder: Decoder) -> dict[str, Any]:
    """The part that the decoder alone decides. Raises `UnsupportedModel` for what it cannot say."""
    to_config = family_of(decoder).to_config
    if to_config is None:
        raise UnsupportedModel(
            f"family {decoder.family!r} as a Hugging Face folder",
            supported=", ".join(f.name for f in known() if f.to_config),
        )
    return to_config(decoder)


def folder_weights(model: Checkpoint, precision: str = "f32", vectors: str = "f32") -> list[Entry]:
    """The tensors as the family's folders name and keep them: fused where they are, norms as they are stored."""
    family = family_of(model.decoder)
    of_fused = _fused_names(model.tensors, family)
    entries: list[Entry] = []
    for name, tensor in model.tensors.items():
        dtype = DTYPES[precision if len(tensor.shape) > 1 or vectors == "same" else "f32"]
        if name in of_fused:
            whole, parts = of_fused[name]
            if parts[0] == name:
                entries.append(plain(whole, [model.tensors[part] for part in parts], dtype))
        elif model.decoder.int8_activations and name.endswith("_proj.weight"):
            entries += ternary_out.finished(tensor, dtype, dtype if vectors == "same" else "F32")
        else:
            entries.append(plain(name, [tensor], dtype, family.norm_offset if name.endswith("norm.weight") else 0.0))
    return entries


def _fused_names(tensors: Mapping[str, Tensor], family: Family) -> dict[str, tuple[str, list[str]]]:
    """Each part of a fused tensor with the name of the whole and of all parts."""
    found: dict[str, tuple[str, list[str]]] = {}
    for name in tensors:
        for whole, parts in family.fused.items():
            at, part, kind = name.partition(parts[0])
            if part:
                names = [f"{at}{p}{kind}" for p in parts]
                found |= dict.fromkeys(names, (f"{at}{whole}{kind}", names))
    return found


def _notes(model: Checkpoint) -> list[str]:
    notes = []
    if lost := [kind for kind in model.storage if kind not in (*_FLOATS, "TERNARY")]:
        notes.append(f"dequantized from {', '.join(lost)}: what had been lost before is not restored")
    if not has_tokenizer(model):
        notes.append("the source has no tokenizer, so the folder has none")
    return notes


def _measured(model: Checkpoint, entries: list[Entry]) -> Weights:
    matrices = [entry.nbytes for entry in entries if len(entry.shape) > 1]
    eligible = sum(tensor.elements for tensor in model.tensors.values() if len(tensor.shape) > 1)
    return Weights(
        bits_per_weight=8 * sum(entry.nbytes for entry in entries) / model.parameters,
        eligible_bits_per_weight=8 * sum(matrices) / eligible,
        parameters=model.parameters,
    )
