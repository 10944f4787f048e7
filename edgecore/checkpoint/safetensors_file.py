"""Reading safetensors headers, ours rather than the library's because its numpy door copies each tensor, knows no
mapped bfloat16, and names neither file nor field when a header is wrong.

Format: https://github.com/huggingface/safetensors#format. Eight bytes of length, that much JSON, the data.
"""

from __future__ import annotations

import json
import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np

from edgecore.checkpoint.mapping import map_file, read_text
from edgecore.checkpoint.storage import SAFETENSORS
from edgecore.checkpoint.tensors import Tensor
from edgecore.contract.errors import CorruptModel, ModelNotFound, UnsupportedModel

LONGEST_HEADER = 100_000_000
"""Bytes: the library's own limit."""
LONGEST_JSON = 100_000_000
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_folder(folder: Path) -> tuple[dict[str, Tensor], list[mmap.mmap]]:
    """Every tensor of a folder by its own name, and the mappings they lie in."""
    if (folder / INDEX).is_file():
        return _read_sharded(folder)
    if (folder / SINGLE).is_file():
        tensors, mapped = read_file(folder / SINGLE)
        return tensors, [mapped]
    raise ModelNotFound(f"{folder}: no weights", supported=f"{SINGLE}, or {INDEX} with its shards")


def read_file(file: Path) -> tuple[dict[str, Tensor], mmap.mmap]:
    """The tensors of one file. Raises `CorruptModel`, `UnsupportedModel`."""
    mapped = map_file(file)
    length = int.from_bytes(mapped[:8], "little")
    if len(mapped) < 8 or not 2 <= length <= min(LONGEST_HEADER, len(mapped) - 8):
        raise CorruptModel(f"{file}: field 'header length': {length} bytes in a file of {len(mapped)}")
    header = parse_json(file, mapped[8 : 8 + length].decode("utf-8", "surrogateescape"))
    header.pop("__metadata__", None)
    body = np.frombuffer(mapped, np.uint8)[8 + length :]
    tensors: dict[str, Tensor] = {}
    end_of_last = 0
    for name, (storage, shape, start, end) in sorted(
        ((name, _entry(file, name, entry)) for name, entry in header.items()), key=lambda pair: pair[1][2]
    ):
        if start < end_of_last:
            raise CorruptModel(f"{file}: tensor {name!r}: offset {start} lies inside the tensor before it")
        if end > len(body):
            raise CorruptModel(f"{file}: tensor {name!r}: ends at {end}, the data at {len(body)}: it was cut short")
        end_of_last = end
        tensors[name] = Tensor(name, shape, SAFETENSORS[storage], body[start:end])
    return tensors, mapped


def parse_json(file: Path, text: str) -> dict[str, Any]:
    """A JSON object. Raises `CorruptModel` when it is none, nests too deeply or has a key twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            twice = next(key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1)
            raise CorruptModel(f"{file}: field {twice!r}: stands twice")
        return made

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CorruptModel(f"{file}: is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise CorruptModel(f"{file}: is not a JSON object")
    return value


def _entry(file: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Type, shape, start and end of one header entry, each believed only after a look at the others."""
    what = f"{file}: tensor {name!r}"
    if not isinstance(entry, dict):
        raise CorruptModel(f"{what}: is not an object")
    storage: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if not isinstance(storage, str) or storage not in SAFETENSORS:
        raise UnsupportedModel(f"{what}: dtype {storage!r}", supported=", ".join(SAFETENSORS))
    if not _whole_numbers(shape) or len(shape) > 8 or 0 in shape:
        raise CorruptModel(f"{what}: shape {shape!r} is no list of up to 8 positive whole numbers")
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise CorruptModel(f"{what}: data_offsets {offsets!r} is no pair of whole numbers")
    size = math.prod(shape) * SAFETENSORS[storage].size
    if offsets[1] - offsets[0] != size:
        raise CorruptModel(
            f"{what}: data_offsets {offsets} hold {offsets[1] - offsets[0]} bytes, the shape needs {size}"
        )
    return storage, tuple(shape) or (1,), offsets[0], offsets[1]


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value)


def _is_plain_name(name: str) -> bool:
    """No path, on any system: it must not lead out of the folder."""
    return name not in ("", ".", "..") and not any(c in name for c in "/\\:\0")


def _read_sharded(folder: Path) -> tuple[dict[str, Tensor], list[mmap.mmap]]:
    index = folder / INDEX
    weight_map = parse_json(index, read_text(index, LONGEST_JSON)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptModel(f"{index}: field 'weight_map': is no object of tensors and their files")
    found: dict[str, Tensor] = {}
    mappings: list[mmap.mmap] = []
    shards: dict[str, dict[str, Tensor]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain_name(shard):
            raise CorruptModel(f"{index}: field 'weight_map': {shard!r} is not the name of a file in this folder")
        if shard not in shards:
            if not (folder / shard).is_file():
                raise CorruptModel(f"{index}: field 'weight_map': {shard!r} is not in the folder")
            shards[shard], mapped = read_file(folder / shard)
            mappings.append(mapped)
        if name not in shards[shard]:
            raise CorruptModel(f"{folder / shard}: tensor {name!r}: missing, though {INDEX} says it is here")
        found[name] = shards[shard][name]
    return found, mappings
