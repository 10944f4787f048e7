"""A text folder serves two readers: our own sessions, and onnxruntime_genai, which loads it as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgecore.checkpoint import open_checkpoint
from edgecore.contract import Artifact, CorruptModel, ModelNotFound, PayloadFile
from edgecore_onnxruntime import folder

from support.gguf_files import write_gguf
from support.tiny import CHAT_TEMPLATE

PROMPT = "The keeper wrote 12.50 in the book:"
MESSAGES = [{"role": "user", "content": "What is the sea?"}]


def beside(source: Path, out: Path) -> tuple[list[PayloadFile], list[str]]:
    out.mkdir()
    with open_checkpoint(source) as model:
        return folder.write_beside(model, out)


@pytest.mark.parametrize("kind", ["huggingface", "gguf"])
def test_everything_but_the_graph_is_written(kind: str, tiny: Path, tmp_path: Path) -> None:
    source = tiny
    if kind == "gguf":
        with open_checkpoint(tiny) as model:
            source = write_gguf(model, tmp_path / "tiny.gguf")
    files, notes = beside(source, tmp_path / "out")
    assert notes == []
    roles = {file.path: file.role for file in files}
    assert sorted(roles) == sorted(p.name for p in (tmp_path / "out").iterdir())
    assert roles["config.json"] == roles["generation_config.json"] == "config"
    with open_checkpoint(source) as model:
        ours, theirs = folder.open_tokenizer(tmp_path / "out"), model.tokenizer
        assert ours.vocabulary.eos_ids == theirs.vocabulary.eos_ids
        assert ours.vocabulary.tokens == theirs.vocabulary.tokens
        assert ours.encode(PROMPT) == theirs.encode(PROMPT)
        assert ours.encode_chat(MESSAGES) == theirs.encode_chat(MESSAGES)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    assert folder.trained_context(tmp_path / "out") == 512


def test_genais_config_says_where_what_is_and_what_ends_a_text(onnxruntime: Any, tiny: Path, tmp_path: Path) -> None:
    onnxruntime.convert(tiny, tmp_path / "out")
    said = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    model, decoder = said["model"], said["model"]["decoder"]
    assert (model["type"], model["vocab_size"], model["context_length"]) == ("decoder", 512, 512)
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (1, [2, 0], 2)
    assert decoder["filename"] == "model.onnx"
    assert (decoder["num_hidden_layers"], decoder["num_key_value_heads"], decoder["head_size"]) == (2, 2, 64)
    assert said["search"]["past_present_share_buffer"] is True


def test_generation_ends_where_ours_does_and_keeps_what_the_source_says(tiny: Path, tmp_path: Path) -> None:
    source = shutil.copytree(tiny, tmp_path / "in")
    (source / "generation_config.json").write_text(json.dumps({"do_sample": True, "eos_token_id": 2, "top_p": 0.9}))
    beside(source, tmp_path / "out")
    made = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert made == {"do_sample": True, "top_p": 0.9, "bos_token_id": 1, "pad_token_id": 2, "eos_token_id": [2, 0]}


def test_a_source_without_a_tokenizer_gives_a_folder_that_says_so(tiny: Path, tmp_path: Path) -> None:
    with open_checkpoint(tiny) as model:
        source = write_gguf(model, tmp_path / "bare.gguf", tokenizer=False)
    files, (note,) = beside(source, tmp_path / "out")
    assert [file.path for file in files] == ["config.json"]
    assert "no tokenizer" in note
    assert "onnxruntime_genai takes and gives token ids" in note
    with pytest.raises(ModelNotFound, match=r"tokenizer\.json"):
        folder.open_tokenizer(tmp_path / "out")


def test_the_files_beside_a_graph_are_copied_with_their_roles(onnxruntime: Any, tiny: Path, tmp_path: Path) -> None:
    made = onnxruntime.convert(tiny, tmp_path / "one")
    (tmp_path / "two").mkdir()
    copied = folder.copy_beside(tmp_path / "one", tmp_path / "two")
    assert {file.path for file in made.files} - {file.path for file in copied} == {folder.MODEL, folder.WEIGHTS}
    assert set(copied) <= set(made.files)
    assert folder.open_tokenizer(tmp_path / "two").encode(PROMPT) == folder.open_tokenizer(tiny).encode(PROMPT)


def test_the_graph_is_the_one_that_genais_config_names(onnxruntime: Any, tiny: Path, tmp_path: Path) -> None:
    made = onnxruntime.convert(tiny, tmp_path / "out")
    ours = Artifact(tmp_path / "out", "onnxruntime", "text", "onnx-genai", "f16", made.files, id="x")
    native = Artifact(tmp_path / "out", "onnxruntime", "text", "onnx-genai", "", ())
    assert folder.model_file(ours) == folder.model_file(native) == tmp_path / "out" / "model.onnx"
    config = tmp_path / "out" / "genai_config.json"
    config.write_text(config.read_text().replace("model.onnx", "other.onnx"))
    with pytest.raises(CorruptModel, match=r"other\.onnx"):
        folder.model_file(native)
    config.unlink()
    with pytest.raises(ModelNotFound, match=r"genai_config\.json"):
        folder.model_file(native)


def test_a_config_that_is_none_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": "many"}')
    with pytest.raises(CorruptModel, match="max_position_embeddings"):
        folder.trained_context(tmp_path)
    (tmp_path / "config.json").write_text('{"text_config": {"max_position_embeddings": 7}}')
    assert folder.trained_context(tmp_path) == 7
    (tmp_path / "config.json").unlink()
    assert folder.trained_context(tmp_path) == 0
