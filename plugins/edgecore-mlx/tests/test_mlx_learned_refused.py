"""mlx-lm learns nothing about a model that it computes otherwise, nor what it cannot pack: each is refused with what is
supported instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_map

from edgecore.contract import (
    Artifact,
    BadRequest,
    ConvertLimits,
    DoesNotFit,
    EdgecoreError,
    UnsupportedModel,
)
from edgecore_conformance.fixtures import random_models
from edgecore_mlx import installation, memory

from support.tiny import TEXT, tiny_llama

SMALL = {"calibration_samples": 4, "calibration_length": 32}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


def artifact(where: Path) -> Artifact:
    return Artifact(where, "mlx", "text", "mlx", "f16", ())


def refused(mlx: Any, source: Artifact, text: Path, precision: str = "q4", **options: Any) -> EdgecoreError:
    with pytest.raises(EdgecoreError) as caught:
        mlx.quantize(source, text.with_name("out"), precision, calibration=text, **SMALL, **options)
    assert not list(text.with_name("out").iterdir())
    return caught.value


@pytest.mark.parametrize(
    ("precision", "algorithm", "supported"),
    [
        ("q3", "mlx_gptq", "q2, q4"),
        ("q2", "dynamic", "q3, q4, q5, q6"),
        ("mixed_4_6", "awq", "q2, q3, q4, q5, q6"),
        ("mxfp4", "dwq", "q2, q3, q4, q5, q6, mixed recipes"),
    ],
)
def test_precisions_that_a_method_does_not_make(
    mlx: Any, tiny_mlx: Artifact, text: Path, precision: str, algorithm: str, supported: str
) -> None:
    error = refused(mlx, tiny_mlx, text, precision, algorithm=algorithm)
    assert isinstance(error, BadRequest)
    assert error.what.startswith(f"{algorithm} does not make")
    assert error.supported == supported


def test_options_of_another_algorithm(mlx: Any, tiny_mlx: Artifact, text: Path) -> None:
    error = refused(mlx, tiny_mlx, text, algorithm="gptq", learning_rate=1e-4)
    assert isinstance(error, BadRequest)
    assert error.what == "learning_rate is for dwq, not for gptq"
    assert error.supported == "algorithm=dwq"


@pytest.mark.parametrize("algorithm", ["awq", "mlx_gptq", "dynamic"])
def test_groups_that_do_not_divide_every_row(mlx: Any, text: Path, tmp_path: Path, algorithm: str) -> None:
    mlx.convert(tiny_llama(tmp_path / "hf", hidden=192, intermediate=320, heads=3, kv_heads=3), tmp_path / "f16")
    error = refused(mlx, artifact(tmp_path / "f16"), text, algorithm=algorithm, group_size=128)
    assert isinstance(error, UnsupportedModel)
    assert "groups of 128 do not divide the rows of 'model.layers.0." in error.what
    assert error.supported == "group_size=32 or 64"


@pytest.mark.parametrize(
    ("family", "algorithm", "why", "supported"),
    [
        ("bitnet", "dwq", "it takes BitNet with packed ternary weights only", "algorithm=gptq"),
        ("phi3", "mlx_gptq", "by the factors of longer ones", "algorithm=gptq"),
        ("mistral-window", "dynamic", "leaves out the window of", "calibration_length="),
        ("gemma3", "awq", "leaves out the window of 16 tokens", "calibration_length=16, or algorithm=gptq"),
    ],
)
def test_models_that_mlx_lm_computes_otherwise(
    mlx: Any, text: Path, tmp_path: Path, family: str, algorithm: str, why: str, supported: str
) -> None:
    mlx.convert(random_models.family(family), tmp_path / "f16")
    error = refused(mlx, artifact(tmp_path / "f16"), text, algorithm=algorithm)
    assert isinstance(error, UnsupportedModel)
    assert why in error.what
    assert supported in error.supported


def test_awq_of_an_architecture_that_it_does_not_know(mlx: Any, text: Path, tmp_path: Path) -> None:
    mlx.convert(random_models.family("phi3"), tmp_path / "f16", limits=ConvertLimits(max_context=256))
    error = refused(mlx, artifact(tmp_path / "f16"), text, algorithm="awq")
    assert isinstance(error, UnsupportedModel)
    assert error.what == "mlx-lm's AWQ knows no architecture 'phi3'"
    assert "llama, mistral" in error.supported


def test_a_text_of_one_sample_for_dwq(mlx: Any, tiny_mlx: Artifact, text: Path) -> None:
    text.write_text(TEXT[:150], encoding="utf-8")
    error = refused(mlx, tiny_mlx, text, algorithm="dwq")
    assert isinstance(error, BadRequest)
    assert "the text is one sample" in error.what


def test_more_than_memory_holds(mlx: Any, tiny_mlx: Artifact, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "room", lambda device: 1 << 20)
    error = refused(mlx, tiny_mlx, text, algorithm="dynamic")
    assert isinstance(error, DoesNotFit)
    assert error.what.startswith("dynamic of the model: ")


@pytest.mark.parametrize("algorithm", ["dwq", "mlx_gptq", "dynamic"])
def test_an_architecture_that_mlx_lm_alone_knows_is_learned_from_too(
    mlx: Any, text: Path, tmp_path: Path, algorithm: str
) -> None:
    source = stablelm(tmp_path / "source")
    made = mlx.quantize(source, tmp_path / "out", "q4", calibration=text, algorithm=algorithm, **SMALL)
    assert made.notes[0] == f"{algorithm} on 4 samples of 32 tokens"
    assert 4.5 <= made.weights.eligible_bits_per_weight <= 4.96
    from mlx_lm.utils import load_model

    model, _ = load_model(tmp_path / "out")
    assert mx.isfinite(model(mx.array([[1, 2, 3]]))).all().item()


def stablelm(out: Path) -> Artifact:
    """A folder that mlx_lm wrote of an architecture that the neutral model has not."""
    installation.mlx_lm()
    from mlx_lm.models import stablelm as code
    from mlx_lm.utils import save_config, save_model

    config = {
        "model_type": "stablelm", "vocab_size": 512, "hidden_size": 128, "num_attention_heads": 2,
        "num_hidden_layers": 2, "num_key_value_heads": 2, "intermediate_size": 256, "rope_theta": 10000,
        "use_qkv_bias": False, "partial_rotary_factor": 0.25, "layer_norm_eps": 1e-5, "tie_word_embeddings": False,
    }  # fmt: skip
    tiny_llama(out)
    mx.random.seed(0)
    model = code.Model(code.ModelArgs.from_dict(config))
    model.update(tree_map(lambda a: a.astype(mx.float16), model.parameters()))
    (out / "model.safetensors").unlink()
    save_model(out, model)
    save_config(config, out / "config.json")
    return artifact(out)
