"""A text model's weights in fewer bits: as small as the name says, close, what fell back listed, and refusals typed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nncf.common.logging.track_progress import track

from edgecore.checkpoint import Oracle, open_checkpoint
from edgecore.contract import (
    Artifact,
    BadRequest,
    Cancelled,
    CorruptModel,
    Made,
    Manifest,
    UnsupportedModel,
    UnsupportedPrecision,
)
from edgecore.quality.bounds import bounds
from edgecore.quality.divergence import compare
from edgecore.quality.oracles import given_weights, score
from edgecore.quality.rounding import RoundedTensors
from edgecore_openvino import folder, four_bits, weights
from edgecore_openvino.recipe import RECIPES

from support.bare_ir import Model
from support.tiny import TEXT, tiny_llama

BITS = {
    "int8_asym": 8 + 24 / 256, "int8_sym": 8 + 16 / 256, "int4_asym": 4 + 20 / 64, "int4_sym": 4 + 16 / 64,
    "nf4": 4 + 16 / 64, "mxfp4": 4 + 8 / 32, "nvfp4": 4 + 8 / 16,
}  # fmt: skip
"""Of the layers' matrices: a scale of 16 bits a group, with a zero point of the type, or an exponent of 8."""
SHORT = {"calibration_samples": 6, "calibration_length": 64}
Quantize = Callable[..., tuple[Artifact, Made]]


@pytest.fixture
def quantize(openvino: Any, tiny_ir: Artifact, tmp_path: Path) -> Quantize:
    """`quantize(precision, **options)` of the tiny model, as the store would make an artifact of it."""

    def call(precision: str, source: Artifact = tiny_ir, **given: Any) -> tuple[Artifact, Made]:
        out = tmp_path / f"made-{len(list(tmp_path.iterdir()))}"
        made = openvino.quantize(source, out, precision, **given)
        return Artifact(out, "openvino", "text", "openvino-genai", precision, made.files, id="made"), made

    return call


def converted(openvino: Any, folder: Path, **sizes: int) -> Artifact:
    tiny_llama(folder / "hf", **sizes)
    made = openvino.convert(folder / "hf", folder / "ir")
    return Artifact(folder / "ir", "openvino", "text", "openvino-genai", "f16", made.files, id="converted")


