"""`convert --to FORMAT`: a format finds the backend that makes it, and what is written opens where people open it."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgecore import registry
from edgecore.checkpoint import open_checkpoint
from edgecore.contract.errors import BackendUnavailable, BadRequest
from edgecore.verbs.inspecting import inspect
from edgecore.verbs.targets import choose, locate

from support.cli import edgecore
from support.gguf_files import write_gguf
from support.plugins import install_plugin
from support.tiny import tiny_llama


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def tiny_gguf(tiny: Path) -> Path:
    with open_checkpoint(tiny) as model:
        return write_gguf(model, tiny.with_name("tiny.gguf"), "Q8_0")


def test_a_gguf_file_becomes_a_hugging_face_folder_with_its_config_on_top(tiny_gguf: Path, tmp_path: Path) -> None:
    out = tmp_path / "folder"
    made = edgecore("convert", tiny_gguf, "--to", "hf", "--precision", "bf16", "-o", out, "--json")
    assert made.code == 0, made.err
    assert (made.json["backend"], made.json["format"], made.json["precision"]) == ("reference", "huggingface", "bf16")
    assert made.json["quality"]["verdict"] == "accepted"
    config = json.loads((out / "config.json").read_text())
    assert (config["architectures"], config["torch_dtype"]) == (["LlamaForCausalLM"], "bfloat16")
    assert {"model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {path.name for path in out.iterdir()}
    assert "model.embed_tokens.weight" in load_file(out / "model.safetensors")
    with open_checkpoint(tiny_gguf) as a, open_checkpoint(out) as b:
        assert a.tokenizer.encode("Prices: 12.50") == b.tokenizer.encode("Prices: 12.50")
        assert a.tokenizer.eos_ids == b.tokenizer.eos_ids
        name = "model.layers.0.mlp.up_proj.weight"
        np.testing.assert_allclose(a.tensors[name].read(), b.tensors[name].read(), rtol=2**-8)


def test_the_long_name_is_the_same_format_and_the_same_artifact(tiny: Path) -> None:
    how = ["convert", tiny, "--precision", "f32", "--json"]
    short, long = edgecore(*how, "--to", "HF"), edgecore(*how, "--to", "huggingface", "--backend", "reference")
    assert short.json["id"] == long.json["id"]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_the_reference_is_chosen_for_what_only_it_makes(tiny: Path, site: Path) -> None:
    install_plugin(site, "toy")
    assert choose(None, locate(tiny), "huggingface").name == "reference"
    assert choose(None, locate(tiny), "toy").name == "toy"


def test_inspect_says_perhaps_of_a_backend_that_does_not_claim_the_family(site: Path) -> None:
    install_plugin(site, "toy")
    golden = Path(__file__).parents[1] / "checkpoint" / "goldens" / "qwen3-tied"
    rows = {row["name"]: row for row in inspect(golden)["backends"]}
    assert rows["toy"] == {
        "name": "toy", "takes": "perhaps", "how": "edgecore build; it does not claim family 'qwen3'"
    }  # fmt: skip
    assert rows["reference"]["takes"] == "yes"


def test_two_backends_that_make_a_format_must_be_told_apart(tiny: Path, site: Path) -> None:
    install_plugin(site, "toy")
    install_plugin(site, "other")
    with pytest.raises(BackendUnavailable, match="several backends make 'toy'") as caught:
        choose(None, locate(tiny), "toy")
    assert caught.value.supported == "other, toy"
    assert caught.value.hint == "the same command with --backend other"


@pytest.mark.parametrize(("format", "plugin"), [("huggingface", "reference"), ("gguf", "llamacpp")])
def test_a_format_whose_plugin_is_not_installed_is_refused_with_the_command_that_installs_it(
    tiny: Path, site: Path, monkeypatch: pytest.MonkeyPatch, format: str, plugin: str
) -> None:
    install_plugin(site, "toy")
    toy = registry.find("toy")
    monkeypatch.setattr(registry, "discover", lambda: registry.Discovery((toy,)))
    with pytest.raises(BackendUnavailable, match=f"made by edgecore-{plugin}") as caught:
        choose(None, locate(tiny), format)
    assert "install" in caught.value.hint
    assert f"edgecore-{plugin}" in caught.value.hint


def test_a_format_that_nobody_makes_is_refused_with_those_that_are_made(tiny: Path, site: Path) -> None:
    install_plugin(site, "toy")
    with pytest.raises(BadRequest, match="'punched-cards'") as caught:
        choose(None, locate(tiny), "punched-cards")
    assert {"huggingface", "toy"} <= set(caught.value.supported.split(", "))


def test_a_format_that_a_backend_opens_and_does_not_make_is_refused_before_any_work(tiny_gguf: Path) -> None:
    result = edgecore("convert", tiny_gguf, "--to", "gguf", "--backend", "reference")
    assert result.code == 2
    assert "does not write 'gguf'" in result.err
    assert "huggingface" in result.err


def test_a_model_that_is_not_supported_is_refused_in_a_moment_with_a_command(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model")
    (folder / "config.json").write_text('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}')
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    facts = edgecore("inspect", folder, "--json", timeout=30).json
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    print(f"refused from a cold start in {seconds:.2f} s of processor time")
    assert seconds < 2
    assert "'gpt2' (GPT2LMHeadModel) is not a family of the neutral model" in facts["supported"]
    assert "llama.cpp's converter" in facts["supported"]
    for verb in ("convert", "build"):
        result = edgecore(verb, folder, "--backend", "reference", timeout=30)
        assert result.code == 2
        assert "edgecore plugin install llamacpp --export" in result.err
