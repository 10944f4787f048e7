"""What mlx-lm learns from a text loses less than rounding does, is the same every time, says how far it is, and prints
nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from edgecore.checkpoint import calibration, open_checkpoint
from edgecore.contract import Artifact, BadRequest, Cancelled, Made
from edgecore_conformance import fixtures
from edgecore_mlx import folder, installation, learned
from edgecore_mlx.weights import dequantized

from support.tiny import TEXT, tiny_llama

COUNT, LENGTH = 8, 32
SHORT = {"calibration_length": LENGTH}
SMALL = {"calibration_samples": COUNT, **SHORT}
"""Enough to learn something of a tiny model."""
Steps = list[tuple[int, int, str]]
Quantized = Callable[[str], tuple[Path, Made, Steps]]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smaller than others': AWQ computes each layer sixty times."""
    sizes = {"hidden": 128, "intermediate": 256, "heads": 2, "kv_heads": 1}
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny", **sizes)


@pytest.fixture(scope="session")
def tiny_mlx(mlx: Any, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("models") / "f16"
    mlx.convert(tiny, out)
    return artifact(out, "f16")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def quantized(mlx: Any, tiny_mlx: Artifact, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """By algorithm: the folder, what was said of it and how it went; made once."""
    known: dict[str, tuple[Path, Made, Steps]] = {}

    def make(algorithm: str) -> tuple[Path, Made, Steps]:
        if algorithm not in known:
            steps: Steps = []
            out, given = tmp_path_factory.mktemp(algorithm) / "q4", {}
            if algorithm != "rtn":
                given = {**SMALL, "calibration": text}
            made = mlx.quantize(
                tiny_mlx, out, "q4", algorithm=algorithm, progress=lambda *step: steps.append(step), **given
            )
            known[algorithm] = out, made, steps
        return known[algorithm]

    return make


@pytest.fixture(scope="session")
def logits(tiny: Path) -> Callable[[Path], NDArray[np.float64]]:
    """As mlx_lm computes them for what was learned from."""
    with open_checkpoint(tiny) as model:
        pieces = calibration.samples(model.tokenizer, TEXT, COUNT, LENGTH)

    def of(where: Path) -> NDArray[np.float64]:
        installation.mlx_lm()
        from mlx_lm.utils import load_model

        model, _ = load_model(where)
        model.set_dtype(mx.float32)
        return np.array(model(mx.array(pieces)), np.float64)

    return of


def loss(exact: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (exact, other))
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def artifact(where: Path, precision: str) -> Artifact:
    return Artifact(where, "mlx", "text", "mlx", precision, ())


def packings(where: Path) -> dict[str, int]:
    """Bits by module path."""
    stored, said = folder.tensors(where), folder.quantization(folder.text_config(where))
    paths = [name.removesuffix(".scales") for name in stored if name.endswith(".scales")]
    return {path: packing.bits for path in paths if (packing := said.of(path, stored))}


@pytest.mark.parametrize("algorithm", learned.ALGORITHMS)
def test_a_folder_that_mlx_lm_loads_loses_less_than_rounding_on_what_was_learned_from(
    quantized: Quantized, tiny_mlx: Artifact, logits: Any, algorithm: str
) -> None:
    made, exact = quantized(algorithm)[1], logits(tiny_mlx.path)
    learnt, plain = (loss(exact, logits(quantized(name)[0])) for name in (algorithm, "rtn"))
    assert 0 < learnt < 0.95 * plain
    assert 4.5 <= made.weights.eligible_bits_per_weight <= 4.96
    assert made.weights.fallbacks == ()
    assert made.notes[0] == f"{algorithm} on 8 samples of 32 tokens"


@pytest.mark.parametrize("algorithm", learned.ALGORITHMS)
def test_the_session_computes_what_mlx_lm_does(
    mlx: Any, quantized: Quantized, logits: Any, tiny: Path, algorithm: str
) -> None:
    where = quantized(algorithm)[0]
    with open_checkpoint(tiny) as model:
        piece = calibration.samples(model.tokenizer, TEXT, COUNT, LENGTH)[0]
    with mlx.run(artifact(where, "q4")) as session:
        ours = np.concatenate([np.asarray(rows) for rows in session.score(piece)])
    np.testing.assert_allclose(ours, logits(where)[0], atol=2e-3)


@pytest.mark.parametrize("algorithm", learned.ALGORITHMS)
def test_progress_goes_forward_and_ends_whole(quantized: Quantized, algorithm: str) -> None:
    steps = [(done, total) for done, total, stage in quantized(algorithm)[2] if stage == algorithm]
    done, totals = [step[0] for step in steps], {step[1] for step in steps}
    assert done == sorted(done)
    assert len(totals) == 1
    assert done[0] == 0
    assert done[-1] == totals.pop() >= 2


@pytest.mark.parametrize("algorithm", learned.ALGORITHMS)
def test_nothing_is_printed_and_cancelling_ends_it(
    mlx: Any, tiny_mlx: Artifact, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], algorithm: str
) -> None:
    def stop(done: int, total: int, stage: str = "") -> None:
        if stage == algorithm and done == 2:
            raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        mlx.quantize(tiny_mlx, tmp_path / "out", "q4", calibration=text, algorithm=algorithm, progress=stop, **SMALL)
    assert capfd.readouterr() == ("", "")
    assert not list((tmp_path / "out").iterdir())


def test_awq_moves_numbers_between_norms_and_matrices(quantized: Quantized, tiny_mlx: Artifact) -> None:
    source, made = (dequantized(artifact(where, "")) for where in (tiny_mlx.path, quantized("awq")[0]))
    moved = {name for name in source if source[name].ndim == 1 and not np.array_equal(source[name], made[name])}
    assert moved
    assert all(name.endswith(("input_layernorm.weight", "post_attention_layernorm.weight")) for name in moved)
    norm = sorted(moved)[0]
    columns = source[norm] / made[norm]
    matrix = norm.replace("input_layernorm", "self_attn.v_proj").replace("post_attention_layernorm", "mlp.up_proj")
    assert np.corrcoef((source[matrix] * columns).ravel(), made[matrix].ravel())[0, 1] > 0.98


def test_dwq_of_a_trained_model_helps_on_samples_that_it_has_not_seen(mlx: Any, tmp_path: Path) -> None:
    """A random model has nothing to teach that holds for other texts."""
    mlx.convert(fixtures.language_model(), tmp_path / "f16")
    given: Mapping[str, Any] = {"calibration": fixtures.calibration_text(), "algorithm": "dwq"}
    made = mlx.quantize(
        artifact(tmp_path / "f16", "f16"), tmp_path / "q2", "q2", calibration_samples=16, **given, **SHORT
    )
    before, after = (float(number) for number in re.findall(r"0\.\d+", made.notes[1]))
    assert after < 0.98 * before


def test_the_same_text_gives_the_same_file(
    mlx: Any, quantized: Quantized, tiny_mlx: Artifact, text: Path, tmp_path: Path
) -> None:
    mlx.quantize(tiny_mlx, tmp_path / "again", "q4", calibration=text, algorithm="dynamic", **SMALL)
    files = [where / folder.MODEL for where in (quantized("dynamic")[0], tmp_path / "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_training_made_worse_is_left_out(
    mlx: Any, quantized: Quantized, tiny_mlx: Artifact, text: Path, tmp_path: Path
) -> None:
    given: Mapping[str, Any] = {**SMALL, "calibration": text}
    made = mlx.quantize(tiny_mlx, tmp_path / "dwq", "q4", algorithm="dwq", learning_rate=0.5, **given)
    assert made.notes[1].endswith("so what it learned was left out")
    mlx.quantize(tiny_mlx, tmp_path / "gptq", "q4", algorithm="gptq", **given)
    files = [tmp_path / name / folder.MODEL for name in ("dwq", "gptq")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_dwq_wants_a_sample_to_test_on(mlx: Any, tiny_mlx: Artifact, text: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="the text is one sample"):
        mlx.quantize(tiny_mlx, tmp_path / "out", "q4", calibration=text, algorithm="dwq", calibration_samples=1)


def test_dynamic_gives_bits_to_what_wins_most_up_to_the_target(
    mlx: Any, quantized: Quantized, tiny_mlx: Artifact, text: Path, tmp_path: Path
) -> None:
    usual = packings(quantized("dynamic")[0])
    assert set(usual.values()) == {4, 6}
    given: Mapping[str, Any] = {**SMALL, "calibration": text, "algorithm": "dynamic"}
    made = mlx.quantize(tiny_mlx, tmp_path / "little", "q4", target_bpw=4.6, high_bits=5, **given)
    little = packings(tmp_path / "little")
    assert set(little.values()) == {4, 5}
    assert made.weights.bits_per_weight <= 4.62
    with pytest.raises(BadRequest, match=r"target_bpw=4\.5: with scales all have 4\.5"):
        mlx.quantize(tiny_mlx, tmp_path / "less", "q4", target_bpw=4.5, **given)
    with pytest.raises(BadRequest, match="high_bits=4 of matrices that have 4 anyway"):
        mlx.quantize(tiny_mlx, tmp_path / "same", "q4", high_bits=4, **given)


def test_bits_go_to_those_that_win_most_for_their_size() -> None:
    from edgecore_mlx.learned_dynamic import choose

    wins = {"layers.0.a": 3.0, "layers.0.b": 2.0, "layers.1.a": 1.0, "head": 9.0}
    sizes = {"layers.0.a": 10, "layers.0.b": 20, "layers.1.a": 5, "head": 50}
    assert choose(wins, sizes, [85, 15]) == ["head", "layers.0.a", "layers.1.a"]
    assert choose(wins, sizes, [40, 40]) == ["layers.0.a", "layers.0.b", "layers.1.a"]
    assert choose(wins, sizes, [4, 4]) == []


def test_a_hidden_matrix_computes_as_before(tiny_mlx: Artifact) -> None:
    installation.mlx_lm()
    from mlx_lm.utils import load_model

    model, _ = load_model(tiny_mlx.path)
    tokens = mx.array([[5, 6, 7]])
    before, names = np.array(model(tokens)), list(learned.matrices(model))
    with learned.hidden(model, names[:4]):
        assert list(learned.matrices(model)) == names[4:]
        np.testing.assert_array_equal(np.array(model(tokens)), before)
    assert list(learned.matrices(model)) == names


def test_scales_have_the_type_of_the_source(mlx: Any, tiny: Path, text: Path, tmp_path: Path) -> None:
    mlx.convert(tiny, tmp_path / "bf16", "bf16")
    source = artifact(tmp_path / "bf16", "bf16")
    made = mlx.quantize(source, tmp_path / "out", "q4", calibration=text, algorithm="mlx_gptq", **SMALL)
    assert {tensor.dtype for tensor in folder.tensors(tmp_path / "out").values()} == {"BF16", "U32"}
    assert made.weights.eligible_bits_per_weight == 4.5
