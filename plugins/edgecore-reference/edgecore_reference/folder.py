"""Convert: the neutral model written as a Hugging Face folder, tensor by tensor.

The library's `save_file` wants all tensors in memory at once; a conversion must not need more than its largest tensor.
So the file is written here: eight bytes of length, the header as JSON, then the data in the header's order.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from edgecore.checkpoint import Checkpoint, Decoder, Tensor
from edgecore.contract import ConvertLimits, DoesNotFit, Made, PayloadFile, Progress, UnsupportedPrecision, Weights
from edgecore_reference.config import decoder_config, write_tokenizer

DTYPES: dict[str, tuple[str, Any]] = {
    "f32": ("F32", np.float32),
    "f16": ("F16", np.float16),
    "bf16": ("BF16", ml_dtypes.bfloat16),
}
"""Ours to safetensors' name and numpy's type."""
TORCH = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def write_folder(
    model: Checkpoint, out: Path, precision: str, vectors: str, limits: ConvertLimits, progress: Progress
) -> Made:
    """Everything that transformers needs to open the model, and this backend too."""
    check_context(model.decoder, limits)
    notes = []
    if packed := [name for name in model.storage if name not in ("F32", "F16", "BF16")]:
        notes.append(f"dequantized from {', '.join(packed)}: what had been lost before is not restored")
    config = decoder_config(model.decoder, model.tokenizer) | {"torch_dtype": TORCH[precision]}
    write_json(out / "config.json", config)
    tokenizer_files = write_tokenizer(model, out)
    types = {name: precision if len(t.shape) > 1 or vectors == "same" else "f32" for name, t in model.tensors.items()}
    write_tensors(model, out / "model.safetensors", types, progress)
    return Made(
        files=(
            PayloadFile("model.safetensors", "weights"),
            PayloadFile("config.json", "config"),
            *(PayloadFile(name, "tokenizer") for name in tokenizer_files),
        ),
        weights=measure(model, types),
        notes=tuple(notes),
    )


def check_context(decoder: Decoder, limits: ConvertLimits) -> None:
    if limits.max_context is not None and limits.max_context > decoder.context_length:
        raise DoesNotFit(
            f"a context of {limits.max_context} tokens; the model was trained for {decoder.context_length}",
            supported=f"up to {decoder.context_length} tokens",
        )


def write_tensors(model: Checkpoint, path: Path, types: dict[str, str], progress: Progress) -> None:
    """One safetensors file. Reports bytes written, which is also where a cancelled conversion stops."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in model.tensors.items():
        start, end = end, end + tensor_bytes(tensor, types[name])
        header[name] = {"dtype": DTYPES[types[name]][0], "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    done = 0
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in model.tensors.items():
            progress(done, end, "weights")
            stored = cast(tensor, types[name])
            file.write(stored.data)
            done += stored.nbytes
    progress(end, end, "weights")


def cast(tensor: Tensor, precision: str) -> np.ndarray:
    """The tensor in its new type. Raises `UnsupportedPrecision` where a number does not fit: float16 ends at 65504."""
    values = tensor.read()
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(values, dtype=DTYPES[precision][1])
    if precision == "f16" and not np.isfinite(stored).all() and np.isfinite(values).all():
        raise UnsupportedPrecision(
            f"tensor {tensor.name!r} holds {np.abs(values).max():g}, which float16 cannot",
            supported="f32, bf16",
        )
    return stored.view(np.uint8) if precision == "bf16" else stored


def tensor_bytes(tensor: Tensor, precision: str) -> int:
    return math.prod(tensor.shape) * int(np.dtype(DTYPES[precision][1]).itemsize)


def measure(model: Checkpoint, types: dict[str, str]) -> Weights:
    sizes = {name: (tensor.elements, tensor_bytes(tensor, types[name])) for name, tensor in model.tensors.items()}
    matrices = [sizes[name] for name, tensor in model.tensors.items() if len(tensor.shape) > 1]
    return Weights(
        bits_per_weight=bits(list(sizes.values())),
        eligible_bits_per_weight=bits(matrices),
        parameters=model.parameters,
    )


def bits(sizes: list[tuple[int, int]]) -> float:
    return 8 * sum(nbytes for _, nbytes in sizes) / sum(elements for elements, _ in sizes)


def write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
