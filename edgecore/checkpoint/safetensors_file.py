"""Reading safetensors headers, ours rather than the library's because its numpy door copies each tensor, knows no
mapped bfloat16, and names neither file nor field when a header is wrong.

Format: https://github.com/huggingface/safetensors#format. Eight bytes of length, that much JSON, the data. What the
library refuses is refused; a test compares the two.
"""

from __future__ import annotations

import json
import math
import mmap
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from edgecore.checkpoint.fields import short
from edgecore.checkpoint.mapping import map_file, read_text
from edgecore.checkpoint.storage import SAFETENSORS, Bytes
from edgecore.checkpoint.tensors import Tensor
from edgecore.contract.errors import CorruptModel, ModelNotFound, UnsupportedModel

LONGEST_HEADER = 1 << 23
"""Bytes. The library takes 100 MB, which may become 2.5 GB in Python; the largest of these families has 0.1 MB."""
LONGEST_INDEX = 1 << 23
"""Bytes of the shard index."""
MOST_TENSORS = 1 << 16
"""Tensors in a folder. The largest of these families has 2,000."""
MOST_AXES = 8
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_folder(folder: Path) -> tuple[dict[str, Tensor], list[mmap.mmap]]:
    """Every tensor of a folder by its own name, and the mappings they lie in."""
    # As transformers looks: an index may be left over beside a file that holds all.
    if (folder / INDEX).is_file() and not (folder / SINGLE).is_file():
        return _read_sharded(folder)
    if (folder / SINGLE).is_file():
        tensors, mapped = read_file(folder / SINGLE, folder)
        return tensors, [mapped]
    raise ModelNotFound(f"{folder}: no weights", supported=f"{SINGLE}, or {INDEX} with its shards")


def read_file(file: Path, within: Path | None = None) -> tuple[dict[str, Tensor], mmap.mmap]:
    """The tensors of one file, and the mapping that they lie in. Raises `CorruptModel`, `UnsupportedModel`."""
    mapped = map_file(file, within)
    return parse_safetensors(file, mapped), mapped


