"""mlx_lm loads every converted folder as it is, without a network, reads texts as we do, and computes what the oracle
does; where it computes otherwise, the conversion has said so."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from edgecore.checkpoint import Oracle, RopeScaling, folder_config, folder_weights, open_checkpoint
from edgecore.contract import Artifact, ConvertLimits, no_progress
from edgecore_conformance.fixtures import random_models
from edgecore_mlx import convert_text, elsewhere, folder

from support.divergence import divergence, some_tokens
from support.gguf_files import write_gguf
from support.lines import lines

os.environ["HF_HUB_OFFLINE"] = "1"
RIGHT = ("llama", "mistral", "qwen2", "qwen3", "gemma3", "phi3-short")
"""Families and variants that mlx_lm computes as their models mean."""
COUNT = 40
"""Tokens: more than Gemma's window."""


def loaded(where: Path) -> tuple[Any, Any]:
    from mlx_lm import load

    with mx.stream(mx.cpu):
        return tuple(load(str(where)))[:2]


def logits(where: Path, tokens: list[int]) -> Any:
    with mx.stream(mx.cpu):
        found = loaded(where)[0](mx.array([tokens]))[0].astype(mx.float32)
        return np.array(found)


def oracle(source: Path) -> tuple[list[int], Any]:
    with open_checkpoint(source) as model:
        tokens = some_tokens(model.decoder, COUNT)
        return tokens, np.concatenate(list(Oracle(model.decoder, model.tensors).score(tokens)))


@pytest.mark.parametrize("name", RIGHT)
def test_what_it_computes_right_it_computes_as_the_oracle_in_every_precision(
    mlx: Any, tmp_path: Path, name: str
) -> None:
    source = random_models.family(name)
    tokens, wanted = oracle(source)
    for precision, most in (("f32", 1e-8), ("f16", 1e-4), ("bf16", 5e-3)):
        made = mlx.convert(source, tmp_path / precision, precision)
        assert made.notes == ()
        assert divergence(wanted, logits(tmp_path / precision, tokens)).mean() < most, precision


@pytest.mark.parametrize("storage", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "phi3-short"])
def test_blocks_that_were_kept_it_computes_with(mlx: Any, tmp_path: Path, name: str, storage: str) -> None:
    """The embedding table too, and a fused matrix."""
    with open_checkpoint(random_models.family(name)) as model:
        source = write_gguf(model, tmp_path / "it.gguf", storage)
    tokens, wanted = oracle(source)
    mlx.convert(source, tmp_path / "out", "f32")
    assert divergence(wanted, logits(tmp_path / "out", tokens)).mean() < 1e-8


def test_a_folder_in_several_files_it_puts_together(tiny: Path, tmp_path: Path) -> None:
    tokens, wanted = oracle(tiny)
    with open_checkpoint(tiny) as model:
        entries, config = folder_weights(model, "f32", "same"), folder_config(model, "f32")
        files = folder.write(tmp_path, entries, config, model.parameters, no_progress, limit=1 << 20)
        folder.write_beside(model, tmp_path)
    assert sum(file.role == "weights" for file in files) == 6
    assert divergence(wanted, logits(tmp_path, tokens)).mean() < 1e-8


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "gemma3", "phi3", "bitnet-packed"])
@pytest.mark.parametrize("kind", ["huggingface", "gguf"])
def test_its_tokenizer_gives_the_ids_that_ours_gives(mlx: Any, tmp_path: Path, name: str, kind: str) -> None:
    source = random_models.family(name)
    if kind == "gguf":
        with open_checkpoint(source) as model:
            source = write_gguf(model, tmp_path / "it.gguf")
    mlx.convert(source, tmp_path / "out", "bf16")
    from mlx_lm.utils import load_config, load_tokenizer

    ends = load_config(tmp_path / "out")["eos_token_id"]
    ours, theirs = folder.open_tokenizer(tmp_path / "out"), load_tokenizer(tmp_path / "out", eos_token_ids=ends)
    assert set(theirs.eos_token_ids) == ours.eos_ids
    wrong = 0
    for line in lines(special=[ours.tokens[token] for token in ours.special.values()])[::3]:
        ids = theirs.encode(line)
        # transformers' Gemma adds tokens to a vocabulary that has none of their names.
        wrong += max(ids) < len(ours.tokens) and ids != ours.encode(line, parse_special=True)
    assert wrong == 0
    messages = [{"role": "user", "content": "What is the sea?"}]
    if ours.chat_template:
        assert theirs.apply_chat_template(messages, add_generation_prompt=True) == ours.encode_chat(messages)


