"""A header may be well-formed and lie: every value of every family's config and GGUF metadata, replaced by each odd
one, is a model that can be described and read, or a typed error.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecore.checkpoint import open_checkpoint
from edgecore.checkpoint.families import known
from edgecore.checkpoint.gguf_file import GgufArray, read_gguf
from edgecore.contract.errors import CorruptModel, UnsupportedModel

from support.gguf_files import write_gguf

GOLDENS = Path(__file__).parent / "goldens"
FOLDERS = sorted(folder.parent for folder in GOLDENS.glob("*/config.json"))
INFINITY, NAN = float("inf"), float("nan")
ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 2**31 - 1, 2**31, 2**63, 10**400, -0.0, 0.5, 1e-300, 1e308, INFINITY, -1e300, NAN,
    "", "x", "\0", [], [0], [None], [-1, 0.5], [1e308] * 4, ["x"] * 2, {}, {"rope_type": "x"}, {"factor": NAN},
)  # fmt: skip
NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_config_with_any_value_replaced_is_described_or_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if file.name != "config.json" and not file.name.startswith("tokenizer"):
            shutil.copy(file, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    refused = opened = 0
    for lie in _lies(config):
        (tmp_path / "config.json").write_text(json.dumps(lie))
        if _is_described_or_refused(tmp_path):
            opened += 1
        else:
            refused += 1
    assert refused > 100
    assert opened > 20


def _lies(mapping: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The mapping with one value, at any depth, replaced."""
    for key, value in mapping.items():
        for odd in ODD:
            yield mapping | {key: odd}
        if isinstance(value, dict):
            yield from (mapping | {key: lie} for lie in _lies(value))
        elif isinstance(value, list) and value:
            yield from (mapping | {key: [odd, *value[1:]]} for odd in ODD)
            yield mapping | {key: value[:-1]}
            yield mapping | {key: value * 2}


@pytest.mark.parametrize("family", [family.name for family in known()])
def test_gguf_metadata_with_any_number_replaced_is_described_or_refused(family: str, tmp_path: Path) -> None:
    folder = next(f for f in FOLDERS if _family_of(f) == family)
    with open_checkpoint(folder) as model:
        file = write_gguf(model, tmp_path / "m.gguf", tokenizer=False)
    header, mapped = read_gguf(file)
    good = bytes(mapped)
    refused = opened = 0
    for at, code in _numbers(good, header.metadata):
        for odd in ODD:
            spoiled = _packed(code, odd)
            if spoiled is None or spoiled == good[at : at + len(spoiled)]:
                continue
            _patch(file, at, spoiled)
            if _is_described_or_refused(file):
                opened += 1
            else:
                refused += 1
            _patch(file, at, good[at : at + len(spoiled)])
    assert file.read_bytes() == good
    assert refused > 30
    assert opened > 5


def _family_of(folder: Path) -> str:
    with open_checkpoint(folder) as model:
        return model.decoder.family


def _numbers(data: bytes, metadata: dict[str, Any]) -> Iterator[tuple[int, str]]:
    """Where the values of the metadata stand, and how; of an array its first."""
    for key, value in metadata.items():
        if isinstance(value, GgufArray):
            if value.kind in NUMBERS and value.count:
                yield value.start, NUMBERS[value.kind]
        elif not isinstance(value, str):
            at = data.index(struct.pack("<Q", len(key)) + key.encode()) + 8 + len(key)
            yield at + 4, NUMBERS[struct.unpack_from("<I", data, at)[0]]


def _packed(code: str, value: Any) -> bytes | None:
    try:
        return struct.pack(code, value)
    except (struct.error, OverflowError):
        return None


def _patch(file: Path, at: int, data: bytes) -> None:
    with file.open("r+b") as handle:
        handle.seek(at)
        handle.write(data)


def _is_described_or_refused(path: Path) -> bool:
    """Whether it opens; then every weight can be read. Raises what is neither that nor a typed error of its file."""
    try:
        with open_checkpoint(path) as model:
            assert np.isfinite(model.decoder.rope.frequencies()).all()
            for tensor in model.tensors.values():
                tensor.rows(0, 1)
            return True
    except (CorruptModel, UnsupportedModel) as error:
        refused = error.what
    assert refused.startswith(str(path)), refused
    assert len(refused) < 2000
    return False
