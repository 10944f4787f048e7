"""Any file from the internet may be opened: what is wrong with it is a typed error that names file and field."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgecore.checkpoint import open_checkpoint
from edgecore.checkpoint.fields import Fields
from edgecore.checkpoint.gguf_file import parse_gguf
from edgecore.checkpoint.safetensors_file import parse_safetensors
from edgecore.contract.errors import CorruptModel, EdgecoreError, ModelNotFound, UnsupportedModel

from support.gguf_files import write_gguf
from support.tiny import tiny_llama


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("small"), layers=1, hidden=64, intermediate=64, vocab=280)


@pytest.fixture(scope="module")
def good_gguf(small: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    with open_checkpoint(small) as model:
        return write_gguf(model, tmp_path_factory.mktemp("g") / "m.gguf", "Q8_0").read_bytes()


def _gguf(entries: list[bytes] = [], tensors: list[bytes] = [], counts: tuple[int, int] | None = None) -> bytes:  # noqa: B006
    n_tensors, n_entries = counts or (len(tensors), len(entries))
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_entries) + b"".join(entries) + b"".join(tensors)


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _entry(key: str, kind: int, value: bytes) -> bytes:
    return _text(key) + struct.pack("<I", kind) + value


def _tensor(name: str, shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"GG", "magic"),
        (b"GGML" + bytes(100), "magic"),
        (b"GGUF", "version"),
        (b"GGUF" + struct.pack("<I", 99) + bytes(64), "version"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(64), "big-endian"),
        (_gguf(counts=(1 << 60, 0)), "tensor_count"),
        (_gguf(counts=(0, 1 << 60)), "metadata_kv_count"),
        (_gguf(counts=(0, 900)), "metadata_kv_count"),
        (_gguf([struct.pack("<Q", 1 << 62) + bytes(8)]), "key 0"),
        (_gguf([_text("\n") + b"\xff" * 4 + bytes(20)]), "value type"),
        (_gguf([struct.pack("<Q", 2) + b"\xff\xfe" + bytes(30)]), "UTF-8"),
        (_gguf([_entry("k", 8, struct.pack("<Q", 1 << 62))]), "'k'"),
        (_gguf([_entry("k", 9, struct.pack("<IQ", 4, 1 << 61))]), "'k'"),
        (_gguf([_entry("k", 9, struct.pack("<IQ", 8, 1 << 23))]), "'k'"),
        (_gguf([_entry("k", 9, struct.pack("<IQ", 9, 1)) + bytes(16)]), "an array of value type 9"),
        (_gguf([_entry("k", 4, bytes(4))] * 2), "'k': stands twice"),
        (_gguf([_entry("k", 9, struct.pack("<IQ", 0, (1 << 22) + 1))]), "more than the 4194304"),
        (_gguf([_entry(k, 9, struct.pack("<IQ", 0, 9) + bytes(9)) for k in "ab"])[:-9], "'b'"),
        (_gguf([_entry("general.alignment", 8, _text("32"))]), "general.alignment"),
        (_gguf([_entry("general.alignment", 6, struct.pack("<f", 32.0))]), "general.alignment"),
        (_gguf([_entry("general.alignment", 7, b"\x01")]), "general.alignment"),
        (_gguf([_entry("general.alignment", 10, struct.pack("<Q", 1 << 63))]), "general.alignment"),
        (_gguf([_entry("general.alignment", 9, struct.pack("<IQ", 4, 1) + bytes(4))]), "general.alignment"),
        (_gguf([_entry("general.alignment", 4, struct.pack("<I", 1 << 20))], [_tensor("t")]), "past the end"),
        (_gguf(tensors=[_tensor("t", (1 << 63, 1 << 63, 1 << 63, 1 << 63))]), "past the end"),
        (_gguf(tensors=[_tensor("t", (1 << 32, 1 << 32))]) + bytes(512), "past the end"),
        (_gguf(tensors=[_tensor("t", (1 << 32, 1 << 31, 2), kind=1)]) + bytes(512), "past the end"),
        (_gguf(tensors=[_tensor("t", offset=(1 << 64) - 32)]) + bytes(512), "past the end"),
        (_gguf(tensors=[_tensor("t", (), kind=0)]), "0 axes"),
        (_gguf(tensors=[_tensor("t" * 70_000)]), "name of tensor 0"),
        (_gguf([_entry("k" * 60_000, 99, b"")]), r"k\.\.\.: value type 99"),
        (_gguf([_entry("\x1b[2J", 99, b"")]), r"\\x1b"),
        (_gguf([_entry("general.alignment", 4, struct.pack("<I", 0))]), "general.alignment"),
        (_gguf([_entry("general.alignment", 4, struct.pack("<I", 7))]), "general.alignment"),
        (_gguf(tensors=[_tensor("t", (1,) * 9)]), "9 axes"),
        (_gguf(tensors=[_tensor("t", (0,))]), "no elements"),
        (_gguf(tensors=[_tensor("t", (1 << 40, 1 << 40))]), "past the end"),
        (_gguf(tensors=[_tensor("t", (33,), kind=8)]), "do not divide"),
        (_gguf(tensors=[_tensor("t", kind=4)]), "type number 4"),
        (_gguf(tensors=[_tensor("t", offset=5)]) + bytes(512), "alignment"),
        (_gguf(tensors=[_tensor("t", offset=1 << 50)]), "past the end"),
        (_gguf(tensors=[_tensor("t"), _tensor("u", offset=32)]) + bytes(512), "inside tensor"),
        (_gguf(tensors=[_tensor("t"), _tensor("t", offset=128)]) + bytes(512), "stands twice"),
        (_gguf(), "general.architecture"),
        (_gguf([_entry("general.architecture", 8, _text("llama"))]), "llama.embedding_length"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_gguf_file_is_a_typed_error(data: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(data)
    with pytest.raises((CorruptModel, UnsupportedModel), match=words) as caught:
        open_checkpoint(file)
    assert str(file) in caught.value.what


def test_a_gguf_file_cut_short_anywhere_is_a_typed_error(good_gguf: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    for length in [*range(0, 600, 7), *range(600, len(good_gguf) - 1, 997), len(good_gguf) - 1]:
        file.write_bytes(good_gguf[:length])
        with pytest.raises(CorruptModel, match=r"model\.gguf"):
            open_checkpoint(file)


def test_a_gguf_file_with_flipped_bytes_opens_or_is_a_typed_error(good_gguf: bytes, tmp_path: Path) -> None:
    draw, file = random.Random(0), tmp_path / "model.gguf"
    refused = 0
    for _ in range(1500):
        data = bytearray(good_gguf)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(18_000)] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)])
        file.write_bytes(data)
        refused += _opens_or_is_refused(file)
    assert 100 < refused <= 1500


def test_a_safetensors_header_with_flipped_bytes_opens_or_is_a_typed_error(small: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    good = (small / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    (tmp_path / "config.json").write_bytes((small / "config.json").read_bytes())
    refused = 0
    for _ in range(1500):
        data = bytearray(good)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(header)] = draw.randrange(256)
        (tmp_path / "model.safetensors").write_bytes(data)
        refused += _opens_or_is_refused(tmp_path)
    assert 1000 < refused <= 1500


def test_a_config_with_any_value_replaced_opens_or_is_a_typed_error(small: Path, tmp_path: Path) -> None:
    config = json.loads((small / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((small / "model.safetensors").read_bytes())
    wrong: list[Any] = [None, -1, 0, 1, 2**40, 1e400, 0.5, "x", [], {}, True, float("nan")]
    refused = 0
    for key in config:
        for value in wrong:
            (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
            refused += _opens_or_is_refused(tmp_path)
    assert 50 < refused < 1000


def _opens_or_is_refused(path: Path) -> int:
    try:
        with open_checkpoint(path) as model:
            _ = model.storage, model.parameters, model.chat_template
            for tensor in model.tensors.values():
                tensor.rows(0, 1)
            _ = model.tokenizer
    except EdgecoreError as error:
        return 1 if str(path) in error.what else 1_000_000
    return 0


def _with_header(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


def _spoil(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def spoiled(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return spoiled


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: b"", "empty"),
        (lambda data: data[:5], "header length"),
        (lambda data: (1 << 60).to_bytes(8, "little") + data[8:], "header length"),
        (lambda data: data[:-1], "cut short"),
        (lambda data: data[:9] + b"\xff" * 100 + data[109:], "is not UTF-8"),
        (lambda data: data[:9] + b"\x01" * 100 + data[109:], "is not JSON"),
        (lambda data: _with_header(b'{"a":' + b"[" * 60_000), "is not JSON"),
        (lambda data: _with_header(b'{"a": "\\ud800"}'), "surrogates"),
        (lambda data: _with_header(b'{"a": ' + b"9" * 5000 + b"}"), "is not JSON"),
        (lambda data: _with_header(b"[]"), "not a JSON object"),
        (lambda data: _with_header(b" {}"), "begins with"),
        (lambda data: _with_header(b'{"a": 1, "a": 2}'), "'a': stands twice"),
        (lambda data: _with_header(b'{"a": {"dtype": "F32", "dtype": "F16"}}'), "'dtype': stands twice"),
        (lambda data: _with_header(b'{"__metadata__": {"a": 1}}'), "__metadata__"),
        (lambda data: data + b"x", "1 bytes behind the last tensor"),
        (_spoil(lambda h: h.update(__metadata__=[])), "__metadata__"),
        (_spoil(lambda h: h[NORM].update(shape=[1 << 63] * 8)), "shape"),
        (_spoil(lambda h: h[NORM].update(shape=[1 << 64])), "shape"),
        (_spoil(lambda h: h[NORM].update(shape=[10**4000] * 8)), "shape"),
        (_spoil(lambda h: h[NORM].update(shape=[64.0])), "shape"),
        (_spoil(lambda h: h[NORM].update(shape=[True])), "shape"),
        (_spoil(lambda h: h[NORM].update(shape=[1] * 9)), "shape"),
        (_spoil(lambda h: h[NORM].update(dtype=["F32"])), "dtype"),
        (_spoil(lambda h: h[NORM].update(data_offsets=[128, 0])), "data_offsets"),
        (_spoil(lambda h: h[NORM].update(data_offsets=[-128, 0])), "data_offsets"),
        (_spoil(lambda h: h[NORM].update(data_offsets=[0])), "data_offsets"),
        (_spoil(lambda h: h.update({"x" * 100_000: 7})), r"x\.\.\.: is not an object"),
        (_spoil(lambda h: h.update({"\x1b[2J": 7})), r"\\x1b"),
        (_spoil(lambda h: h[NORM].update(shape=[65])), NORM),
        (_spoil(lambda h: h[NORM].update(shape=[-64])), NORM),
        (_spoil(lambda h: h[NORM].update(shape="x")), NORM),
        (_spoil(lambda h: h[NORM].update(dtype="F13")), "F13"),
        (_spoil(lambda h: h[NORM].update(data_offsets=[1 << 50, (1 << 50) + 128])), "cut short"),
        (_spoil(lambda h: h[NORM].update(data_offsets=[0, 128])), "inside the tensor"),
        (_spoil(lambda h: h.update({NORM: 7})), NORM),
        (_spoil(lambda h: h.pop(NORM)), "hole|behind the last"),
        (_spoil(lambda h: h.update(other=h.pop(NORM))), "has no place"),
        (_spoil(lambda h: h[NORM].update(dtype="I16")), "storage type I16"),
    ],
)
def test_a_damaged_safetensors_file_is_a_typed_error(
    spoil: Callable[[bytes], bytes], words: str, small: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((small / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(spoil((small / "model.safetensors").read_bytes()))
    with pytest.raises((CorruptModel, UnsupportedModel), match=words) as caught:
        open_checkpoint(tmp_path)
    assert str(tmp_path) in caught.value.what


def test_metadata_may_be_null_as_mlx_writes_it(small: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((small / "config.json").read_bytes())
    spoiled = _spoil(lambda h: h.update(__metadata__=None))((small / "model.safetensors").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(spoiled)
    with open_checkpoint(tmp_path) as model:
        assert NORM in model.tensors


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "a/b", "..", "", "C:x", "a\\b", 7])
def test_a_shard_index_cannot_lead_out_of_the_folder(shard: object, small: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "model.safetensors").write_bytes((small / "model.safetensors").read_bytes())
    (tmp_path / "in" / "config.json").write_bytes((small / "config.json").read_bytes())
    index = {"weight_map": {NORM: shard}}
    (tmp_path / "in" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptModel, match="not the name of a file in this folder"):
        open_checkpoint(tmp_path / "in")


@pytest.mark.parametrize("index", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": "gone.safetensors"}}'])
def test_a_damaged_shard_index_is_a_typed_error(index: str, small: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((small / "config.json").read_bytes())
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CorruptModel, match=r"index\.json"):
        open_checkpoint(tmp_path)


def test_a_folder_under_the_name_of_a_file_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ModelNotFound):
        open_checkpoint(tmp_path)


PATHS = ("../../etc/passwd", "/etc/passwd", "a/../../b", "C:\\x", "..", "~root", "\x00", "$(id)", "\u202egpj.exe")


def test_names_inside_a_file_are_names_and_never_paths() -> None:
    """Nothing but the bytes is there to be read: the file does not exist, and no name leads to one."""
    nowhere = Path("/nowhere/at/all")
    gguf = _gguf(
        [_entry(name, 4, bytes(4)) for name in PATHS], [_tensor(n, offset=128 * i) for i, n in enumerate(PATHS)]
    )
    header = parse_gguf(nowhere, gguf + bytes(-len(gguf) % 32 + 128 * len(PATHS)))
    assert tuple(header.tensors) == tuple(header.metadata) == PATHS
    entries = {n: {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i, n in enumerate(PATHS)}
    data = _with_header(json.dumps(entries).encode()) + bytes(len(PATHS))
    assert tuple(parse_safetensors(nowhere, data)) == PATHS


@pytest.mark.parametrize("value", [True, "1", [1], {}, float("nan"), float("inf"), -float("inf"), 10**400, 0, -0.0, -1])
def test_a_number_is_finite_and_above_its_bound_or_an_error_that_names_its_field(value: object) -> None:
    with pytest.raises(CorruptModel, match=r"^c\.json: field 'a\.n': ") as caught:
        Fields(Path("c.json"), {"a.n": value}, "a.").number("n")
    assert len(caught.value.what) < 150


@pytest.mark.parametrize("value", [True, "1", [1], 1.0, float("nan"), 2**31, 10**4000, -(10**4000), 0])
def test_a_count_is_a_whole_number_in_range_or_an_error_that_names_its_field(value: object) -> None:
    with pytest.raises(CorruptModel, match=r"^c\.json: field 'n': ") as caught:
        Fields(Path("c.json"), {"n": value}).integer("n")
    assert len(caught.value.what) < 150
