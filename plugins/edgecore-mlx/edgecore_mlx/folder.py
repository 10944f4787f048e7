"""The folder that mlx_lm opens as it is: reading it without loading it, and writing it in the memory of one piece.

    model.safetensors, or model-00001-of-0000N.safetensors         the weights, as Hugging Face's folders name them
    model.safetensors.index.json                                   which file has which; mlx_lm writes it always
    config.json                                                    Hugging Face's, and how matrices are packed
    tokenizer.json or tokenizer.model, and their like, generation_config.json, chat_template.jinja

Folders that mlx_lm wrote have the same names, so both are opened by the same functions. packing.py has the packing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint import Checkpoint, Tensor, write_safetensors
from edgecore.checkpoint.beside import BESIDE, CONFIG, GENERATION, open_tokenizer, text_config, trained_context
from edgecore.checkpoint.beside import write_beside as write_text
from edgecore.checkpoint.chat_source import optional_json
from edgecore.checkpoint.families import known
from edgecore.checkpoint.fields import Fields, short
from edgecore.checkpoint.mapping import read_text
from edgecore.checkpoint.safetensors_file import INDEX, LONGEST_INDEX, parse_index, read_file
from edgecore.checkpoint.safetensors_file import SINGLE as MODEL
from edgecore.checkpoint.safetensors_out import Entry
from edgecore.checkpoint.tokenizer_out import has_tokenizer
from edgecore.contract import CorruptModel, ModelNotFound, PayloadFile, Progress, UnsupportedModel, full_disk
from edgecore_mlx.packing import Quantization, quantization, with_quantization

__all__ = [
    "CONFIG", "INDEX", "MODEL", "Quantization", "open_tokenizer", "quantization", "text_config", "trained_context",
    "with_quantization",
]  # fmt: skip
SHARD = 5 << 30
"""Bytes of a file of weights: mlx_lm's limit. A larger tensor has a file of its own."""
NO_TOKENIZER = "the source has no tokenizer: the folder takes and gives token ids, no text, and mlx_lm does not load it"
_NUMPY: dict[str, Any] = {
    "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64, "C64": np.complex64,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "I64": np.int64, "I32": np.int32,
    "I16": np.int16, "I8": np.int8, "BOOL": np.bool_, "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2, "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stored:
    """One array of a folder as it lies there, left in its file until someone reads it."""

    tensor: Tensor

    @property
    def name(self) -> str:
        return self.tensor.name

    @property
    def dtype(self) -> str:
        """safetensors' name of the type: `F16`, `U32`."""
        return self.tensor.storage

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    def read(self) -> NDArray[Any]:
        """A read-only view of the file, of its own type. Raises `CorruptModel` for NaN and infinity."""
        if self.tensor.type.readable:
            self.tensor.check_finite(self.tensor.data)
        view: NDArray[Any] = self.tensor.data.view(_NUMPY[self.dtype])
        return view.reshape(self.shape)


def check_folder(folder: Path) -> None:
    """Whether the folder is whole and needs no code of its own, told from its headers.

    Raises `ModelNotFound`, `CorruptModel`, `UnsupportedModel`.
    """
    tensors(folder)
    config = text_config(folder)
    if not config.values:
        raise ModelNotFound(f"{folder}: has no {CONFIG}", supported="a folder that mlx_lm wrote, or edgecore")
    _check_code(config)


def tensors(folder: Path) -> dict[str, Stored]:
    """Every array of the folder by the name that it has there.

    As mlx_lm reads: all of model*.safetensors. An index beside them must say the same, since everybody else reads by
    it. Raises `ModelNotFound` without any, `CorruptModel`.
    """
    index, files = folder / INDEX, sorted(file.name for file in folder.glob("model*.safetensors"))
    weight_map = parse_index(index, read_text(index, LONGEST_INDEX)) if index.is_file() else {}
    if missing := sorted(set(weight_map.values()) - set(files)):
        raise CorruptModel(f"{index}: field 'weight_map': {folder / missing[0]}: no such file")
    if not files:
        raise ModelNotFound(f"{folder}: no weights", supported=f"{MODEL}, or {INDEX} with its shards")
    found: dict[str, Stored] = {}
    for file in files:
        there, _ = read_file(folder / file, folder)
        for name, tensor in there.items():
            if name in found:
                raise CorruptModel(f"{folder / file}: tensor {short(name)}: stands in another file too")
            if weight_map and weight_map.get(name) != file:
                said = weight_map.get(name)
                where = f"{INDEX} says it is in {said}" if said else f"{INDEX} does not name it"
                raise CorruptModel(f"{folder / file}: tensor {short(name)}: {where}")
            found[name] = Stored(tensor)
    if lost := next((name for name in weight_map if name not in found), None):
        raise CorruptModel(f"{folder / weight_map[lost]}: tensor {short(lost)}: missing, though {INDEX} names it")
    return found


def write(
    out: Path, entries: Iterable[Entry], config: Mapping[str, Any], parameters: int, progress: Progress,
    limit: int = SHARD,
) -> list[PayloadFile]:  # fmt: skip
    """The weights, the index and config.json.

    parameters: weights as numbers, packed or not; the index says it as mlx_lm's does.
    progress:   gets bytes written of all files, and may raise to stop.
    limit:      bytes of a file of weights.
    Raises as the entries do, `DoesNotFit` for a full disk; what was written is gone then.
    """
    shards = list(_shards(entries, limit))
    names = (
        [MODEL] if len(shards) == 1 else [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in _from_1(shards)]
    )
    total = sum(entry.nbytes for shard in shards for entry in shard)
    weight_map = {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard}
    metadata = {"total_size": total, "total_parameters": parameters}
    index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    start = 0
    try:
        with full_disk(out):
            for name, shard in zip(names, shards, strict=True):
                write_safetensors(out / name, shard, _shifted(progress, start, total), "mlx")
                start += sum(entry.nbytes for entry in shard)
            for name, values in ((INDEX, index), (CONFIG, dict(sorted(config.items())))):
                (out / name).write_text(json.dumps(values, indent=4), encoding="utf-8")
    except BaseException:  # cancelled or failed: half a file is worse than none
        for name in (*names, INDEX, CONFIG):
            (out / name).unlink(missing_ok=True)
        raise
    return payload([*names, INDEX, CONFIG])


def write_beside(model: Checkpoint, out: Path) -> tuple[list[PayloadFile], list[str]]:
    """Everything that `write` does not, and what a person should know about it."""
    names = write_text(model, out)
    return payload(names), [] if has_tokenizer(model) else [NO_TOKENIZER]


def copy_beside(source: Path, out: Path) -> list[PayloadFile]:
    """The same files from one folder into another, for what changes weights only."""
    names = [name for name in BESIDE if (source / name).is_file()]
    for name in names:
        shutil.copyfile(source / name, out / name)
    return payload(names)


def payload(names: Iterable[str]) -> list[PayloadFile]:
    """Files of the folder with their roles. None is the model: what is opened is the folder."""
    return [PayloadFile(name, _role(name)) for name in dict.fromkeys(names)]


def _role(name: str) -> str:
    if name.endswith(".safetensors"):
        return "weights"
    if name in (INDEX, CONFIG, GENERATION):
        return "config"
    return "tokenizer" if name in BESIDE else "other"


def _check_code(config: Fields) -> None:
    """Code that came with the folder is never run; it is in the way where nobody else's would do."""
    if config.has("model_file"):
        raise UnsupportedModel(
            f"{config.file}: field 'model_file': {short(config.values['model_file'])} is code that came with the "
            "model, which is never run",
            supported="architectures that edgecore or mlx_lm computes",
        )
    kind = config.text("model_type", "")
    if any(kind in family.model_types for family in known()):
        return
    tokenizer = optional_json(config.file.parent / "tokenizer_config.json")
    for fields in (config, tokenizer):
        if fields.has("auto_map") and not mlx_lm_has(kind):
            raise UnsupportedModel(
                f"{fields.file}: field 'auto_map': {kind!r} needs code of its own, which is never run",
                supported="architectures that edgecore or mlx_lm computes",
            )


def mlx_lm_has(model_type: str) -> bool:
    """Whether mlx_lm has a module for an architecture, looked up without importing any of it."""
    from importlib.util import find_spec

    spec = find_spec("mlx_lm")
    where = spec.submodule_search_locations if spec else None
    return model_type.isidentifier() and any((Path(at) / "models" / f"{model_type}.py").is_file() for at in where or ())


def _shards(entries: Iterable[Entry], limit: int) -> Iterator[list[Entry]]:
    shard: list[Entry] = []
    size = 0
    for entry in entries:
        if shard and size + entry.nbytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(entry)
        size += entry.nbytes
    yield shard


def _from_1(items: Sequence[object]) -> range:
    return range(1, len(items) + 1)


def _shifted(progress: Progress, start: int, all_files: int) -> Progress:
    def report(done: int, total: int, stage: str = "") -> None:
        progress(start + done, all_files, stage)

    return report
