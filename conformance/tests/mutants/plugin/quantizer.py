"""A small truthful plugin that quantizes, because the reference has no precision of the kind: plain round-to-nearest
in llama.cpp's blocks (q8_0, q4_0), by the gguf package, computed by the reference on the dequantized weights.

An artifact is a Hugging Face folder as the reference writes it; a quantized one keeps its matrices as blocks in
quantized.safetensors, and says in quantized.json of which type.
"""

import json
import math
import shutil
from dataclasses import replace

import numpy as np

from edgecore.checkpoint import Checkpoint, open_checkpoint, write_folder, write_safetensors
from edgecore.checkpoint.families import known
from edgecore.checkpoint.fields import Fields
from edgecore.checkpoint.safetensors_file import parse_json, read_file
from edgecore.checkpoint.safetensors_out import array
from edgecore.checkpoint.storage import GGML
from edgecore.contract import (
    CorruptModel,
    DeviceUnavailable,
    DoesNotFit,
    Made,
    PayloadFile,
    UnsupportedModel,
    UnsupportedPrecision,
    Weights,
    hookimpl,
)
from edgecore_reference.hooks import edgecore_probe

__all__ = [
    "edgecore_convert",
    "edgecore_probe",
    "edgecore_quantize",
    "edgecore_run",
    "edgecore_weights",
    "matrix_bytes",
    "opened",
]
TYPES = {"q8_0": "Q8_0", "q4_0": "Q4_0"}
DATA, TYPE = "quantized.safetensors", "quantized.json"


@hookimpl
def edgecore_convert(source, out, format, precision, options, limits, progress):
    if format != "rounded":
        raise UnsupportedModel(f"format {format!r}", supported="rounded")
    if precision != "f16":
        raise UnsupportedPrecision(f"{precision!r} is not made by convert", supported="f16, and q8_0, q4_0 by quantize")
    if source.is_file():
        raise UnsupportedModel(f"{source}: a file", supported="a Hugging Face folder")
    with open_checkpoint(source) as model:
        if model.decoder.family != "llama":
            raise UnsupportedModel(f"family {model.decoder.family!r}", supported="llama")
        if limits.max_context is not None and limits.max_context > model.decoder.context_length:
            raise DoesNotFit(f"a context of {limits.max_context} tokens")
        return write_folder(model, out, precision, progress=progress)


@hookimpl
def edgecore_quantize(artifact, out, precision, calibration, options, progress):
    if precision not in TYPES:
        raise UnsupportedPrecision(f"{precision!r} is not made by quantize", supported=", ".join(TYPES))
    if (artifact.path / DATA).exists():
        raise UnsupportedPrecision("an artifact that is quantized already", supported="one of precision f16")
    with open_checkpoint(artifact.path) as model:
        entries, done, total = [], 0, sum(t.elements for t in model.tensors.values())
        for name, tensor in model.tensors.items():
            progress(done, total, "weights")
            values = tensor.read()
            matrix = values.ndim > 1
            entries.append(array(name, "U8", matrix_bytes(values, precision)) if matrix else array(name, "F32", values))
            done += tensor.elements
        progress(total, total, "weights")
        bits = 8 * sum(e.nbytes for e in entries) / model.parameters
        matrices = [e for e in entries if e.dtype == "U8"]
        elements = sum(t.elements for t in model.tensors.values() if len(t.shape) > 1)
        weights = Weights(bits, 8 * sum(e.nbytes for e in matrices) / elements, model.parameters)
    files = [PayloadFile(DATA, "weights"), PayloadFile(TYPE, "config")]
    for file in artifact.files:
        if file.role in ("config", "tokenizer"):
            shutil.copyfile(artifact.path / file.path, out / file.path)
            files.append(file)
    (out / TYPE).write_text(json.dumps({"type": TYPES[precision]}))
    write_safetensors(out / DATA, entries)
    return Made(tuple(files), weights)


def matrix_bytes(values, precision):
    """uint8 (rows, bytes a row): blocks of 32 with one scale each, to the nearest."""
    from gguf import GGMLQuantizationType, quants  # it loads sentencepiece, which no import of the hooks may

    packed = quants.quantize(np.ascontiguousarray(values), GGMLQuantizationType[TYPES[precision]])
    return np.asarray(packed, np.uint8).reshape(len(values), -1)


@hookimpl
def edgecore_run(artifact, device, context_length, threads, options):
    from edgecore_reference.text import OracleSession

    if device != "cpu":
        raise DeviceUnavailable(f"there is no device {device!r}", supported="cpu")
    return OracleSession(opened(artifact.path), context_length=context_length, threads=threads, resident=True, chunk=64)


@hookimpl
def edgecore_weights(artifact):
    from edgecore_reference.text import Weights as Lazy

    return Lazy(opened(artifact.path))


def opened(folder):
    """The artifact as a neutral model, its matrices as blocks."""
    if not (folder / DATA).exists():
        return open_checkpoint(folder)
    file = folder / "config.json"
    config = Fields(file, parse_json(file, file.read_text(encoding="utf-8")))
    decoder = next(f for f in known() if config.text("model_type") in f.model_types).from_config(config)
    kind = next(s for s in GGML.values() if s.name == parse_json(folder / TYPE, (folder / TYPE).read_text())["type"])
    stored, mapped = read_file(folder / DATA)
    tensors = {}
    for name, shape in decoder.shapes().items():
        tensor = stored.get(name)
        size = math.prod(shape[:-1]) * kind.row_bytes(shape[-1]) if len(shape) > 1 else 4 * shape[0]
        if tensor is None or tensor.nbytes != size:
            raise CorruptModel(f"{folder / DATA}: tensor {name!r}: is missing, or of another size")
        tensors[name] = replace(tensor, shape=shape, type=kind) if len(shape) > 1 else tensor
    return Checkpoint(folder, "huggingface", folder.name, decoder, tensors, config.values, [mapped])
