"""What is quantized: every family, the trained model, blocks of a GGUF file, architectures that mlx_lm alone knows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import gpt2, qwen2_moe
from mlx_lm.utils import load_model, quantize_model, save_config, save_model

from edgecore.checkpoint import Oracle, open_checkpoint
from edgecore.contract import Artifact, Manifest, UnsupportedModel
from edgecore.quality.bounds import bounds
from edgecore.quality.divergence import compare
from edgecore.quality.oracles import given_weights, score
from edgecore.quality.rounding import RoundedTensors
from edgecore_conformance import fixtures
from edgecore_mlx import folder, weights
from edgecore_mlx.recipe import RECIPES, WITHOUT_TEXT, Packing
from edgecore_mlx.source import Source

from support.divergence import some_tokens
from support.gguf_files import write_gguf
from support.tiny import TEXT, tiny_llama, train_tokenizer

GOLDENS = Path(__file__).parents[3] / "tests/checkpoint/goldens"
SHORT = {"calibration_samples": 4, "calibration_length": 48}
HEAD = "model.embed_tokens.weight"


def artifact(path: Path, files: Sequence[Any], precision: str = "f16") -> Artifact:
    return Artifact(path, "mlx", "text", "mlx", precision, tuple(files), id="made")


def as_file(made: Artifact, source: Path, tokens: list[int]) -> list[Any]:
    """Logits of the weights that a folder holds."""
    with open_checkpoint(source) as model:
        stored = given_weights(weights.dequantized(made), model.tensors)
        assert not isinstance(stored, str)
        return [np.array(rows) for rows in score(model.decoder, stored, tokens, lambda _: None)]


@pytest.fixture(scope="module")
def trained(mlx: Any, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("trained") / "f16"
    return artifact(out, mlx.convert(fixtures.language_model(), out).files)


@pytest.fixture(scope="module")
def truth() -> tuple[list[int], list[Any]]:
    with open_checkpoint(fixtures.language_model()) as model:
        tokens = model.tokenizer.encode(fixtures.held_out_text())[:256]
        return tokens, [np.array(rows) for rows in Oracle(model.decoder, model.tensors).score(tokens)]


@pytest.mark.parametrize("precision", RECIPES)
def test_what_is_claimed_of_a_precision_is_kept_on_a_trained_model_and_a_text_makes_it_better(
    precision: str, mlx: Any, manifest: Manifest, trained: Artifact, truth: tuple[list[int], list[Any]], tmp_path: Path
) -> None:
    tokens, rows = truth
    source, lost = fixtures.language_model(), []
    given: dict[str, Any] = {"calibration": fixtures.calibration_text(), "calibration_samples": 8}
    for number, options in enumerate([{}] if precision in WITHOUT_TEXT else [{}, given]):
        out = tmp_path / str(number)
        made = artifact(out, mlx.quantize(trained, out, precision, **options).files, precision)
        lost.append(compare(rows, iter(as_file(made, source, tokens)), tokens).kl_mean)
    with open_checkpoint(source) as model:
        plain = RoundedTensors(model.tensors, RECIPES[precision].bits)
        rounded = score(model.decoder, plain, tokens, lambda _: None)
        allowed = bounds().file_multiple * compare(rows, rounded, tokens).kl_mean + bounds().file_slack
    claimed = any(claim.precision == precision for claim in manifest.claims)
    assert lost[0] <= allowed or not claimed
    assert len(lost) == 1 or lost[1] < 0.95 * lost[0]


@pytest.mark.parametrize(
    "name",
    ["multi-query-own-head-dim", "mistral-window", "qwen2-windows", "qwen3-tied", "gemma3-new-style-soft-caps",
     "phi3-longrope-new-style", "bitnet-packed"],
)  # fmt: skip
def test_every_family_is_measured_layer_by_layer_and_runs_as_its_file_says(name: str, mlx: Any, tmp_path: Path) -> None:
    source, text = tmp_path / "hf", tmp_path / "calibration.txt"
    text.write_text(TEXT)
    shutil.copytree(GOLDENS / name, source, ignore=shutil.ignore_patterns("*.npz"))
    train_tokenizer(288).save(str(source / "tokenizer.json"))
    half = artifact(tmp_path / "mlx", mlx.convert(source, tmp_path / "mlx").files)
    answer = mlx.quantize(half, tmp_path / "q4", "q4", calibration=text, group_size=32, **SHORT)
    made = artifact(tmp_path / "q4", answer.files, "q4")
    assert answer.notes[-1] == "gptq on 4 samples of 48 tokens"
    with open_checkpoint(source) as model:
        tokens = some_tokens(model.decoder, 40)
    with mlx.run(made) as session:
        lost = compare(as_file(made, source, tokens), session.score(tokens), tokens).kl_mean
    assert lost < bounds().kernel("int8" if name.startswith("bitnet") else "f32")


def test_fused_matrices_are_what_their_parts_have_become(mlx: Any, tmp_path: Path) -> None:
    """Phi-3 has q, k and v in one, and gate and up."""
    text = tmp_path / "calibration.txt"
    text.write_text(TEXT)
    shutil.copytree(GOLDENS / "phi3-window", tmp_path / "hf", ignore=shutil.ignore_patterns("*.npz"))
    train_tokenizer(288).save(str(tmp_path / "hf" / "tokenizer.json"))
    half = artifact(tmp_path / "mlx", mlx.convert(tmp_path / "hf", tmp_path / "mlx").files)
    given = {"calibration": text, "group_size": 32, **SHORT}
    made = artifact(tmp_path / "q4", mlx.quantize(half, tmp_path / "q4", "q4", **given).files, "q4")
    stored = folder.tensors(made.path)
    assert "model.layers.0.self_attn.qkv_proj.scales" in stored
    before, now = weights.dequantized(half), weights.dequantized(made)
    for name in before:
        if name.endswith("_proj.weight"):
            assert 0.01 < np.linalg.norm(now[name] - before[name]) / np.linalg.norm(before[name]) < 0.3, name


@pytest.mark.parametrize("precision", ["q8", "q4", "q2"])
def test_ternary_matrices_stay_as_they_are_and_are_listed(precision: str, mlx: Any, tmp_path: Path) -> None:
    source = tmp_path / "hf"
    shutil.copytree(GOLDENS / "bitnet-packed", source, ignore=shutil.ignore_patterns("*.npz"))
    train_tokenizer(288).save(str(source / "tokenizer.json"))
    half = artifact(tmp_path / "mlx", mlx.convert(source, tmp_path / "mlx").files)
    answer = mlx.quantize(half, tmp_path / "small", precision, group_size=32)
    made = artifact(tmp_path / "small", answer.files, precision)
    before, now = weights.dequantized(half), weights.dequantized(made)
    inner = [name for name in before if name.endswith("_proj.weight")]
    assert all(np.array_equal(now[name], before[name]) for name in inner)
    assert not np.array_equal(now[HEAD], before[HEAD])
    assert {fallback.tensor for fallback in answer.weights.fallbacks} == set(inner)
    assert {fallback.got for fallback in answer.weights.fallbacks} == {"ternary"}
    assert answer.weights.eligible_bits_per_weight < 2.2


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file in Q4_1, the tables too."""
    where = tmp_path_factory.mktemp("blocks")
    with open_checkpoint(tiny_llama(where / "hf", hidden=64, heads=2, kv_heads=1, intermediate=128)) as model:
        file: Path = write_gguf(model, where / "tiny.gguf", "Q4_1")
    return file


