"""A text model's weights in few bits: as small as the name says, close, mlx-lm's own where asked, refusals typed."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.convert import mixed_quant_predicate_builder
from mlx_lm.utils import load_model, quantize_model, save_model

from edgecore.checkpoint import Oracle, open_checkpoint, safetensors_out
from edgecore.contract import (
    Artifact,
    BadRequest,
    Cancelled,
    CorruptModel,
    DoesNotFit,
    Made,
    Manifest,
    UnsupportedModel,
    UnsupportedPrecision,
)
from edgecore.contract.precisions import OVERSIZE
from edgecore.quality.bounds import bounds
from edgecore.quality.divergence import compare
from edgecore.quality.oracles import given_weights, score
from edgecore.quality.rounding import RoundedTensors
from edgecore_mlx import folder, mixed, weights
from edgecore_mlx.recipe import RECIPES, Packing, recipe

from support.tiny import TEXT, tiny_llama

SHORT = {"calibration_samples": 6, "calibration_length": 64}
HEAD = "model.embed_tokens.weight"
Quantize = Callable[..., tuple[Artifact, Made]]


@pytest.fixture
def quantize(mlx: Any, tiny_mlx: Artifact, tmp_path: Path) -> Quantize:
    """`quantize(precision, **options)` of the tiny model, as the store would make an artifact of it."""

    def call(precision: str, source: Artifact = tiny_mlx, **given: Any) -> tuple[Artifact, Made]:
        out = tmp_path / f"made-{len(list(tmp_path.iterdir()))}"
        made = mlx.quantize(source, out, precision, **given)
        return Artifact(out, "mlx", "text", "mlx", precision, made.files, id="made"), made

    return call


def converted(mlx: Any, where: Path, precision: str = "f16", **sizes: Any) -> Artifact:
    tiny_llama(where / "hf", **sizes)
    made = mlx.convert(where / "hf", where / "mlx", precision)
    return Artifact(where / "mlx", "mlx", "text", "mlx", precision, made.files, id="converted")


@pytest.fixture(scope="module")
def little(mlx: Any, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """For what takes long: two layers of rows of 64 and 128."""
    return converted(mlx, tmp_path_factory.mktemp("little"), hidden=64, heads=2, kv_heads=1, intermediate=128)


@pytest.fixture(scope="module")
def odd(mlx: Any, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Rows of 192 divide by 64, rows of 200 by nothing that MLX has."""
    where = tmp_path_factory.mktemp("odd")
    return converted(mlx, where, layers=1, hidden=192, heads=3, kv_heads=3, intermediate=200)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "calibration.txt"
    file.write_text(TEXT)
    return file


def arrays(artifact: Artifact) -> dict[str, Any]:
    return {name: array.read() for name, array in folder.tensors(artifact.path).items()}


def matrices(artifact: Artifact) -> dict[str, np.ndarray]:
    found = weights.dequantized(artifact)
    return {name: found[name] for name in found if name.endswith("_proj.weight")}


def packings(artifact: Artifact) -> dict[str, Packing]:
    """Of every packed matrix, by module path, as the folder says."""
    said, stored = folder.quantization(folder.text_config(artifact.path)), folder.tensors(artifact.path)
    paths = [name.removesuffix(".scales") for name in stored if name.endswith(".scales")]
    return {path: how for path in paths if (how := said.of(path, stored))}


