"""Architectures outside the neutral model run through mlx_lm's own code and keep the contract all the same."""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from edgecore.contract import (
    GREEDY,
    Artifact,
    BackendUnavailable,
    BadRequest,
    CorruptModel,
    DoesNotFit,
    UnsupportedModel,
)
from edgecore_mlx import installation, memory
from edgecore_mlx import session as sessions

from support.divergence import divergence
from support.tiny import tiny_llama

GPT2 = {"n_ctx": 128, "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 128, "layer_norm_epsilon": 1e-5}
MAMBA2 = {
    "num_heads": 8, "head_dim": 16, "hidden_size": 64, "intermediate_size": 128, "state_size": 16,
    "num_hidden_layers": 2, "layer_norm_epsilon": 1e-5, "conv_kernel": 4, "n_groups": 1, "use_bias": False,
    "use_conv_bias": True, "tie_word_embeddings": True, "time_step_limit": [0.001, 0.1], "time_step_rank": 4,
}  # fmt: skip
COHERE2 = {
    "hidden_size": 64, "head_dim": 16, "num_hidden_layers": 4, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "layer_norm_eps": 1e-5, "sliding_window": 16, "sliding_window_pattern": 4,
    "max_position_embeddings": 128, "rope_theta": 10000.0, "logit_scale": 1.0, "attention_bias": False,
    "layer_norm_bias": False,
}  # fmt: skip
GEMMA2 = {
    "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 16,
    "rms_norm_eps": 1e-5, "num_key_value_heads": 2, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    "query_pre_attn_scalar": 16, "max_position_embeddings": 128,
}  # fmt: skip
KINDS = {"gpt2": GPT2, "mamba2": MAMBA2, "cohere2": COHERE2, "gemma2": GEMMA2}
"""Keys and values; states alone; rings of a window beside whole layers; what nothing in the neutral model is."""


def made(kind: str, folder: Path, bits: int = 0, **changes: Any) -> Artifact:
    """A native folder of random weights, F16, as mlx_lm writes it."""
    installation.mlx_lm()
    from mlx import nn
    from mlx.utils import tree_flatten, tree_map

    config = json.loads((tiny_llama(folder) / "config.json").read_text())
    kept = ("vocab_size", "bos_token_id", "eos_token_id")
    config = {"model_type": kind, **{key: config[key] for key in kept}, **KINDS[kind], **changes}
    module = importlib.import_module(f"mlx_lm.models.{kind}")
    mx.random.seed(1)
    model = module.Model(module.ModelArgs.from_dict(config))

    def drawn(old: mx.array) -> mx.array:
        return (mx.random.normal(old.shape) * 0.08 if old.ndim > 1 else old).astype(mx.float16)

    model.update(tree_map(drawn, model.parameters()))
    if bits:
        nn.quantize(model, group_size=32, bits=bits)
        config["quantization"] = {"group_size": 32, "bits": bits, "mode": "affine"}
    weights = dict(tree_flatten(model.parameters()))
    (folder / "config.json").write_text(json.dumps(config))
    stored(folder, weights)
    return Artifact(folder, "mlx", "text", "mlx", "", ())


def stored(folder: Path, weights: dict[str, mx.array]) -> None:
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return made("gpt2", tmp_path_factory.mktemp("other") / "gpt2")


@pytest.fixture
def session(mlx: Any, gpt2: Artifact) -> Iterator[Any]:
    with mlx.run(gpt2, 100) as opened:
        yield opened


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_to_a_position_agrees_whatever_the_cache_can_forget(kind: str, mlx: Any, tmp_path: Path) -> None:
    with mlx.run(made(kind, tmp_path / kind), 100, prefill_step_size=7) as session:
        context = session.context()
        tokens = np.random.default_rng(0).integers(0, session.vocab_size, 60).tolist()
        scored = np.concatenate(list(session.score(tokens)))
        assert scored.std() > 0.1

        def far(found: Any, position: int) -> float:
            return float(divergence(scored[position][None], found[None]).max())

        assert far(context.prefill(tokens[:40]), 39) < 1e-9
        assert max(far(context.step(tokens[i]), i) for i in range(40, 60)) < 1e-9
        context.rewind(30)
        assert far(context.step(tokens[30]), 30) < 1e-9
        context.rewind(3)
        assert far(context.prefill(tokens[28:45]), 44) < 1e-9
        assert session.conditions["compute"] == "f32"
        assert session.placement.share("cpu") == 1.0


def test_logits_are_those_that_mlx_lm_computes(mlx: Any, gpt2: Artifact, session: Any) -> None:
    from mlx.utils import tree_map
    from mlx_lm.utils import load_model

    model, _ = load_model(gpt2.path)
    model.update(tree_map(lambda a: a.astype(mx.float32), model.parameters()))
    tokens = [5, 6, 7, 8]
    expected = np.array(model(mx.array([tokens]))[0])
    assert divergence(expected, np.concatenate(list(session.score(tokens)))).max() < 1e-9


def test_packed_matrices_stay_packed(mlx: Any, tmp_path: Path) -> None:
    with mlx.run(made("gpt2", tmp_path / "q4", bits=4), 64) as session:
        parameters = session.context().network.model._model.parameters()
        assert parameters["model"]["wte"]["weight"].dtype == mx.uint32
        assert parameters["model"]["wte"]["scales"].dtype == mx.float32
        assert session.context().prefill([5, 6]).shape == (session.vocab_size,)


def test_it_generates_in_any_thread(session: Any) -> None:
    prompt = session.tokenize("hello there")
    expected = list(session.generate(prompt, max_tokens=6, sampling=GREEDY))
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(session.generate(prompt, max_tokens=6, sampling=GREEDY)))
    thread.start()
    thread.join()
    assert found == expected
    assert list(session.generate(prompt, max_tokens=6, sampling=GREEDY, reuse_cache=True)) == expected