def test_blocks_that_convert_kept_are_rounded_as_if_it_had_not(mlx: Any, blocks: Path, tmp_path: Path) -> None:
    kept, loose = (tmp_path / name for name in ("kept", "loose"))
    notes = mlx.convert(blocks, kept).notes
    assert "nothing lost" in notes[0]
    mlx.convert(blocks, loose, packed=False)
    for precision in ("q3", "q8"):
        one, other = (tmp_path / f"{precision} {name}" for name in ("kept", "loose"))
        answer = mlx.quantize(Artifact(kept, "mlx", "text", "mlx", "f16", (), id="x", notes=notes), one, precision)
        assert answer.notes == ("matrices that the source has in few bits, rounded once more: 15",)
        mlx.quantize(artifact(loose, ()), other, precision)
        some, others = weights.find(one), weights.find(other)
        assert some.keys() == others.keys()
        for name, weight in others.items():
            numbers, theirs = (w.rows(0, w.shape[0]) for w in (some[name], weight))
            assert np.linalg.norm(numbers - theirs) <= 0.05 * np.linalg.norm(theirs), name  # f16 in between, or not


def test_blocks_that_are_packed_as_asked_stay_to_the_bit(mlx: Any, blocks: Path, tmp_path: Path) -> None:
    half = artifact(tmp_path / "mlx", mlx.convert(blocks, tmp_path / "mlx").files)
    answer = mlx.quantize(half, tmp_path / "q4", "q4", group_size=32)
    before, now = (folder.tensors(tmp_path / name) for name in ("mlx", "q4"))
    assert all(np.array_equal(now[name].read(), before[name].read()) for name in before)
    assert answer.notes == ()
    assert Source(tmp_path / "q4").packed == Source(tmp_path / "mlx").packed