def parse_safetensors(file: Path, data: mmap.mmap | bytes) -> dict[str, Tensor]:
    """The tensors in `data`, views of it, in the order of their bytes; `file` is what errors name.

    The data must be covered without holes, as the format asks. Raises `CorruptModel`, `UnsupportedModel`.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= length <= len(data) - 8:
        raise CorruptModel(f"{file}: field 'header length': {length} bytes in a file of {len(data)}")
    if length > LONGEST_HEADER:
        raise UnsupportedModel(
            f"{file}: field 'header length': {length} bytes", supported=f"headers up to {LONGEST_HEADER} bytes"
        )
    header = parse_json(file, _header_text(file, data[8 : 8 + length]))
    if (metadata := header.pop("__metadata__", None)) is not None:  # MLX writes null
        _check_metadata(file, metadata)
    if len(header) > MOST_TENSORS:
        raise UnsupportedModel(f"{file}: {len(header)} tensors", supported=f"up to {MOST_TENSORS}")
    body = np.frombuffer(data, np.uint8)[8 + length :]
    tensors = [_tensor(file, name, entry, body) for name, entry in header.items()]
    tensors.sort(key=lambda pair: pair[0])
    end_of_last = 0
    for start, tensor in tensors:
        if start != end_of_last:
            where = "inside the tensor before it" if start < end_of_last else f"after a hole from {end_of_last}"
            raise CorruptModel(f"{file}: tensor {short(tensor.name)}: field 'data_offsets': {start} lies {where}")
        end_of_last = start + tensor.nbytes
    if end_of_last != len(body):
        raise CorruptModel(f"{file}: {len(body) - end_of_last} bytes behind the last tensor belong to none")
    return {tensor.name: tensor for _, tensor in tensors}


def parse_json(file: Path, text: str) -> dict[str, Any]:
    """A JSON object. Raises `CorruptModel` when it is none, nests too deeply, has a key twice or half a character."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
            raise CorruptModel(f"{file}: field {short(twice)}: stands twice")
        return made

    try:
        value = json.loads(text, object_pairs_hook=unique)
        if "\\ud" in text or "\\uD" in text:
            # An escape may be half of a surrogate pair: Python takes it, and fails when the text is written somewhere.
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise CorruptModel(f"{file}: is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise CorruptModel(f"{file}: is not a JSON object")
    return value


def _header_text(file: Path, header: bytes) -> str:
    if not header.startswith(b"{"):
        raise CorruptModel(f"{file}: the header is not a JSON object: it begins with {header[:1]!r}")
    try:
        return header.decode()
    except UnicodeDecodeError as error:
        raise CorruptModel(f"{file}: the header is not UTF-8 ({error})") from None


def _check_metadata(file: Path, metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CorruptModel(f"{file}: field '__metadata__': {short(metadata)} is no object of texts")


def _tensor(file: Path, name: str, entry: Any, body: Bytes) -> tuple[int, Tensor]:
    """Where a tensor starts, and the tensor; each field is believed only after a look at the others."""
    what = f"{file}: tensor {short(name)}"
    if not isinstance(entry, dict):
        raise CorruptModel(f"{what}: is not an object")
    storage: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if not isinstance(storage, str) or storage not in SAFETENSORS:
        raise UnsupportedModel(f"{what}: field 'dtype': {short(storage)}", supported=", ".join(SAFETENSORS))
    if not _whole_numbers(shape) or len(shape) > MOST_AXES or 0 in shape:
        raise CorruptModel(f"{what}: field 'shape': {short(shape)} is no list of up to {MOST_AXES} positive numbers")
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise CorruptModel(f"{what}: field 'data_offsets': {short(offsets)} is no pair of whole numbers")
    start, end = offsets
    size = math.prod(shape) * SAFETENSORS[storage].size
    if end > len(body):
        raise CorruptModel(
            f"{what}: field 'data_offsets': ends at {end}, the data at {len(body)}: the file was cut short"
        )
    if end - start != size:
        raise CorruptModel(
            f"{what}: field 'data_offsets': {offsets} hold {end - start} bytes, the shape {shape} of {storage} "
            f"needs {size}"
        )
    return start, Tensor(name, tuple(shape) or (1,), SAFETENSORS[storage], body[start:end], file=file)


def _whole_numbers(value: Any) -> bool:
    """Whether it is a list of numbers that 64 bits hold: larger ones multiply to what cannot even be printed."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 64 for n in value)


def _is_plain_name(name: str) -> bool:
    """No path, on any system: it must not lead out of the folder. And nothing that a terminal would act on."""
    return name not in ("", ".", "..") and name.isprintable() and not any(c in name for c in "/\\:")


def parse_index(index: Path, text: str) -> dict[str, str]:
    """The shard of each tensor, as model.safetensors.index.json says it. Raises `CorruptModel`."""
    weight_map = parse_json(index, text).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptModel(f"{index}: field 'weight_map': is no object of tensors and their files")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not _is_plain_name(shard):
            raise CorruptModel(f"{index}: field 'weight_map': {short(shard)} is not the name of a file in this folder")
    return weight_map


def _read_sharded(folder: Path) -> tuple[dict[str, Tensor], list[mmap.mmap]]:
    index = folder / INDEX
    weight_map = parse_index(index, read_text(index, LONGEST_INDEX))
    shards: dict[str, dict[str, Tensor]] = {}
    mappings: list[mmap.mmap] = []
    count = 0
    for shard in dict.fromkeys(weight_map.values()):
        try:
            shards[shard], mapped = read_file(folder / shard, folder)
        except ModelNotFound as error:
            raise CorruptModel(f"{index}: field 'weight_map': {error.what}") from None
        mappings.append(mapped)
        # Of all shards together: a thousand links may lead to one file.
        if (count := count + len(shards[shard])) > MOST_TENSORS:
            raise UnsupportedModel(f"{index}: {count} tensors in its shards", supported=f"up to {MOST_TENSORS}")
    found: dict[str, Tensor] = {}
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            raise CorruptModel(f"{folder / shard}: tensor {short(name)}: missing, though {INDEX} says it is here")
        found[name] = shards[shard][name]
    return found, mappings