@pytest.fixture(scope="module")
def small(openvino: Any, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """For what takes long: two layers of rows of 64 and 128."""
    return converted(openvino, tmp_path_factory.mktemp("small"), hidden=64, heads=2, kv_heads=1, intermediate=128)


@pytest.fixture(scope="module")
def odd(openvino: Any, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Rows of 192 divide by 64, rows of 200 by no more than 8."""
    folder = tmp_path_factory.mktemp("odd")
    return converted(openvino, folder, layers=1, hidden=192, heads=3, kv_heads=3, intermediate=200)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "calibration.txt"
    file.write_text(TEXT)
    return file


def matrices(artifact: Artifact) -> dict[str, np.ndarray]:
    found = weights.dequantized(artifact)
    return {name: found[name] for name in found if name.endswith("_proj.weight")}


def types(artifact: Artifact) -> dict[str, str]:
    found = weights.find(artifact.model).items()
    return {name: weight.stored.get_output_element_type(0).get_type_name() for name, weight in found if weight.matrix}


def error(some: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> float:
    """The largest relative one of a matrix."""
    return max(float(np.linalg.norm(some[n] - others[n]) / np.linalg.norm(others[n])) for n in others)


@pytest.mark.parametrize("precision", RECIPES)
def test_a_precision_has_its_bits_and_loses_no_more_than_the_core_allows(
    precision: str, quantize: Quantize, tiny: Path, tiny_ir: Artifact, manifest: Manifest
) -> None:
    artifact, made = quantize(precision)
    assert made.weights is not None
    declared = next(p for p in manifest.precisions if p.name == precision)
    nominal = declared.bits + declared.overhead
    # down_proj has longer rows than 256: its scales are fewer.
    assert made.weights.eligible_bits_per_weight == pytest.approx(BITS[precision], abs=0.02)
    assert declared.bits < made.weights.eligible_bits_per_weight <= nominal
    assert made.weights.fallbacks == ()
    assert error(matrices(artifact), matrices(tiny_ir)) < (0.01 if declared.bits == 8 else 0.16)
    with open_checkpoint(tiny) as model:
        tokens = model.tokenizer.encode(TEXT)[:128]
        stored = given_weights(weights.dequantized(artifact), model.tensors)
        assert not isinstance(stored, str)
        run = partial(score, model.decoder, tokens=tokens, advance=lambda _: None)
        truth = np.concatenate([np.array(rows) for rows in Oracle(model.decoder, model.tensors).score(tokens)])
        rounded = RoundedTensors(model.tensors, declared.bits)
        allowed = bounds().file_multiple * compare([truth], run(tensors=rounded), tokens).kl_mean + bounds().file_slack
        assert compare([truth], run(tensors=stored), tokens).kl_mean <= allowed


@pytest.mark.parametrize("precision", RECIPES)
def test_what_runs_is_what_the_file_holds(precision: str, quantize: Quantize, tiny: Path) -> None:
    artifact, _ = quantize(precision)
    with open_checkpoint(tiny) as model:
        tokens = model.tokenizer.encode(TEXT)[:64]
        stored = given_weights(weights.dequantized(artifact), model.tensors)
        assert not isinstance(stored, str)
        file = [np.array(rows) for rows in score(model.decoder, stored, tokens, lambda _: None)]
    run = Model(artifact.model).logits(tokens, [40, 24])
    assert compare(file, [run], tokens).kl_mean < bounds().kernel("f16")


def test_the_rest_of_the_folder_comes_along(quantize: Quantize, tiny_ir: Artifact) -> None:
    artifact, made = quantize("int8_asym")
    listed = {file.path: file.role for file in made.files}
    assert listed == {file.path: file.role for file in tiny_ir.files}
    assert set(listed) == {file.name for file in artifact.path.iterdir()}
    assert (artifact.path / "tokenizer.json").read_bytes() == (tiny_ir.path / "tokenizer.json").read_bytes()
    assert made.tools["nncf"].startswith("3.")


@pytest.mark.parametrize(("size", "bits"), [(32, 4 + 20 / 32), (128, 4 + 20 / 128), (-1, 4 + 20 / 320)])
def test_larger_groups_take_fewer_bits(size: int, bits: float, quantize: Quantize) -> None:
    _, made = quantize("int4_asym", group_size=size)
    assert made.weights is not None
    assert made.weights.eligible_bits_per_weight == pytest.approx(bits, abs=0.02)
    assert made.weights.fallbacks == ()


def test_ratio_backup_and_all_layers_say_which_matrices_get_what(quantize: Quantize, small: Artifact) -> None:
    head, in_layers = "model.embed_tokens.weight", "_proj.weight"
    plain = types(quantize("int4_sym", small)[0])
    assert plain[head] == "u8"
    assert {t for n, t in plain.items() if n.endswith(in_layers)} == {"i4"}
    some = types(quantize("int4_sym", small, ratio=0.5, backup="int8_sym")[0])
    assert some[head] == "i8"
    assert {t for n, t in some.items() if n.endswith(in_layers)} == {"i4", "i8"}
    assert types(quantize("int4_sym", small, backup="none")[0])[head] == "f16"
    assert set(types(quantize("int4_sym", small, all_layers=True)[0]).values()) == {"i4"}


@pytest.mark.parametrize("method", ["awq", "scale_estimation", "gptq"])
def test_a_method_changes_the_weights_and_says_on_what_it_was_measured(
    method: str, quantize: Quantize, text: Path, small: Artifact
) -> None:
    plain, _ = quantize("int4_asym", small)
    made, answer = quantize("int4_asym", small, calibration=text, **{method: True}, **SHORT)
    assert error(matrices(made), matrices(plain)) > 0.01
    assert error(matrices(made), matrices(small)) < 0.3
    assert answer.notes == (f"{method.replace('_', ' ')} on 6 samples of 64 tokens",)
    assert answer.weights is not None
    assert answer.weights.fallbacks == ()


@pytest.mark.parametrize("precision", ["int4_asym", "int4_sym"])
def test_a_calibration_text_means_gptq(precision: str, quantize: Quantize, text: Path, small: Artifact) -> None:
    made, answer = quantize(precision, small, calibration=text, **SHORT)
    asked, _ = quantize(precision, small, calibration=text, gptq=True, **SHORT)
    assert "gptq" in answer.notes[0]
    assert error(matrices(made), matrices(asked)) == 0
    assert types(made)["model.embed_tokens.weight"] == "u8"


def test_samples_are_no_longer_than_what_the_model_was_trained_for(
    quantize: Quantize, text: Path, small: Artifact
) -> None:
    trained = folder.trained_context(small.path)
    _, answer = quantize("int4_asym", small, calibration=text, calibration_samples=1, calibration_length=100 * trained)
    assert answer.notes == (f"gptq on 1 samples of {trained} tokens",)


def test_what_was_said_of_the_source_is_said_of_what_was_made_of_it(quantize: Quantize, small: Artifact) -> None:
    _, answer = quantize("int8_sym", replace(small, notes=("dequantized from Q4_1",)))
    assert answer.notes == ("dequantized from Q4_1",)


def test_a_text_that_nothing_looks_at_is_said_to_be_unused(quantize: Quantize, text: Path, small: Artifact) -> None:
    made, answer = quantize("int4_asym", small, calibration=text, gptq=False)
    assert error(matrices(made), matrices(quantize("int4_asym", small)[0])) == 0
    assert answer.notes == ("the calibration text was not used: nothing in the recipe looks at activations",)


def test_without_a_text_the_model_writes_one(quantize: Quantize, text: Path, small: Artifact) -> None:
    made, answer = quantize("int4_asym", small, self_calibration=True, **SHORT)
    again, _ = quantize("int4_asym", small, self_calibration=True, **SHORT)
    assert answer.notes == ("gptq on 6 samples of 64 tokens that the model wrote",)
    assert error(matrices(made), matrices(again)) == 0
    assert error(matrices(made), matrices(quantize("int4_asym", small)[0])) > 0.01
    with pytest.raises(BadRequest, match="a calibration text and self_calibration"):
        quantize("int4_asym", small, calibration=text, self_calibration=True)
    with pytest.raises(BadRequest, match="mxfp4 has no option self_calibration"):
        quantize("mxfp4", small, self_calibration=True)


def test_layers_that_do_not_fit_in_memory_at_once_are_done_in_turns(
    quantize: Quantize, text: Path, small: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = quantize("int4_asym", small, calibration=text, **SHORT)
    monkeypatch.setattr(four_bits, "AT_ONCE", 128 << 10)
    seen: list[tuple[int, int, str]] = []
    turns, _ = quantize("int4_asym", small, calibration=text, progress=lambda *step: seen.append(step), **SHORT)
    measured = [step for step in seen if step[2] == "measuring activations"]
    assert measured[0][1] > 6
    assert measured[0][1] % 6 == 0
    assert [done for done, *_ in measured] == sorted(done for done, *_ in measured)
    # Later layers are measured on what the earlier ones have become.
    assert 0 < error(matrices(turns), matrices(whole)) < 0.4
    first = "model.layers.0.self_attn.q_proj.weight"
    assert np.array_equal(matrices(turns)[first], matrices(whole)[first])


@pytest.mark.parametrize("calibrated", [False, True])
def test_rows_that_do_not_divide_are_listed(calibrated: bool, quantize: Quantize, odd: Artifact, text: Path) -> None:
    given = {"calibration": text, **SHORT} if calibrated else {}
    _, made = quantize("int4_asym", odd, group_size=128, **given)
    assert made.weights is not None
    listed = {f.tensor.removeprefix("model.layers.0."): (f.got, f.reason) for f in made.weights.fallbacks}
    smaller = ("int4_asym, groups of 64", "rows of 192 cannot be cut into groups of 128")
    assert listed.pop("mlp.down_proj.weight") == ("u8", "rows of 200 cannot be cut into equal groups of 16 or more")
    assert set(listed) == {f"self_attn.{p}_proj.weight" for p in "qkvo"} | {
        f"mlp.{p}_proj.weight" for p in ("gate", "up")
    }
    assert set(listed.values()) == {smaller}


def test_microscaling_leaves_rows_that_do_not_divide_as_they_were(quantize: Quantize, odd: Artifact) -> None:
    _, made = quantize("mxfp4", odd)
    assert made.weights is not None
    assert [(f.tensor, f.got) for f in made.weights.fallbacks] == [("model.layers.0.mlp.down_proj.weight", "f16")]


@pytest.mark.parametrize(
    ("precision", "given", "said"),
    [
        ("int4_asym", {"group_size": 48}, "power of two"),
        ("int4_asym", {"group_size": 0}, "power of two"),
        ("int4_asym", {"group_size": 8}, "power of two"),
        ("int4_asym", {"group_size": 1 << 31}, "power of two"),
        ("int4_asym", {"ratio": float("nan")}, "ratio"),
        ("int4_asym", {"gptq": True}, "--calibration"),
        ("int4_sym", {"scale_estimation": True}, "--calibration"),
        ("int8_sym", {"group_size": 64}, "int8_sym has no option group_size"),
        ("mxfp4", {"awq": True}, "ratio, backup, all_layers"),
        ("nf4", {"gptq": True}, "nf4 has no option gptq"),
    ],
)
def test_what_makes_no_sense_is_refused(precision: str, given: dict[str, Any], said: str, quantize: Quantize) -> None:
    with pytest.raises(BadRequest) as refused:
        quantize(precision, **given)
    assert said in str(refused.value)


def test_gptq_goes_alone(quantize: Quantize, text: Path) -> None:
    others: tuple[dict[str, Any], ...] = ({"awq": True}, {"scale_estimation": True}, {"ratio": 0.5})
    for other in others:
        with pytest.raises(BadRequest, match="gptq goes with no other method"):
            quantize("int4_asym", calibration=text, gptq=True, **other)


def test_an_unknown_precision_is_refused_with_those_that_are_made(quantize: Quantize) -> None:
    with pytest.raises(UnsupportedPrecision) as refused:
        quantize("q4_k_m")
    assert refused.value.supported == ", ".join(RECIPES)


def test_what_is_quantized_already_is_refused(quantize: Quantize, small: Artifact) -> None:
    made, _ = quantize("int8_sym", small)
    with pytest.raises(UnsupportedModel, match="its weights are i8 already") as refused:
        quantize("int4_sym", made)
    assert refused.value.hint.startswith("edgecore convert")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "0 tokens"), (b"two words", "at least 32"), (b"\xff\xfe\x00", "utf-8"), (None, "No such file")],
)
def test_a_bad_calibration_text_is_refused(
    content: bytes | None, said: str, quantize: Quantize, tmp_path: Path
) -> None:
    file = tmp_path / "bad.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(BadRequest, match=said):
        quantize("int4_asym", calibration=file)


@pytest.mark.parametrize("stage", ["measuring activations", "rounding", "applying weight compression", "writing"])
def test_a_cancelled_quantization_ends_and_leaves_nncf_as_it_was(
    stage: str, quantize: Quantize, text: Path, small: Artifact
) -> None:
    bars = track.__iter__

    def stop(done: int, total: int, now: str = "") -> None:
        if now == stage:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        quantize("int4_asym", small, calibration=text, progress=stop, **SHORT)
    assert track.__iter__ is bars


def test_progress_only_grows_and_nncf_prints_nothing(
    quantize: Quantize, text: Path, small: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, list[int]] = {}
    quantize("int4_asym", small, calibration=text, scale_estimation=True, progress=_into(seen), **SHORT)
    assert "applying scale estimation" in seen
    assert "statistics collection" in seen
    assert all(steps == sorted(steps) for steps in seen.values())
    assert capsys.readouterr().out == ""


def _into(seen: dict[str, list[int]]) -> Callable[[int, int, str], None]:
    def report(done: int, total: int, stage: str = "") -> None:
        assert 0 <= done <= total
        seen.setdefault(stage, []).append(done)

    return report


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(
    broken: float, quantize: Quantize, small: Artifact, tmp_path: Path
) -> None:
    copy = replace(small, path=tmp_path / "broken")
    shutil.copytree(small.path, copy.path)
    stored = np.fromfile(copy.path / "openvino_model.bin", np.float16)
    stored[-1000] = broken
    stored.tofile(copy.path / "openvino_model.bin")
    with pytest.raises(CorruptModel, match="NaN or infinite"):
        quantize("int8_sym", copy)
