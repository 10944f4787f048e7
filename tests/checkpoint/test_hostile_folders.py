"""A folder from the internet may hold anything under the name of a model's file: links to the user's own files, pipes
that never answer, a config that lies about the weights beside it. Nothing outside is read, nothing is waited for,
nothing is changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from edgecore.checkpoint import open_checkpoint
from edgecore.checkpoint.mapping import map_file, read_bytes, read_text
from edgecore.contract.errors import CorruptModel, EdgecoreError, ModelNotFound, UnsupportedModel

from support.gguf_files import write_gguf
from support.tiny import tiny_llama

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("made"), layers=1, hidden=64, intermediate=64, vocab=280)


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder to spoil, beside which nothing may change."""
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in FILES:
        shutil.copy(made / name, outside / name)
    before = _digests(outside)
    yield shutil.copytree(made, tmp_path / "model")
    assert _digests(outside) == before


def _digests(folder: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.iterdir()) if f.is_file()}


def _read_all(folder: Path) -> None:
    with open_checkpoint(folder) as model:
        _ = model.tokenizer, model.chat_template
        for tensor in model.tensors.values():
            tensor.read()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("absolute", [True, False], ids=["absolute", "relative"])
def test_a_link_out_of_the_folder_is_refused_with_its_target(name: str, absolute: bool, model: Path) -> None:
    outside = model.parent / "outside" / name
    (model / name).unlink()
    (model / name).symlink_to(outside if absolute else Path("..") / "outside" / name)
    with pytest.raises(CorruptModel) as caught:
        _read_all(model)
    assert caught.value.what.startswith(f"{model / name}: is a link out of the folder")
    assert str(outside) in caught.value.what
    assert "inside the folder" in caught.value.supported


def test_a_link_out_of_the_folder_by_way_of_another_is_refused(model: Path) -> None:
    (model / "config.json").unlink()
    (model / "config.json").symlink_to("sub/config.json")
    (model / "sub").symlink_to("../outside")
    with pytest.raises(CorruptModel, match="out of the folder"):
        open_checkpoint(model)


