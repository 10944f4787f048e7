"""What is not supported is refused from the headers alone, with what is supported and who else would take it."""

from __future__ import annotations

import json
import math
import time
import tomllib
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edgecore.checkpoint import open_checkpoint
from edgecore.checkpoint.exporters import exporters
from edgecore.checkpoint.families import FAMILIES, known
from edgecore.contract.errors import UnsupportedModel

from support.gguf_files import write_gguf
from support.tiny import tiny_llama

ROOT = Path(__file__).parents[2]
LLAMA_CPP = "edgecore plugin install llamacpp --export"
HUGE = 50_000_000_000
"""Bytes of weights that nobody may touch."""


def refused(folder: Path) -> UnsupportedModel:
    started = time.process_time()
    with pytest.raises(UnsupportedModel) as caught:
        open_checkpoint(folder)
    assert time.process_time() - started < 1
    return caught.value


def folder_of(folder: Path, config: dict[str, Any]) -> Path:
    """A folder with this config beside 50 GB of weights, most of them a hole in the file."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    entry = {"dtype": "F16", "shape": [HUGE // 2], "data_offsets": [0, HUGE]}
    header = json.dumps({"model.embed_tokens.weight": entry}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + HUGE)
    return folder


TINY = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 8,
    "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "max_position_embeddings": 8,
    "rms_norm_eps": 1e-5,
}  # fmt: skip

REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    # config, what the message says, the command that helps
    "another decoder": (
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
        "'gpt2' (GPT2LMHeadModel) is not a family of the neutral model; llama.cpp's converter",
        LLAMA_CPP,
    ),
    "a mixture of experts": (
        {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}, "'mixtral' (MixtralForCausalLM)", LLAMA_CPP,
    ),
    "a multimodal wrapper": (
        {
            "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
            "text_config": {"model_type": "gemma3_text"}, "vision_config": {},
        },
        "a wrapper of text model 'gemma3_text' and others,",
        LLAMA_CPP,
    ),
    "an encoder": ({"model_type": "bert", "architectures": ["BertModel"]}, "'bert' (BertModel)", LLAMA_CPP),
    "what only mlx-lm takes": ({"model_type": "nanochat"}, "; mlx-lm (", "edgecore plugin install mlx"),
    "what only optimum-intel takes": (
        {"model_type": "biogpt", "architectures": ["BioGptForCausalLM"]},
        "; optimum-intel (",
        "edgecore plugin install openvino --export",
    ),
    "what only the GenAI builder takes": (
        {"model_type": "phi4mm", "architectures": ["Phi4MMForCausalLM"]},
        "; the ONNX Runtime GenAI builder (",
        "edgecore plugin install onnxruntime --export",
    ),
    "what nobody takes": (
        {"model_type": "mystery", "architectures": ["MysteryForCausalLM"]},
        "no exporter that is known here takes it",
        "",
    ),
    "nothing said": ({}, "field 'model_type': '' is not a family", ""),
    "architectures that are no names": ({"model_type": "x", "architectures": {"a": 1}}, "'x' is not a family", ""),
    "fp8 weights": (
        TINY | {"quantization_config": {"quant_method": "fp8"}}, "weights packed by 'fp8'; llama.cpp's", LLAMA_CPP,
    ),
    "GPTQ weights": (TINY | {"quantization_config": {"quant_method": "gptq"}}, "weights packed by 'gptq'", LLAMA_CPP),
    "AWQ weights": (TINY | {"quantization_config": {"quant_method": "awq"}}, "weights packed by 'awq'; no", ""),
    "a rope type": (
        TINY | {"rope_scaling": {"rope_type": "yarn", "factor": 2}}, "'rope_scaling': rope type 'yarn'", LLAMA_CPP,
    ),
    "an activation": (TINY | {"hidden_act": "gelu"}, "field 'hidden_act': 'gelu'", LLAMA_CPP),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_is_refused_by_its_config_with_the_exporter_that_takes_it(tmp_path: Path, case: str) -> None:
    config, said, command = REFUSED[case]
    error = refused(folder_of(tmp_path / "model", config))
    assert str(tmp_path / "model" / "config.json") in error.what
    assert said in error.what
    assert error.hint == command
    assert error.supported


def test_a_type_of_weights_is_refused_by_the_tensor_that_has_it(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model")
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, end = json.loads(data[8 : 8 + length]), 0
    for entry in (entry for name, entry in header.items() if name != "__metadata__"):
        start, end = end, end + math.prod(entry["shape"])
        entry |= {"dtype": "F8_E4M3", "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))
    error = refused(folder)
    assert "tensor 'model.embed_tokens.weight': storage type F8_E4M3" in error.what
    assert "BF16" in error.supported


@pytest.mark.parametrize(
    ("kind", "said"),
    [("Unigram", "tokenizer.json: field 'model.type': 'Unigram'"), ("WordPiece", "'WordPiece'")],
)
def test_a_kind_of_tokenizer_is_refused_before_any_tokenizer_is_built(tmp_path: Path, kind: str, said: str) -> None:
    folder = tiny_llama(tmp_path / "model")
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": {"type": kind, "vocab": []}}))
    error = refused(folder)
    assert said in error.what
    assert "; llama.cpp's converter" in error.what
    assert "BPE" in error.supported
    assert error.hint == LLAMA_CPP


def gguf_file(path: Path, architecture: str, **integers: int) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in integers.items():
        writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(HUGE)
    return path


@pytest.mark.parametrize(("architecture", "integers"), [("gpt2", {}), ("qwen3moe", {}), ("llama", {"expert_count": 8})])
def test_a_gguf_file_that_llama_cpp_runs_is_refused_with_the_command_that_runs_it(
    tmp_path: Path, architecture: str, integers: dict[str, int]
) -> None:
    file = gguf_file(tmp_path / "my model.gguf", architecture, **integers)
    error = refused(file)
    assert "; llama.cpp runs it as it is" in error.what
    assert error.hint == f"edgecore run '{file}' --backend llamacpp"


def test_a_kind_of_tokenizer_in_gguf_is_refused_by_its_field(tmp_path: Path) -> None:
    with open_checkpoint(tiny_llama(tmp_path / "tiny")) as model:
        file = write_gguf(model, tmp_path / "model.gguf", "F32")
    data = file.read_bytes()
    said = data.index(b"tokenizer.ggml.model") + len("tokenizer.ggml.model") + 4 + 8
    file.write_bytes(data[:said] + b"bert" + data[said + 4 :])
    error = refused(file)
    assert "field 'tokenizer.ggml.model': 'bert'" in error.what
    assert "gpt2 (byte-level BPE)" in error.supported


def test_a_gguf_file_that_nothing_runs_is_refused_with_the_families(tmp_path: Path) -> None:
    error = refused(gguf_file(tmp_path / "model.gguf", "mystery"))
    assert "field 'general.architecture': 'mystery'" in error.what
    assert "no runtime that is known here runs it" in error.what
    assert error.supported == ", ".join(FAMILIES)
    assert error.hint == ""


def test_a_tensor_type_that_gguf_does_not_number_is_refused_by_its_number(tmp_path: Path) -> None:
    file = gguf_file(tmp_path / "model.gguf", "llama")
    head = bytearray(file.open("rb").read(4096))
    at = head.index(b"token_embd.weight") + len("token_embd.weight") + 4 + 16
    head[at : at + 4] = (36).to_bytes(4, "little")  # I2_S of Microsoft's fork
    with file.open("r+b") as stream:
        stream.write(head)
    error = refused(file)
    assert "'token_embd.weight': type number 36" in error.what
    assert "Q4_K" in error.supported


def test_every_family_is_one_that_the_first_exporter_takes_too() -> None:
    """Or the list is out of date."""
    named = {a for e in exporters() for a in (*e.architectures, *e.model_types)}
    assert {t for family in known() for t in family.model_types} - named == set()


def test_the_list_is_of_the_release_that_the_plugin_is_pinned_to() -> None:
    manifest = tomllib.loads((ROOT / "plugins/edgecore-llamacpp/edgecore_llamacpp/backend.toml").read_text())
    assert f">={exporters()[0].version.split()[-1]}," in manifest["runtime"]["requires"]