def test_an_architecture_that_mlx_lm_has_not_is_refused_with_what_there_is(mlx: Any, tmp_path: Path) -> None:
    folder = made("gpt2", tmp_path / "odd").path
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "abacus"}))
    with pytest.raises(UnsupportedModel, match=r"abacus not supported by mlx_lm \d") as caught:
        mlx.run(Artifact(folder, "mlx", "text", "mlx", "", ()), 64)
    assert "mlx_lm has" in caught.value.supported


def test_weights_that_do_not_fit_the_description_are_named(mlx: Any, tmp_path: Path) -> None:
    artifact = made("gpt2", tmp_path / "holes")
    weights = mx.load(str(artifact.path / "model.safetensors"))
    assert isinstance(weights, dict)
    mx.eval(list(weights.values()))
    name = "model.h.0.mlp.c_fc.weight"
    for damaged, words in (
        ({k: v for k, v in weights.items() if k != name}, name.replace(".", r"\.")),
        (weights | {"surplus.weight": mx.ones((2,))}, "surplus"),
        (weights | {name: mx.ones((3, 3))}, "c_fc"),
        (weights | {name: mx.full(weights[name].shape, float("nan"))}, "c_fc.*NaN"),
    ):
        stored(artifact.path, damaged)
        with pytest.raises(CorruptModel, match=words):
            mlx.run(artifact, 64)


def test_a_config_that_lacks_a_field_is_a_typed_error(mlx: Any, tmp_path: Path) -> None:
    artifact = made("gpt2", tmp_path / "short")
    config = json.loads((artifact.path / "config.json").read_text())
    (artifact.path / "config.json").write_text(json.dumps(config | {"n_layer": 10**9}))
    with pytest.raises(CorruptModel, match=r"n_layer.*1000000000 layers"):
        mlx.run(artifact, 64)
    del config["n_layer"]
    (artifact.path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CorruptModel, match="mlx_lm cannot load it"):
        mlx.run(artifact, 64)


def test_what_mlx_lms_code_cannot_follow_is_refused(mlx: Any, gpt2: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    for option in ({"kv_bits": 8}, {"unpacked": True}):
        with pytest.raises(BadRequest, match="outside the neutral model"):
            mlx.run(gpt2, 64, **option)
    with monkeypatch.context() as patched:
        patched.setattr(memory, "room", lambda device: 1000)
        with pytest.raises(DoesNotFit, match="the model"):
            mlx.run(gpt2, 64)

    def missing() -> None:
        raise BackendUnavailable("mlx_lm cannot be imported: No module named 'transformers'")

    monkeypatch.setattr(installation, "mlx_lm", missing)
    with pytest.raises(BackendUnavailable, match="transformers"):
        mlx.run(gpt2, 64)


def test_threads_are_said_as_they_are(gpt2: Artifact) -> None:
    with sessions.open_session(gpt2, "cpu", 64, 2, {}) as session:
        assert session.conditions["threads"] == str(installation.blas().limit(2))
        assert session.context().prefill(some_tokens_of(session)).shape == (session.vocab_size,)
    installation.blas().limit(1)


def some_tokens_of(session: Any) -> list[int]:
    return np.random.default_rng(3).integers(0, session.vocab_size, 9).tolist()