def error(some: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> float:
    """The largest relative one of a matrix."""
    return max(float(np.linalg.norm(some[n] - others[n]) / np.linalg.norm(others[n])) for n in others)


def same(one: Path, other: Path) -> bool:
    return all((one / file.name).read_bytes() == file.read_bytes() for file in other.iterdir())


@pytest.mark.parametrize("precision", RECIPES)
def test_a_precision_has_its_bits_and_loses_no_more_than_the_core_allows(
    precision: str, quantize: Quantize, tiny: Path, manifest: Manifest
) -> None:
    artifact, made = quantize(precision)
    assert made.weights is not None
    declared = next(p for p in manifest.precisions if p.name == precision)
    nominal = declared.bits + declared.overhead
    assert declared.bits < made.weights.eligible_bits_per_weight <= 1.01 * nominal
    assert made.weights.fallbacks == ()
    claimed = any(claim.precision == precision for claim in manifest.claims)
    with open_checkpoint(tiny) as model:
        tokens = model.tokenizer.encode(TEXT)[:128]
        stored = given_weights(weights.dequantized(artifact), model.tensors)
        assert not isinstance(stored, str)
        run = partial(score, model.decoder, tokens=tokens, advance=lambda _: None)
        truth = np.concatenate([np.array(rows) for rows in Oracle(model.decoder, model.tensors).score(tokens)])
        plain = RoundedTensors(model.tensors, declared.bits)
        allowed = bounds().file_multiple * compare([truth], run(tensors=plain), tokens).kl_mean + bounds().file_slack
        assert (compare([truth], run(tensors=stored), tokens).kl_mean <= allowed) or not claimed


@pytest.mark.parametrize("precision", ["q3", "q4", "q8", "mxfp4", "nvfp4", "mixed_3_6"])
def test_what_runs_is_what_the_file_holds(precision: str, quantize: Quantize, mlx: Any, little: Artifact) -> None:
    artifact, _ = quantize(precision, little)
    with open_checkpoint(little.path) as model:
        tokens = model.tokenizer.encode(TEXT)[:64]
        stored = given_weights(weights.dequantized(artifact), model.tensors)
        assert not isinstance(stored, str)
        file = [np.array(rows) for rows in score(model.decoder, stored, tokens, lambda _: None)]
    with mlx.run(artifact) as session:
        assert compare(file, session.score(tokens), tokens).kl_mean < bounds().kernel("f32")


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
@pytest.mark.parametrize(("precision", "group"), [("q4", 64), ("q8", 32), ("mxfp4", None)])
def test_rtn_is_what_mlx_lm_convert_writes(
    precision: str, group: int | None, dtype: str, quantize: Quantize, mlx: Any, tmp_path: Path
) -> None:
    source = converted(mlx, tmp_path / "source", dtype, hidden=64, heads=2, kv_heads=1, intermediate=128)
    given = {"group_size": group} if group else {}
    artifact, _ = quantize(precision, source, algorithm="rtn", embedding="layers", **given)
    model, config = load_model(source.path, lazy=True)
    wanted = RECIPES[precision]
    with mx.stream(mx.cpu):
        model, config = quantize_model(model, config, group, wanted.bits, mode=wanted.mode)
        save_model(tmp_path / "theirs", model)
    theirs: Any = mx.load(str(tmp_path / "theirs" / "model.safetensors"))
    ours: Any = mx.load(str(artifact.path / "model.safetensors"))
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype
        assert mx.array_equal(ours[name], array).item(), name
    said = json.loads((artifact.path / "config.json").read_text())
    assert said["quantization"] == said["quantization_config"] == config["quantization"]


@pytest.mark.parametrize("name", mixed.BITS)
@pytest.mark.parametrize("layers", [1, 2, 8, 9, 30])
def test_mixed_recipes_choose_what_mlx_lm_chooses(name: str, layers: int) -> None:
    class Model:
        """What the builder looks at."""

        def __init__(self) -> None:
            self.layers = [None] * layers

        def named_modules(self) -> list[tuple[str, None]]:
            return [("model.layers.0.mlp.down_proj", None)]

    theirs, ours = mixed_quant_predicate_builder(name, Model(), 64), recipe(name, {}, False, layers)
    parts = ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj")
    paths = [f"model.layers.{i}.self_attn.{part}" for i in range(layers) for part in parts]
    paths += [f"model.layers.{i}.mlp.{part}" for i in range(layers) for part in ("gate_up_proj", "down_proj")]
    for path in [*paths, "lm_head"]:
        plan = ours.plan(path, (128, 64))
        assert plan is not None
        assert plan.config() == theirs(path, None)
    assert ours.plan("model.embed_tokens", (512, 64)) == Packing(mixed.BITS[name][1], 64)


@pytest.mark.parametrize("name", mixed.BITS)
def test_mixed_recipes_have_the_bits_that_the_manifest_says(name: str, quantize: Quantize, manifest: Manifest) -> None:
    artifact, made = quantize(name)
    few, more = mixed.BITS[name]
    found = {path.removeprefix("model.layers."): how.bits for path, how in packings(artifact).items()}
    assert {path for path, bits in found.items() if bits == more} == {
        "1.self_attn.v_proj", "1.mlp.down_proj", "model.embed_tokens",
    }  # fmt: skip
    assert set(found.values()) == {few, more}
    declared = next(p for p in manifest.precisions if p.name == name)
    assert made.weights is not None
    assert made.weights.eligible_bits_per_weight <= OVERSIZE * (declared.bits + declared.overhead)


def test_the_rest_of_the_folder_comes_along_and_mlx_lm_loads_it(quantize: Quantize, tiny_mlx: Artifact) -> None:
    artifact, made = quantize("q4")
    listed = {file.path: file.role for file in made.files}
    assert listed == {file.path: file.role for file in tiny_mlx.files}
    assert set(listed) == {file.name for file in artifact.path.iterdir()}
    assert (artifact.path / "tokenizer.json").read_bytes() == (tiny_mlx.path / "tokenizer.json").read_bytes()
    model, config = load_model(artifact.path)
    assert config["quantization"] == {"group_size": 64, "bits": 4, "mode": "affine"}
    assert mx.isfinite(model(mx.array([[1, 2, 3]]))).all().item()


@pytest.mark.parametrize(("dtype", "stored"), [("f16", np.float16), ("bf16", ml_dtypes.bfloat16), ("f32", np.float32)])
def test_scales_have_the_type_of_the_model(
    dtype: str, stored: Any, quantize: Quantize, mlx: Any, text: Path, tmp_path: Path
) -> None:
    source = converted(mlx, tmp_path / "source", dtype, hidden=64, heads=2, kv_heads=1, intermediate=128)
    for given in ({}, {"calibration": text, **SHORT}):
        artifact, _ = quantize("q4", source, **given)
        found = arrays(artifact)
        assert {found[name].dtype for name in found if not name.endswith(".weight")} == {np.dtype(stored)}
        assert found["model.norm.weight"].dtype == np.dtype(stored)
        assert error(matrices(artifact), matrices(source)) < 0.3


@pytest.mark.parametrize(("size", "plus"), [(32, 1), (64, 0.5), (128, 0.25)])
def test_larger_groups_take_fewer_bits(size: int, plus: float, quantize: Quantize) -> None:
    _, made = quantize("q4", group_size=size)
    assert made.weights is not None
    assert made.weights.eligible_bits_per_weight == 4 + plus
    assert made.weights.fallbacks == ()


def test_embedding_and_head_have_what_the_option_says(
    quantize: Quantize, mlx: Any, tmp_path: Path, little: Artifact
) -> None:
    path = "model.embed_tokens"
    assert packings(quantize("q4", little)[0])[path] == Packing(4, 64)
    assert packings(quantize("q3", little)[0])[path] == Packing(6, 64)
    assert packings(quantize("q3", little, embedding="layers")[0])[path] == Packing(3, 64)
    assert packings(quantize("mxfp4", little)[0])[path] == Packing(6, 32)
    assert packings(quantize("mxfp4", little, embedding="layers")[0])[path] == Packing(4, 32, "mxfp4")
    assert packings(quantize("q2", little, embedding="q8", group_size=32)[0])[path] == Packing(8, 32)
    left = quantize("q4", little, embedding="none")[0]
    assert path not in packings(left)
    assert np.array_equal(weights.dequantized(left)[HEAD], weights.dequantized(little)[HEAD])
    apart = converted(mlx, tmp_path / "apart", hidden=64, heads=2, kv_heads=1, intermediate=128, tied=False)
    found = packings(quantize("q3", apart)[0])
    assert (found[path], found["lm_head"]) == (Packing(6, 64), Packing(6, 64))


def test_a_calibration_text_means_gptq(quantize: Quantize, text: Path, little: Artifact) -> None:
    plain, _ = quantize("q4", little)
    made, answer = quantize("q4", little, calibration=text, **SHORT)
    assert answer.notes == ("gptq on 6 samples of 64 tokens",)
    assert error(matrices(made), matrices(plain)) > 0.01
    assert error(matrices(made), matrices(little)) < 0.3
    assert answer.weights is not None
    assert answer.weights.fallbacks == ()
    asked, _ = quantize("q4", little, calibration=text, algorithm="gptq", **SHORT)
    assert same(asked.path, made.path)


def test_the_same_request_gives_the_same_bytes(quantize: Quantize, text: Path, little: Artifact) -> None:
    for given in ({}, {"calibration": text, **SHORT}):
        one, other = (quantize("q4", little, **given)[0].path for _ in range(2))
        assert same(one, other)


def test_samples_are_no_longer_than_what_the_model_was_trained_for(
    quantize: Quantize, text: Path, little: Artifact
) -> None:
    trained = folder.trained_context(little.path)
    _, answer = quantize("q4", little, calibration=text, calibration_samples=1, calibration_length=100 * trained)
    assert answer.notes == (f"gptq on 1 samples of {trained} tokens",)


def test_what_was_said_of_the_source_is_said_of_what_was_made_of_it(quantize: Quantize, little: Artifact) -> None:
    _, answer = quantize("q8", replace(little, notes=("dequantized from Q4_1",)))
    assert answer.notes == ("dequantized from Q4_1",)


@pytest.mark.parametrize(("precision", "given"), [("q4", {"algorithm": "mse"}), ("q8", {}), ("mxfp8", {})])
def test_a_text_that_nothing_looks_at_is_said_to_be_unused(
    precision: str, given: dict[str, Any], quantize: Quantize, text: Path, little: Artifact
) -> None:
    made, answer = quantize(precision, little, calibration=text, **given)
    assert same(made.path, quantize(precision, little)[0].path)
    assert answer.notes == ("the calibration text was not used: mse looks at nothing but the weights",)


def test_without_a_text_the_model_writes_one(quantize: Quantize, text: Path, little: Artifact) -> None:
    made, answer = quantize("q4", little, self_calibration=True, **SHORT)
    again, _ = quantize("q4", little, self_calibration=True, **SHORT)
    assert answer.notes == ("gptq on 6 samples of 64 tokens that the model wrote",)
    assert same(made.path, again.path)
    assert error(matrices(made), matrices(quantize("q4", little)[0])) > 0.01
    with pytest.raises(BadRequest, match="a calibration text and self_calibration"):
        quantize("q4", little, calibration=text, self_calibration=True)
    with pytest.raises(BadRequest, match="'self_calibration'"):
        quantize("q8", little, self_calibration=True)


@pytest.mark.parametrize("calibrated", [False, True])
def test_rows_that_do_not_divide_are_listed_and_never_left_in_silence(
    calibrated: bool, quantize: Quantize, mlx: Any, odd: Artifact, text: Path, manifest: Manifest
) -> None:
    """mlx_lm.convert leaves all of these as they were, with groups of 128, and says nothing."""
    given = {"calibration": text, **SHORT} if calibrated else {}
    artifact, made = quantize("q4", odd, group_size=128, **given)
    assert made.weights is not None
    listed = {f.tensor.removeprefix("model.layers.0."): (f.got, f.reason) for f in made.weights.fallbacks}
    assert listed.pop("mlp.down_proj.weight") == ("F16", "rows of 200 cannot be cut into groups of 128")
    assert len(listed) == 6
    assert set(listed.values()) == {("4 bits, groups of 64", "rows of 192 cannot be cut into groups of 128")}
    assert packings(artifact)["model.embed_tokens"] == Packing(4, 64)
    with mlx.run(artifact) as session:
        assert np.isfinite(session.context().prefill(session.tokenize("text"))).all()
    declared = next(p for p in manifest.precisions if p.name == "q4")
    assert made.weights.eligible_bits_per_weight > OVERSIZE * (declared.bits + declared.overhead)  # the core refuses


@pytest.mark.parametrize(
    ("hidden", "asked", "got"), [(96, 64, 32), (576, 128, 64), (320, 128, 64), (80, 32, None), (256, 128, 128)]
)
def test_the_largest_group_that_divides_a_row_is_taken(hidden: int, asked: int, got: int | None) -> None:
    plan = recipe("q4", {"group_size": asked}, False).plan("model.layers.0.mlp.up_proj", (512, hidden))
    assert plan == (Packing(4, got) if got else None)


@pytest.mark.parametrize(
    ("precision", "given", "said"),
    [
        ("q4", {"group_size": 16}, "32, 64, 128"),
        ("mxfp4", {"group_size": 64}, "'group_size'"),
        ("q4", {"algorithm": "hqq"}, "rtn, mse, gptq"),
        ("q4", {"algorithm": "gptq"}, "--calibration"),
        ("q4", {"algorithm": "dwq"}, "--calibration"),
        ("q4", {"embedding": "q7"}, "layers, q2"),
        ("q8", {"algorithm": "gptq"}, "q8 has no gptq"),
        ("mxfp8", {"algorithm": "gptq"}, "mxfp8 has no gptq"),
    ],
)
def test_what_makes_no_sense_is_refused(precision: str, given: dict[str, Any], said: str, quantize: Quantize) -> None:
    with pytest.raises(BadRequest) as refused:
        quantize(precision, **given)
    assert said in f"{refused.value} {refused.value.hint}"


def test_an_option_of_one_algorithm_chooses_it_and_options_of_two_are_refused() -> None:
    assert recipe("q4", {"learning_rate": 1e-5}, True).algorithm == "dwq"
    assert recipe("q4", {"high_bits": 6, "target_bpw": 4.8}, True).algorithm == "dynamic"
    with pytest.raises(BadRequest, match="learning_rate is for dwq, not for gptq"):
        recipe("q4", {"high_bits": 6, "learning_rate": 1e-5}, True)


def test_an_unknown_precision_is_refused_with_those_that_are_made() -> None:
    with pytest.raises(UnsupportedPrecision) as refused:
        recipe("q4_k_m", {}, False)
    assert refused.value.supported == ", ".join(RECIPES)


def test_what_is_quantized_already_is_refused(quantize: Quantize, little: Artifact) -> None:
    made, _ = quantize("q8", little)
    with pytest.raises(UnsupportedModel, match="its weights are in few bits already") as refused:
        quantize("q4", made)
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
        quantize("q4", calibration=file)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("given", [{}, {"algorithm": "rtn"}, {"calibrated": True}], ids=["mse", "rtn", "gptq"])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_weights_that_are_no_numbers_are_refused_and_nothing_is_left(
    broken: float, given: dict[str, Any], name: str, quantize: Quantize, little: Artifact, text: Path, tmp_path: Path
) -> None:
    hurt = tmp_path / "hurt"
    hurt.mkdir()
    for file in little.path.iterdir():
        (hurt / file.name).write_bytes(file.read_bytes())
    stored = folder.tensors(hurt)[name]
    data = bytearray((hurt / folder.MODEL).read_bytes())
    at = bytes(data).index(stored.tensor.data.tobytes())
    data[at : at + 2] = np.float16(broken).tobytes()
    (hurt / folder.MODEL).write_bytes(data)
    given = {"calibration": text, **SHORT} if "calibrated" in given else given
    with pytest.raises(CorruptModel, match="NaN or infinite"):
        quantize("q4", replace(little, path=hurt), **given)
    assert [file for made in tmp_path.glob("made-*") for file in made.iterdir()] == []


@pytest.mark.parametrize("stage", ["measuring activations", "weights", "writing a calibration text"])
def test_a_cancelled_quantization_leaves_nothing(
    stage: str, quantize: Quantize, text: Path, little: Artifact, tmp_path: Path
) -> None:
    def stop(done: int, total: int, now: str = "") -> None:
        if now == stage and done:
            raise Cancelled("enough")

    given = {"weights": {}, "measuring activations": {"calibration": text}}.get(stage, {"self_calibration": True})
    with pytest.raises(Cancelled):
        quantize("q4", little, progress=stop, **given, **SHORT)
    assert [file for made in tmp_path.glob("made-*") for file in made.iterdir()] == []


def test_a_large_matrix_can_be_cancelled_before_it_is_done(
    quantize: Quantize, little: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def report(done: int, total: int, stage: str = "") -> None:
        seen.append(done)

    monkeypatch.setattr("edgecore_mlx.quantize_text._AT_ONCE", 1 << 10)
    quantize("q4", little, progress=report)
    assert seen == sorted(seen)
    assert len(seen) - len(set(seen)) > 50


def test_a_full_disk_is_said_and_leaves_nothing(
    quantize: Quantize, little: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = safetensors_out.write_safetensors

    def full(path: Path, *rest: Any) -> None:
        write(path, *rest)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder, "write_safetensors", full)
    with pytest.raises(DoesNotFit, match="No space left"):
        quantize("q4", little)
    assert [file for made in tmp_path.glob("made-*") for file in made.iterdir()] == []


def test_progress_only_grows_and_nothing_is_printed(
    quantize: Quantize, text: Path, little: Artifact, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, list[int]] = {}

    def report(done: int, total: int, stage: str = "") -> None:
        assert 0 <= done <= total
        seen.setdefault(stage, []).append(done)

    quantize("q4", little, calibration=text, progress=report, **SHORT)
    assert set(seen) == {"measuring activations", "weights"}
    assert all(steps == sorted(steps) for steps in seen.values())
    assert capfd.readouterr().out == ""
