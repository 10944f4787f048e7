"""A path as a source: known by content, complaints that name what is wrong, digests that are remembered."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from edgecore.contract.errors import BadRequest, CorruptModel, EdgecoreError, ModelNotFound, UnsupportedModel
from edgecore.sources import detect, gguf_header, resolve

from support.models import write_gguf, write_onnx
from support.tiny import tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny", shards=2)


def age(path: Path) -> None:
    """As if nobody had written the file lately."""
    os.utime(path, ns=(time.time_ns(), time.time_ns() - 10**10))


def test_a_gguf_file_is_a_source_whatever_it_is_called(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.bin")
    source = resolve(str(path))
    assert (source.kind, source.path, source.size) == ("gguf", path, path.stat().st_size)
    assert source.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert source.origin == {"path": str(path)}


def test_the_gguf_header_agrees_with_gguf_s_own_reader(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    header, reader = gguf_header.read_header(path), gguf.GGUFReader(path)
    for key in ("general.architecture", "llama.context_length", "general.file_type"):
        field = reader.get_field(key)
        assert field is not None
        assert header.metadata[key] == field.contents()
    assert "tokenizer.ggml.tokens" in reader.fields
    assert "tokenizer.ggml.tokens" not in header.metadata


def test_a_folder_is_a_source_with_a_digest_over_what_is_read(folder: Path) -> None:
    source = resolve(str(folder))
    assert source.kind == "huggingface"
    lines = sorted(f"{f.name}\t{hashlib.sha256(f.read_bytes()).hexdigest()}\n" for f in folder.iterdir())
    assert source.digest == hashlib.sha256("".join(lines).encode()).hexdigest()
    (folder / "README.md").write_text("not read, so not part of it")
    assert resolve(str(folder)).digest == source.digest


def test_an_onnx_file_s_digest_covers_the_weights_beside_it(tmp_path: Path) -> None:
    source = resolve(str(write_onnx(tmp_path / "m.onnx", external=True)))
    before = source.digest
    assert source.kind == "onnx"
    weights = tmp_path / "w.data"
    weights.write_bytes(bytes(weights.stat().st_size))
    assert source.digest != before


def test_a_digest_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    age(path)
    read: list[int] = []
    source = resolve(str(path), on_progress=lambda done, total, stage="": read.append(done))
    assert source.known_digest is None
    first = source.digest
    assert read[-1] == path.stat().st_size
    read.clear()
    assert resolve(str(path)).known_digest == first
    assert source.digest == first
    assert read == []
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert source.digest != first


def test_a_file_that_was_written_just_now_is_read_again(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    source = resolve(str(path))
    assert source.digest
    assert source.known_digest is None


def test_a_home_that_cannot_be_written_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGECORE_HOME", str(tmp_path / "file" / "home"))
    path = write_gguf(tmp_path / "m.gguf")
    age(path)
    assert resolve(str(path)).digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_resolving_changes_nothing_about_the_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    before = (path.stat().st_mtime_ns, path.stat().st_mode, path.read_bytes())
    assert resolve(str(path)).digest
    assert (path.stat().st_mtime_ns, path.stat().st_mode, path.read_bytes()) == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize("keep", [0.0, 0.0001, 0.001, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("kind", ["gguf", "onnx"])
def test_a_truncated_file_is_corrupt_wherever_it_was_cut(tmp_path: Path, kind: str, keep: float) -> None:
    path = (write_gguf if kind == "gguf" else write_onnx)(tmp_path / f"m.{kind}")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(CorruptModel, match=f"m.{kind}"):
        detect(path)


@pytest.mark.parametrize("shard", ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"])
@pytest.mark.parametrize("damage", ["empty", "cut", "header", "gone"])
def test_a_damaged_shard_is_named(tmp_path: Path, shard: str, damage: str) -> None:
    path = tiny_llama(tmp_path / "tiny", shards=2) / shard
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut": data[:-1], "header": struct.pack("<Q", 1 << 60) + data[8:]}[damage])
    with pytest.raises(CorruptModel, match=shard):
        detect(path.parent)


@pytest.mark.parametrize(
    ("name", "data", "error", "complaint"),
    [
        ("m.gguf", b"", CorruptModel, "is empty"),
        ("m.gguf", b"PK\x03\x04 a zip", CorruptModel, r"named \*\.gguf and is no such file"),
        ("m.onnx", b"GIF89a", CorruptModel, r"named \*\.onnx and is no such file"),
        ("m.gguf", b"version https://git-lfs.github.com/spec/v1\n", CorruptModel, "Git LFS pointer"),
        ("m.gguf", b"<!DOCTYPE html><html>", CorruptModel, "an HTML page"),
        ("m.gguf", b"GGUF" + struct.pack("<I", 1), UnsupportedModel, "GGUF version 1"),
        ("m.gguf", b"GGUF" + struct.pack(">I", 3), UnsupportedModel, "a big-endian file"),
        ("m.gguf", b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 60), CorruptModel, "metadata_kv_count"),
        ("m.safetensors", b"x" * 64, UnsupportedModel, "only the weights"),
        ("notes.txt", b"hello", UnsupportedModel, "no model that is known"),
    ],
)
def test_a_file_that_is_no_model_says_what_it_is(
    tmp_path: Path, name: str, data: bytes, error: type[EdgecoreError], complaint: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(error, match=complaint):
        detect(tmp_path / name)


def test_folders_that_are_no_model_say_why(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="empty folder"):
        detect(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(UnsupportedModel, match=r"\*\.safetensors is missing"):
        detect(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UnsupportedModel, match="pickles, which run code"):
        detect(tmp_path)
    write_gguf(tmp_path / "m.gguf")
    with pytest.raises(UnsupportedModel, match=r"folder with m\.gguf") as error:
        detect(tmp_path)
    assert error.value.hint == f"edgecore inspect {tmp_path / 'm.gguf'}"


@pytest.mark.parametrize(
    ("spec", "error", "complaint"),
    [
        ("no/such/file.gguf", ModelNotFound, "does not exist"),
        ("ftp:somewhere", BadRequest, "no source 'ftp'"),
        ("pypi:", BadRequest, "names no package"),
        ("pypi:a b", BadRequest, "names no package"),
        ("pypi:a==one", BadRequest, "Invalid version"),
        ("hf:only-a-name", BadRequest, "names no repository"),
        ("hf:org/name:", BadRequest, "names no repository"),
    ],
)
def test_a_spec_that_names_nothing_says_what_would(spec: str, error: type[EdgecoreError], complaint: str) -> None:
    with pytest.raises(error, match=complaint) as raised:
        resolve(spec)
    assert raised.value.supported


def test_a_missing_path_that_looks_like_a_repository_says_how_to_name_one() -> None:
    with pytest.raises(ModelNotFound) as error:
        resolve("org/name")
    with pytest.raises(ModelNotFound) as file_error:
        resolve("models/name.gguf")
    assert file_error.value.hint == ""
    assert error.value.hint == "edgecore inspect hf:org/name"


@pytest.mark.parametrize("kind", ["gguf", "onnx", "safetensors"])
def test_whatever_is_wrong_with_a_file_the_complaint_is_typed(tmp_path: Path, kind: str) -> None:
    if kind == "safetensors":
        path = tiny_llama(tmp_path / "tiny") / "model.safetensors"
    else:
        path = (write_gguf if kind == "gguf" else write_onnx)(tmp_path / f"m.{kind}")
    whole, random = path.read_bytes(), np.random.default_rng(7)
    for _ in range(300):
        data = bytearray(whole)
        for at in random.integers(0, 400, random.integers(1, 6)):
            data[at] = random.integers(0, 256)
        path.write_bytes(data[: len(data) - int(random.integers(0, 3))])
        with contextlib.suppress(EdgecoreError):
            resolve(str(path.parent if kind == "safetensors" else path))


def test_a_folder_from_a_mac_s_usb_stick_is_read_without_the_mac_s_own_files(folder: Path) -> None:
    before = resolve(str(folder)).digest
    (folder / "._model-00001-of-00002.safetensors").write_bytes(b"Mac OS X")
    assert resolve(str(folder)).digest == before
