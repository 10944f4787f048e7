"""mlx_lm's own converter, run as a command, for architectures that the neutral model does not cover."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgecore.checkpoint.exporters import exporters
from edgecore.contract import (
    Artifact,
    Cancelled,
    ConvertLimits,
    CorruptModel,
    DoesNotFit,
    Manifest,
    UnsupportedModel,
    UnsupportedPrecision,
    no_progress,
)
from edgecore.environments import exporter_command
from edgecore_mlx import exporter, folder

from support.tiny import CHAT_TEMPLATE, SPECIAL, train_tokenizer

HIDDEN, LAYERS, CONTEXT = 64, 2, 128


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with learned positions, biases and LayerNorm, with code of its own beside it."""
    where = tmp_path_factory.mktemp("models") / "gpt2"
    where.mkdir()
    tokenizer = train_tokenizer(512)
    tokenizer.save(str(where / "tokenizer.json"))
    named = {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "chat_template": CHAT_TEMPLATE}
    write(where / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", **named})
    config = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_ctx": CONTEXT, "n_positions": CONTEXT,
        "n_embd": HIDDEN, "n_head": 4, "n_layer": LAYERS, "layer_norm_epsilon": 1e-5, "bos_token_id": 1,
        "eos_token_id": 2, "vocab_size": tokenizer.get_vocab_size(), "auto_map": {"AutoModel": "modeling_own.Own"},
    }  # fmt: skip
    write(where / "config.json", config)
    (where / "modeling_own.py").write_text("raise SystemExit('this must never run')\n")
    random = np.random.default_rng(0)

    def drawn(*shape: int) -> Any:
        return (random.standard_normal(shape) / shape[0] ** 0.5).astype(np.float32)

    weights = {"wte.weight": drawn(config["vocab_size"], HIDDEN), "wpe.weight": drawn(CONTEXT, HIDDEN)}
    norms = ["ln_f", *(f"h.{n}.ln_{k}" for n in range(LAYERS) for k in (1, 2))]
    for name in norms:
        weights |= {f"{name}.weight": np.ones(HIDDEN, np.float32), f"{name}.bias": np.zeros(HIDDEN, np.float32)}
    sizes = {"attn.c_attn": (1, 3), "attn.c_proj": (1, 1), "mlp.c_fc": (1, 4), "mlp.c_proj": (4, 1)}
    for layer in range(LAYERS):
        for name, (rows, columns) in sizes.items():
            weights[f"h.{layer}.{name}.weight"] = drawn(rows * HIDDEN, columns * HIDDEN)
            weights[f"h.{layer}.{name}.bias"] = drawn(columns * HIDDEN)
    save_file(weights, where / "model.safetensors", metadata={"format": "pt"})
    return where


def write(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values))


def convert(source: Path, out: Path, **given: Any) -> Any:
    out.mkdir(exist_ok=True)
    usual = {
        "format": "mlx", "precision": "f16", "options": {}, "limits": ConvertLimits(), "progress": no_progress,
    }  # fmt: skip
    return exporter.edgecore_convert(source=source, out=out, **usual | given)


def test_another_architecture_becomes_a_folder_that_a_session_opens(mlx: Any, gpt2: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    made = convert(gpt2, tmp_path / "out", progress=lambda done, total, stage="": seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0
    assert sorted(file.path for file in made.files) == sorted(p.name for p in (tmp_path / "out").iterdir())
    assert {folder.MODEL, folder.INDEX, folder.CONFIG, "tokenizer.json"} <= {file.path for file in made.files}
    assert not list((tmp_path / "out").glob("*.py"))
    assert made.weights.bits_per_weight == 16
    assert made.notes == ("made by mlx-lm",)
    assert made.tools.keys() == {"mlx-lm", "mlx", "transformers"}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (gpt2 / name).read_bytes()
    artifact = Artifact(tmp_path / "out", "mlx", "text", "mlx", "f16", made.files, id="x")
    with mlx.run(artifact) as session:
        tokens = session.tokenize("The sea")
        found = np.concatenate(list(session.score(tokens)))
    assert found.shape == (len(tokens), 512)
    assert np.isfinite(found).all()


def test_what_it_does_not_take_is_refused_before_it_runs(gpt2: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="Hugging Face"):
        convert(tmp_path, tmp_path / "a")
    with pytest.raises(UnsupportedPrecision, match="q4"):
        convert(gpt2, tmp_path / "b", precision="q4")
    with pytest.raises(DoesNotFit, match="trained for 128"):
        convert(gpt2, tmp_path / "c", limits=ConvertLimits(max_context=129))
    bare = tmp_path / "bare"
    bare.mkdir()
    write(bare / "config.json", {"model_type": "gpt2"})
    with pytest.raises(UnsupportedModel, match="takes safetensors"):
        convert(bare, tmp_path / "d")
    (bare / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(CorruptModel, match="header length"):
        convert(bare, tmp_path / "e")


def test_code_of_a_models_own_is_refused_before_it_runs(gpt2: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "model.safetensors").write_bytes((gpt2 / "model.safetensors").read_bytes())
    for config in (
        {"model_type": "own", "auto_map": {"AutoModel": "a.B"}},
        {"model_type": "gpt2", "model_file": "a.py"},
    ):
        write(own / "config.json", config)
        with pytest.raises(UnsupportedModel, match="never run"):
            convert(own, tmp_path / "out")


def test_what_it_does_not_know_is_answered_by_its_last_words(gpt2: Path, tmp_path: Path) -> None:
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "model.safetensors").write_bytes((gpt2 / "model.safetensors").read_bytes())
    write(strange / "config.json", {"model_type": "none", "architectures": ["None"]})
    with pytest.raises(UnsupportedModel, match="mlx-lm failed: ValueError: Model type none not supported"):
        convert(strange, tmp_path / "out")


def test_it_ends_when_nobody_waits_any_more(gpt2: Path, tmp_path: Path) -> None:
    def cancel(done: int, total: int, stage: str = "") -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        convert(gpt2, tmp_path / "out", progress=cancel)


def test_it_comes_with_the_plugin_and_others_advise_that_command(manifest: Manifest) -> None:
    assert manifest.exporter
    assert (manifest.exporter.name, manifest.exporter.requires) == (exporter.NAME, ())
    (known,) = [e for e in exporters() if e.name == exporter.NAME]
    assert known.install == exporter_command(manifest) == "edgecore plugin install mlx"
    assert "gpt2" in known.model_types