def test_longrope_is_said_and_right_within_the_original_context_where_that_is_the_limit(
    mlx: Any, tmp_path: Path
) -> None:
    """mlx_lm turns by the long factors always: then they are the short ones."""
    source = random_models.family("phi3")
    tokens, wanted = oracle(source)
    (note,) = mlx.convert(source, tmp_path / "long", "f32").notes
    assert "mlx_lm turns positions of texts up to 256 tokens by the factors of longer ones" in note
    assert divergence(wanted, logits(tmp_path / "long", tokens)).mean() > 0.1
    assert folder.trained_context(tmp_path / "long") == 512
    made = mlx.convert(source, tmp_path / "short", "f32", limits=ConvertLimits(max_context=256))
    assert made.notes == ()
    assert divergence(wanted, logits(tmp_path / "short", tokens)).mean() < 1e-8
    assert folder.trained_context(tmp_path / "short") == 256
    with mlx.run(Artifact(tmp_path / "short", "mlx", "text", "mlx", "", ())) as session:
        assert session.context_length == 256


def test_divisors_that_follow_no_rule_are_written_where_it_looks_for_them(tiny: Path, tmp_path: Path) -> None:
    """A GGUF file may have any; config.json says them as longrope's, the same for short texts and for long ones."""
    with open_checkpoint(tiny) as model:
        divisors = tuple(1.0 + n**1.5 / 7 for n in range(32))
        model.decoder = replace(
            model.decoder, rope=replace(model.decoder.rope, scaling=RopeScaling.DIVISORS, divisors=divisors)
        )
        made = convert_text.convert(model, tmp_path, "f32", {}, ConvertLimits(), no_progress)
        tokens = some_tokens(model.decoder, COUNT)
        wanted = np.concatenate(list(Oracle(model.decoder, model.tensors).score(tokens)))
    assert made.notes == ()
    assert divergence(wanted, logits(tmp_path, tokens)).mean() < 1e-8


def test_what_it_would_not_load_is_said() -> None:
    with open_checkpoint(random_models.family("qwen2")) as model:
        decoder = model.decoder
    assert list(elsewhere.computed_otherwise(decoder, {}, 512)) == []
    (note,) = elsewhere.computed_otherwise(replace(decoder, head_dim=32), {}, 512)
    assert note == (
        "mlx_lm does not load the folder: it takes heads of 64 for granted, and here they have another size; "
        "edgecore does"
    )
    biased = replace(decoder, family="qwen3", attention_bias=True)
    assert "it has no biases in this family" in next(elsewhere.computed_otherwise(biased, {}, 512))


def test_windows_that_it_does_not_know_are_said_unless_the_context_is_within_them(mlx: Any, tmp_path: Path) -> None:
    source = random_models.family("mistral-window")
    tokens, wanted = oracle(source)
    (note,) = mlx.convert(source, tmp_path / "out", "f32").notes
    assert "mlx_lm does not know this model's windows: its answers differ in texts longer than 16 tokens" in note
    found = divergence(wanted, logits(tmp_path / "out", tokens))
    assert found[:16].max() < 1e-8
    assert found[20:].mean() > 0.01
    assert mlx.convert(source, tmp_path / "within", "f32", limits=ConvertLimits(max_context=16)).notes == ()


def test_soft_caps_and_other_patterns_of_windows_are_said(mlx: Any, tmp_path: Path) -> None:
    source = shutil.copytree(random_models.family("gemma3"), tmp_path / "hf")
    config = json.loads((source / "config.json").read_text())
    types = ["full_attention", "sliding_attention"]
    changed = config | {"final_logit_softcapping": 30.0, "layer_types": types}
    (source / "config.json").write_text(json.dumps(changed))
    notes = " ".join(mlx.convert(source, tmp_path / "out").notes)
    assert "other layers of this model for windowed" in notes
    assert "does not cap scores or logits" in notes


def test_bitnet_is_loaded_where_it_is_packed_and_said_to_be_computed_on_a_macs_gpu_alone(
    mlx: Any, tmp_path: Path
) -> None:
    (note,) = mlx.convert(random_models.family("bitnet-packed"), tmp_path / "packed", "bf16").notes
    assert "mlx_lm computes BitNet on a Mac's GPU alone, and rounds no activations to 8 bits" in note
    stored = folder.tensors(tmp_path / "packed")
    scales = {array.dtype for name, array in stored.items() if name.endswith("weight_scale")}
    assert scales == {"BF16"}  # as the activations: its kernels insist
    assert loaded(tmp_path / "packed")
    (note,) = mlx.convert(random_models.family("bitnet"), tmp_path / "plain", "f16").notes
    assert note == ("mlx_lm does not load the folder: it takes BitNet with packed ternary weights only; edgecore does")
    with pytest.raises(ValueError, match="weight_scale"):
        loaded(tmp_path / "plain")