@pytest.mark.parametrize("name", [INDEX, "s.safetensors"])
def test_a_shard_or_index_that_is_a_link_out_is_refused(name: str, model: Path) -> None:
    (model / "model.safetensors").rename(model / "s.safetensors")
    (model / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": "s.safetensors"}}))
    (model / name).rename(model.parent / name)
    (model / name).symlink_to(model.parent / name)
    with pytest.raises(CorruptModel, match="out of the folder") as caught:
        open_checkpoint(model)
    assert str(model / name) in caught.value.what


def test_links_inside_the_folder_and_to_the_folder_are_followed(model: Path) -> None:
    (model / "data").mkdir()
    (model / "model.safetensors").rename(model / "data" / "w")
    (model / "model.safetensors").symlink_to("data/w")
    (model.parent / "alias").symlink_to(model)
    _read_all(model.parent / "alias")


def test_a_gguf_file_that_the_user_names_may_be_a_link(model: Path) -> None:
    with open_checkpoint(model) as source:
        file = write_gguf(source, model.parent / "outside" / "m.gguf", "F16", tokenizer=False)
    link = model / "m.gguf"
    link.symlink_to(file)
    with open_checkpoint(link) as opened:
        assert opened.tensors["model.norm.weight"].read().shape == (64,)
    file.unlink()


class TestTheHubsCache:
    """models--ORG--NAME/snapshots/REVISION/FILE -> ../../blobs/SHA: every file of it is a link."""

    @pytest.fixture
    def snapshot(self, model: Path) -> Path:
        repository = model.parent / "models--org--name"
        snapshot = repository / "snapshots" / "0123abcd"
        (repository / "blobs").mkdir(parents=True)
        snapshot.mkdir(parents=True)
        for number, name in enumerate(FILES):
            (model / name).rename(repository / "blobs" / f"{number:040x}")
            (snapshot / name).symlink_to(f"../../blobs/{number:040x}")
        return snapshot

    def test_it_opens(self, snapshot: Path) -> None:
        _read_all(snapshot)

    def test_a_model_in_a_subfolder_of_it_opens(self, snapshot: Path) -> None:
        below = snapshot / "below"
        below.mkdir()
        for file in [f for f in snapshot.iterdir() if f.is_symlink()]:
            (below / file.name).symlink_to(Path("..") / file.readlink())
        _read_all(below)

    @pytest.mark.parametrize("target", ["../../../outside/config.json", "../../refs", "../other/config.json"])
    def test_a_link_to_anywhere_else_is_refused(self, target: str, snapshot: Path) -> None:
        other = snapshot.parent / "other"
        other.mkdir()
        for file in (other / "config.json", snapshot.parents[1] / "refs"):
            shutil.copy(snapshot.parents[2] / "outside" / "config.json", file)
        (snapshot / "config.json").unlink()
        (snapshot / "config.json").symlink_to(target)
        with pytest.raises(CorruptModel, match="out of the folder"):
            open_checkpoint(snapshot)

    def test_a_blob_that_is_a_link_itself_is_refused(self, snapshot: Path) -> None:
        blob = (snapshot / "config.json").resolve()
        blob.unlink()
        blob.symlink_to(snapshot.parents[2] / "outside" / "config.json")
        with pytest.raises(CorruptModel, match="out of the folder"):
            open_checkpoint(snapshot)

    def test_blobs_that_are_a_link_themselves_are_refused(self, snapshot: Path) -> None:
        repository = snapshot.parents[1]
        (repository / "blobs").rename(repository.parent / "elsewhere")
        (repository / "blobs").symlink_to("../elsewhere")
        with pytest.raises(CorruptModel, match="out of the folder"):
            open_checkpoint(snapshot)


@pytest.mark.parametrize("name", [*FILES, INDEX, "chat_template.jinja"])
def test_a_pipe_is_an_error_at_once(name: str, model: Path) -> None:
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    begin = time.monotonic()
    with suppress(EdgecoreError):  # what need not be there is as if it were not
        _read_all(model)
    for read in (map_file, lambda file: read_text(file, 10), lambda file: read_bytes(file, 10)):
        with pytest.raises(CorruptModel, match="not a regular file"):
            read(model / name)
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/stdin"])
def test_a_device_is_no_file(device: str, model: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (model / name).unlink(missing_ok=True)
        (model / name).symlink_to(device)
        with pytest.raises((CorruptModel, ModelNotFound)):
            open_checkpoint(model)
        with pytest.raises(EdgecoreError):
            read_bytes(model / name, 1 << 40)
    with pytest.raises((CorruptModel, ModelNotFound)):
        map_file(Path(device))


@pytest.mark.parametrize("target", ["nowhere", "config.json"], ids=["to nothing", "to itself"])
def test_a_link_that_leads_nowhere_is_an_error(target: str, model: Path) -> None:
    (model / "config.json").unlink()
    (model / "config.json").symlink_to(target)
    with pytest.raises(ModelNotFound, match=r"config\.json"):
        open_checkpoint(model)
    with pytest.raises(ModelNotFound, match=r"config\.json"):
        read_text(model / "config.json", 10)


@pytest.mark.parametrize(
    "name", ["x" * 300 + ".safetensors", "a\0b", "\ud800", "\x1b[2J", "a\nb", "gone.safetensors", "sub"]
)
def test_a_shard_of_an_impossible_name_is_a_typed_error(name: str, model: Path) -> None:
    (model / "sub").mkdir()
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")  # a whole file would do without
    (model / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(CorruptModel) as caught:
        open_checkpoint(model)
    assert caught.value.what.startswith(str(model))
    assert "\x1b" not in caught.value.what


LIES: tuple[Any, ...] = (0, 1, 3, 4096, 2**31 - 1, 2**31, 2**63, 10**400, -1, 0.5, 1e999, True, "x", [], {})
SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim",
)  # fmt: skip


@pytest.mark.parametrize("field", SIZES)
def test_a_config_that_lies_about_a_size_is_refused_at_once(field: str, model: Path) -> None:
    good = json.loads((model / "config.json").read_text())
    begin, weights = time.process_time(), (model / "model.safetensors").read_bytes()
    for lie in [n for n in LIES if n != good[field] or isinstance(n, bool)]:
        (model / "config.json").write_text(json.dumps(good | {field: lie}))
        with pytest.raises((CorruptModel, UnsupportedModel)) as caught:
            open_checkpoint(model)
        assert caught.value.what.startswith(str(model)), lie
        assert ": field '" in caught.value.what or ": tensor '" in caught.value.what, caught.value.what
    assert time.process_time() - begin < 10
    assert (model / "model.safetensors").read_bytes() == weights


def test_a_config_of_absurd_sizes_that_agree_is_refused_at_once(model: Path) -> None:
    """Nothing is made in the sizes that are claimed: every tensor is missing, or of another shape."""
    largest = 2**31 - 1
    lie = {"hidden_size": largest, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2**20,
           "vocab_size": largest, "intermediate_size": largest, "num_hidden_layers": 1024}  # fmt: skip
    good = json.loads((model / "config.json").read_text())
    begin = time.process_time()
    (model / "config.json").write_text(json.dumps(good | lie))
    with pytest.raises((CorruptModel, UnsupportedModel)):
        open_checkpoint(model)
    (model / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises((CorruptModel, UnsupportedModel)):
        open_checkpoint(model)
    assert time.process_time() - begin < 2


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "config.json").write_text('{"a": ' + "9" * 5000 + "}"),
        lambda folder: (folder / "config.json").write_text("[" * 100_000),
        lambda folder: (folder / "config.json").write_text('{"model_type": "\\ud83d"}'),
        lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe{}"),
        lambda folder: (folder / "config.json").write_bytes(b" " * 10_000_001),
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        lambda folder: (folder / "model.safetensors").write_bytes(bytes(7)),
    ],
    ids=["cut", "number", "nesting", "half a character", "no UTF-8", "too large", "empty", "short"],
)
def test_what_is_refused_is_left_as_it_was(spoil: Callable[[Path], object], model: Path) -> None:
    spoil(model)
    before = _digests(model)
    with pytest.raises(CorruptModel) as caught:
        open_checkpoint(model)
    assert caught.value.what.startswith(str(model))
    assert _digests(model) == before
