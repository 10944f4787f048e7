"""A text folder serves two readers: our own sessions, and openvino_genai, which loads it as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecore.checkpoint import open_checkpoint
from edgecore.contract import Artifact, CorruptModel, ModelNotFound, PayloadFile
from edgecore_openvino import folder

from support.converted import folder_of
from support.gguf_files import write_gguf
from support.tiny import CHAT_TEMPLATE

TOKENIZERS = Path(__file__).parents[2] / "edgecore-llamacpp" / "tests" / "converted" / "tokenizers"
FAMILIES = {
    "llama": ("rope-llama3", "bpe-llama3"),
    "mistral": ("mistral-own-head-dim", "spm-fast"),
    "qwen2": ("qwen2-biases", "bpe-qwen"),
    "qwen3": ("qwen3-tied", "bpe-qwen"),
    "gemma3": ("gemma3-old-style", "spm-gemma"),
    "phi3": ("phi3-window", "spm"),
    "bitnet": ("bitnet-plain-silu", "spm"),
}
"""A checkpoint of each family, and a kind of tokenizer that it comes with."""
PROMPT = "The keeper wrote 12.50 in the book:"
MESSAGES = [{"role": "user", "content": "What is the sea?"}]
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}


def beside(source: Path, out: Path) -> tuple[list[PayloadFile], list[str]]:
    out.mkdir()
    with open_checkpoint(source) as model:
        return folder.write_beside(model, out)


@pytest.mark.parametrize("kind", ["huggingface", "gguf"])
def test_everything_but_the_ir_is_written(kind: str, tiny: Path, tmp_path: Path) -> None:
    source = tiny
    if kind == "gguf":
        with open_checkpoint(tiny) as model:
            source = write_gguf(model, tmp_path / "tiny.gguf")
    files, notes = beside(source, tmp_path / "out")
    assert notes == []
    roles = {file.path: file.role for file in files}
    assert sorted(roles) == sorted(p.name for p in (tmp_path / "out").iterdir())
    assert {roles[name] for name in folder.OPENVINO_TOKENIZER} == {"tokenizer"}
    assert roles["config.json"] == roles["generation_config.json"] == "config"
    with open_checkpoint(source) as model:
        ours, theirs = folder.open_tokenizer(tmp_path / "out"), model.tokenizer
        assert ours.vocabulary.eos_ids == theirs.vocabulary.eos_ids
        assert ours.vocabulary.tokens == theirs.vocabulary.tokens
        assert ours.encode(PROMPT) == theirs.encode(PROMPT)
        assert ours.encode_chat(MESSAGES) == theirs.encode_chat(MESSAGES)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    assert folder.trained_context(tmp_path / "out") == 512


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
    assert "openvino_genai" in note
    with pytest.raises(ModelNotFound, match=r"tokenizer\.json"):
        folder.open_tokenizer(tmp_path / "out")


def test_a_tokenizer_that_would_give_other_ids_is_left_out_with_its_reason(tiny: Path, tmp_path: Path) -> None:
    source = shutil.copytree(tiny, tmp_path / "in")
    spec = json.loads((source / "tokenizer.json").read_text())
    spec["added_tokens"][0]["single_word"] = True
    (source / "tokenizer.json").write_text(json.dumps(spec))
    files, (note,) = beside(source, tmp_path / "out")
    assert "whole word" in note
    assert "openvino_genai does not load" in note
    assert not {file.path for file in files} & set(folder.OPENVINO_TOKENIZER)
    assert not (tmp_path / "out" / "openvino_tokenizer.xml").exists()


def test_a_folder_that_has_only_genais_tokenizer_is_refused_with_what_to_add(tiny: Path, tmp_path: Path) -> None:
    beside(tiny, tmp_path / "out")
    (tmp_path / "out" / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFound, match=r"openvino_tokenizer\.xml") as refused:
        folder.open_tokenizer(tmp_path / "out")
    assert "tokenizer.json" in refused.value.supported
    assert refused.value.hint.startswith("cp tokenizer.json")


def test_the_files_beside_an_ir_are_copied_with_their_roles(tiny: Path, tmp_path: Path) -> None:
    files, _ = beside(tiny, tmp_path / "one")
    (tmp_path / "two").mkdir()
    copied = folder.copy_beside(tmp_path / "one", tmp_path / "two")
    assert sorted(copied, key=lambda f: f.path) == sorted(files, key=lambda f: f.path)
    assert folder.open_tokenizer(tmp_path / "two").encode(PROMPT) == folder.open_tokenizer(tiny).encode(PROMPT)


def test_the_ir_is_found_in_made_and_in_native_folders(tmp_path: Path) -> None:
    files = (PayloadFile("openvino_model.xml", "model"), PayloadFile("openvino_model.bin", "weights"))
    made = Artifact(tmp_path, "openvino", "text", "openvino-genai", "f16", files, id="x")
    native = Artifact(tmp_path, "openvino", "text", "openvino-genai", "", (PayloadFile("openvino_model.xml", "other"),))
    (tmp_path / "openvino_model.xml").touch()
    with pytest.raises(ModelNotFound, match=r"openvino_model\.bin"):
        folder.model_file(made)
    (tmp_path / "openvino_model.bin").touch()
    assert folder.model_file(made) == folder.model_file(native) == tmp_path / "openvino_model.xml"


def test_a_config_that_is_none_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": "many"}')
    with pytest.raises(CorruptModel, match="max_position_embeddings"):
        folder.trained_context(tmp_path)
    (tmp_path / "config.json").write_text('{"text_config": {"max_position_embeddings": 7}}')
    assert folder.trained_context(tmp_path) == 7
    (tmp_path / "config.json").unlink()
    assert folder.trained_context(tmp_path) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_genai_loads_each_familys_folder_as_it_is_and_answers_as_our_session(
    family: str, openvino: Any, tmp_path: Path
) -> None:
    """The same ids in and out, greedily, also through the chat template."""
    genai = pytest.importorskip("openvino_genai", reason="needs openvino-genai: bootstrap.py test --only openvino")
    golden, tokenizer = FAMILIES[family]
    source = folder_of(golden, TOKENIZERS / tokenizer, tmp_path / "in")
    settings = json.loads((source / "tokenizer_config.json").read_text())
    template = CHAT_TEMPLATE.replace("<|im_start|>", "[").replace("<|im_end|>", "]")
    (source / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    made = openvino.convert(source, tmp_path / "out", "f32")
    artifact = Artifact(tmp_path / "out", "openvino", "text", "openvino-genai", "f32", made.files, id=family)
    pipeline = genai.LLMPipeline(str(tmp_path / "out"), "CPU", INFERENCE_NUM_THREADS=1, **EXACT)
    theirs = pipeline.get_tokenizer()
    history = genai.ChatHistory()
    for message in MESSAGES:
        history.append(message)
    with openvino.run(artifact, inference_precision="f32", kv_cache="f32") as session:
        prompt = theirs.encode(PROMPT)
        assert prompt.input_ids.data[0].tolist() == list(session.tokenize(PROMPT))
        text = theirs.apply_chat_template(history, add_generation_prompt=True)
        chat = theirs.encode(text, add_special_tokens=False).input_ids.data[0].tolist()
        assert chat == folder.open_tokenizer(artifact.path).encode_chat(MESSAGES)
        answer = pipeline.generate(prompt, genai.GenerationConfig(max_new_tokens=12, ignore_eos=True)).tokens[0]
        context = session.context()
        logits = context.prefill(list(session.tokenize(PROMPT)))
        for token in answer:
            assert token == int(np.argmax(logits))
            logits = context.step(token)