def test_what_was_quantized_on_purpose_is_refused_by_whoever(mlx: Any, trained: Artifact, tmp_path: Path) -> None:
    model, config = load_model(trained.path, lazy=True)
    model, config = quantize_model(model, config, 64, 4)
    save_model(tmp_path / "theirs", model)
    save_config(config, tmp_path / "theirs" / "config.json")
    theirs = Artifact(tmp_path / "theirs", "mlx", "text", "mlx", "", ())
    with pytest.raises(UnsupportedModel, match="in few bits already"):
        mlx.quantize(theirs, tmp_path / "again", "q8")


def other(where: Path, kind: Any, config: dict[str, Any]) -> Artifact:
    """A folder that mlx_lm wrote of an architecture that the neutral model has not."""
    where.mkdir()
    model = kind.Model(kind.ModelArgs.from_dict(config))
    model.set_dtype(mx.float16)
    mx.eval(model.parameters())
    save_model(where, model)
    save_config(config, where / "config.json")
    return Artifact(where, "mlx", "text", "mlx", "f16", (), id="other")


@pytest.fixture
def experts(tmp_path: Path) -> Artifact:
    return other(
        tmp_path / "experts",
        qwen2_moe,
        {
            "model_type": "qwen2_moe", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128,
            "num_attention_heads": 2, "num_experts_per_tok": 2, "num_experts": 4, "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 64, "rms_norm_eps": 1e-5, "vocab_size": 288, "num_key_value_heads": 2,
        },
    )  # fmt: skip


def test_an_architecture_that_mlx_lm_alone_knows_is_quantized_as_it_would(
    mlx: Any, experts: Artifact, tmp_path: Path
) -> None:
    """Experts, and a router that the architecture wants in 8 bits."""
    out = tmp_path / "q4"
    answer = mlx.quantize(experts, out, "q4", algorithm="rtn")
    assert answer.weights.fallbacks == ()
    model, config = load_model(experts.path, lazy=True)
    with mx.stream(mx.cpu):
        model, config = quantize_model(model, config, 64, 4)
        save_model(tmp_path / "theirs", model)
    theirs: Any = mx.load(str(tmp_path / "theirs" / "model.safetensors"))
    ours: Any = mx.load(str(out / "model.safetensors"))
    assert ours.keys() == theirs.keys()
    assert all(mx.array_equal(ours[name], array).item() for name, array in theirs.items())
    searched = tmp_path / "searched"
    mlx.quantize(experts, searched, "mixed_2_6")
    model, _ = load_model(searched)
    assert mx.isfinite(model(mx.array([[1, 2, 3]]))).all().item()


def test_what_an_architecture_cannot_have_is_refused(mlx: Any, experts: Artifact, tmp_path: Path) -> None:
    text = tmp_path / "calibration.txt"
    text.write_text(TEXT)
    train_tokenizer(288).save(str(experts.path / "tokenizer.json"))
    with pytest.raises(UnsupportedModel, match="gptq computes families of the neutral model") as refused:
        mlx.quantize(experts, tmp_path / "q4", "q4", calibration=text, **SHORT)
    assert "mse" in refused.value.supported
    sizes = {"n_ctx": 64, "n_embd": 64, "n_head": 2, "n_layer": 2, "n_positions": 64, "vocab_size": 100}
    old = other(tmp_path / "gpt2", gpt2, {"model_type": "gpt2", "layer_norm_epsilon": 1e-5, **sizes})
    with pytest.raises(UnsupportedModel, match="v_proj and down_proj"):
        mlx.quantize(old, tmp_path / "mixed", "mixed_3_4")
    mlx.quantize(old, tmp_path / "small", "mxfp4")
    said = json.loads((tmp_path / "small" / "config.json").read_text())["quantization"]
    assert said["mode"] == "mxfp4"
    assert said["model.wte"] == Packing(6, 32).config()
