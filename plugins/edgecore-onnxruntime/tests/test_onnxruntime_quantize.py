"""A text model's weights in 4 and 8 bits: as small as the name says, close, what fell back listed, refusals typed."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxruntime.capi._pybind_state import quantize_matmul_4bits, quantize_matmul_8bits

from edgecore.checkpoint import Oracle, open_checkpoint
from edgecore.checkpoint.calibration import samples
from edgecore.checkpoint.gptq import gptq
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
from edgecore.quality.bounds import bounds
from edgecore.quality.divergence import compare
from edgecore.quality.oracles import given_weights, score
from edgecore.quality.rounding import RoundedTensors
from edgecore_onnxruntime import folder, nbits, quantize_text, small, weights
from edgecore_onnxruntime.recipe import ALGORITHMS, PROJECTIONS, RECIPES, recipe
from edgecore_onnxruntime.rounding import rounded

from support.divergence import some_tokens
from support.tiny import TEXT, tiny_llama, train_tokenizer

SHORT = {"calibration_samples": 6, "calibration_length": 64}
HEAD = "model.embed_tokens.weight"
Quantize = Callable[..., tuple[Artifact, Made]]


@pytest.fixture
def quantize(onnxruntime: Any, tiny_onnx: Artifact, tmp_path: Path) -> Quantize:
    """`quantize(precision, **options)` of the tiny model, as the store would make an artifact of it."""

    def call(precision: str, source: Artifact = tiny_onnx, **given: Any) -> tuple[Artifact, Made]:
        out = tmp_path / f"made-{len(list(tmp_path.iterdir()))}"
        made = onnxruntime.quantize(source, out, precision, **given)
        return Artifact(out, "onnxruntime", "text", "onnx-genai", precision, made.files, id="made"), made

    return call


def converted(onnxruntime: Any, where: Path, precision: str = "f16", **sizes: Any) -> Artifact:
    tiny_llama(where / "hf", **sizes)
    made = onnxruntime.convert(where / "hf", where / "onnx", precision)
    return Artifact(where / "onnx", "onnxruntime", "text", "onnx-genai", precision, made.files, id="converted")


@pytest.fixture(scope="module")
def little(onnxruntime: Any, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """For what takes long: two layers of rows of 64 and 128."""
    return converted(onnxruntime, tmp_path_factory.mktemp("little"), hidden=64, heads=2, kv_heads=1, intermediate=128)


@pytest.fixture(scope="module")
def odd(onnxruntime: Any, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Rows of 192 divide by 64, rows of 200 by no more than 8."""
    where = tmp_path_factory.mktemp("odd")
    return converted(onnxruntime, where, layers=1, hidden=192, heads=3, kv_heads=3, intermediate=200)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "calibration.txt"
    file.write_text(TEXT)
    return file


def matrices(artifact: Artifact) -> dict[str, np.ndarray]:
    found = weights.dequantized(artifact)
    return {name: found[name] for name in found if name.endswith("_proj.weight")}


def bits(artifact: Artifact) -> dict[str, int]:
    """Of every matrix; 16 and more for one in floating point."""
    found = {}
    for name, weight in weights.find(artifact.path / folder.MODEL).items():
        if len(weight.shape) > 1:
            own = [a.i for a in weight.node.attribute if a.name == "bits"]
            found[name] = own[0] if own else round(8 * weight.nbytes / weight.elements)
    return found


def error(some: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> float:
    """The largest relative one of a matrix."""
    return max(float(np.linalg.norm(some[n] - others[n]) / np.linalg.norm(others[n])) for n in others)


@pytest.mark.parametrize("precision", RECIPES)
def test_a_precision_has_its_bits_and_loses_no_more_than_the_core_allows(
    precision: str, quantize: Quantize, tiny: Path, tiny_onnx: Artifact, manifest: Manifest
) -> None:
    artifact, made = quantize(precision)
    assert made.weights is not None
    declared = next(p for p in manifest.precisions if p.name == precision)
    nominal = declared.bits + declared.overhead
    assert declared.bits < made.weights.eligible_bits_per_weight <= 1.05 * nominal
    assert made.weights.fallbacks == ()
    assert error(matrices(artifact), matrices(tiny_onnx)) < (0.01 if declared.bits == 8 else 0.16)
    with open_checkpoint(tiny) as model:
        tokens = model.tokenizer.encode(TEXT)[:128]
        stored = given_weights(weights.dequantized(artifact), model.tensors)
        assert not isinstance(stored, str)
        run = partial(score, model.decoder, tokens=tokens, advance=lambda _: None)
        truth = np.concatenate([np.array(rows) for rows in Oracle(model.decoder, model.tensors).score(tokens)])
        plain = RoundedTensors(model.tensors, declared.bits)
        allowed = bounds().file_multiple * compare([truth], run(tensors=plain), tokens).kl_mean + bounds().file_slack
        assert compare([truth], run(tensors=stored), tokens).kl_mean <= allowed


@pytest.mark.parametrize(("precision", "level"), [("int4", 1), ("int4", 4), ("int8", 1), ("int8", 4)])
def test_what_runs_is_what_the_file_holds(
    precision: str, level: int, quantize: Quantize, onnxruntime: Any, tiny: Path
) -> None:
    artifact, _ = quantize(precision, accuracy_level=level)
    with open_checkpoint(tiny) as model:
        tokens = model.tokenizer.encode(TEXT)[:64]
        stored = given_weights(weights.dequantized(artifact), model.tensors)
        assert not isinstance(stored, str)
        file = [np.array(rows) for rows in score(model.decoder, stored, tokens, lambda _: None)]
    session = onnxruntime.run(artifact)
    lost = compare(file, session.score(tokens), tokens).kl_mean
    session.close()
    assert lost < bounds().kernel("f32" if level == 1 else "int8")


def test_a_float32_source_gives_the_same_as_a_float16_one(
    quantize: Quantize, onnxruntime: Any, tmp_path: Path, tiny_onnx: Artifact, tiny: Path
) -> None:
    made = onnxruntime.convert(tiny, tmp_path / "f32", "f32")
    wide = Artifact(tmp_path / "f32", "onnxruntime", "text", "onnx-genai", "f32", made.files, id="wide")
    half = tiny_onnx.path / folder.WEIGHTS, quantize("int4")[0].path / folder.WEIGHTS
    assert quantize("int4", wide)[0].path.joinpath(folder.WEIGHTS).stat().st_size == half[1].stat().st_size
    assert error(matrices(quantize("int4", wide)[0]), matrices(wide)) < 0.16


def test_the_rest_of_the_folder_comes_along(quantize: Quantize, tiny_onnx: Artifact) -> None:
    artifact, made = quantize("int8")
    listed = {file.path: file.role for file in made.files}
    assert listed == {file.path: file.role for file in tiny_onnx.files}
    assert set(listed) == {file.name for file in artifact.path.iterdir()}
    assert (artifact.path / "tokenizer.json").read_bytes() == (tiny_onnx.path / "tokenizer.json").read_bytes()


def test_the_graph_is_one_that_onnx_finds_right_and_nothing_of_the_large_matrices_is_left(
    quantize: Quantize, tiny_onnx: Artifact
) -> None:
    artifact, _ = quantize("int4")
    model = onnx.load(artifact.path / folder.MODEL)
    onnx.checker.check_model(model)
    kinds = [node.op_type for node in model.graph.node]
    assert "MatMul" not in kinds
    assert kinds.count("GatherBlockQuantized") == 1
    assert "Transpose" not in kinds
    read = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= read
    assert model.graph.input == onnx.load(tiny_onnx.path / folder.MODEL, load_external_data=False).graph.input


def test_a_tied_embedding_is_stored_once_and_an_untied_head_apart(
    quantize: Quantize, onnxruntime: Any, tmp_path: Path, little: Artifact
) -> None:
    artifact, _ = quantize("int4", little)
    graph = onnx.load(artifact.path / folder.MODEL, load_external_data=False).graph
    users = [n.op_type for n in graph.node if HEAD in n.input or f"{HEAD}/rows" in n.input]
    assert users == ["Reshape", "GatherBlockQuantized", "MatMulNBits"]
    apart = converted(onnxruntime, tmp_path / "apart", hidden=64, heads=2, kv_heads=1, intermediate=128, tied=False)
    assert {n: b for n, b in bits(quantize("int4", apart)[0]).items() if ".layers." not in n} == {
        HEAD: 4, "lm_head.weight": 4,
    }  # fmt: skip


@pytest.mark.parametrize(("size", "plus"), [(16, 20 / 16), (64, 20 / 64)])
def test_larger_blocks_take_fewer_bits(size: int, plus: float, quantize: Quantize) -> None:
    _, made = quantize("int4", block_size=size, wide="")
    assert made.weights is not None
    assert made.weights.eligible_bits_per_weight == pytest.approx(4 + plus, abs=0.03)
    assert made.weights.fallbacks == ()
    _, symmetric = quantize("int4", block_size=size, wide="", symmetric=True)
    assert symmetric.weights is not None
    assert symmetric.weights.eligible_bits_per_weight == pytest.approx(4 + 16 / size, abs=0.01)


def test_wide_and_embedding_say_which_matrices_get_what(quantize: Quantize, little: Artifact) -> None:
    plain = bits(quantize("int4", little)[0])
    assert {name.split(".")[-2] for name, n in plain.items() if n == 8} == {"v_proj"}
    assert plain[HEAD] == 4
    some = bits(quantize("int4", little, wide="down_proj, k_proj", embedding="int8")[0])
    assert {name.split(".")[-2] for name, n in some.items() if n == 8} == {"down_proj", "k_proj", "embed_tokens"}
    assert set(bits(quantize("int4", little, wide="")[0]).values()) == {4}
    assert bits(quantize("int4", little, embedding="none")[0])[HEAD] == 16
    assert set(bits(quantize("int8", little)[0]).values()) == {8}


def test_wide_is_left_out_where_it_would_make_too_much_of_the_layers(
    quantize: Quantize, onnxruntime: Any, tmp_path: Path
) -> None:
    every = converted(onnxruntime, tmp_path / "every", hidden=64, heads=2, kv_heads=2, intermediate=64)
    artifact, made = quantize("int4", every)
    assert set(bits(artifact).values()) == {4}
    assert made.notes == ("v_proj in 4 bits: in 8 the layers had more than 4.96",)
    assert 8 in bits(quantize("int4", every, wide="v_proj")[0]).values()


@pytest.mark.parametrize("precision", RECIPES)
@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name != "gptq"])
def test_an_algorithm_without_a_text(algorithm: str, precision: str, quantize: Quantize, little: Artifact) -> None:
    given = {} if algorithm != "k_quant" else {"symmetric": False}
    made, answer = quantize(precision, little, algorithm=algorithm, **given)
    assert answer.notes == ()
    assert error(matrices(made), matrices(little)) < (0.01 if precision == "int8" else 0.14)


def test_searched_scales_lose_less_than_plain_ones() -> None:
    random = np.random.default_rng(0)
    w = random.standard_t(4, (64, 256)).astype(np.float32)

    def lost(algorithm: str, symmetric: bool) -> float:
        made = rounded(w, 32, symmetric, 4, algorithm)
        assert made.scale.shape == (64, 8)
        assert not symmetric or (made.zero == 8).all()
        return float(np.linalg.norm(made.read() - w))

    assert lost("mse", True) < 0.99 * lost("rtn", True)
    assert lost("mse", False) < 0.99 * lost("rtn", False)
    assert lost("k_quant", False) < 0.99 * lost("rtn", False)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_round_to_nearest_and_its_bytes_are_those_of_onnx_runtimes_own_tool(bits: int, symmetric: bool) -> None:
    """But for the scales, which are rounded to float16 before the numbers are."""
    random = np.random.default_rng(0)
    w, rows, columns, block = random.standard_normal((24, 96)).astype(np.float32), 24, 96, 32
    b = np.zeros((rows, 3, block * bits // 8), np.uint8)
    scales, zero = np.zeros(rows * 3, np.float32), np.zeros(rows * (3 if bits == 8 else 2), np.uint8)
    tool = quantize_matmul_4bits if bits == 4 else quantize_matmul_8bits
    tool(b, np.ascontiguousarray(w.T), scales, zero, block, rows, columns, symmetric)
    made = nbits.pack(rounded(w, block, symmetric, bits, "rtn"), bits, symmetric)
    assert np.allclose(np.abs(made.scales.reshape(-1)), np.abs(scales), rtol=1e-3)
    theirs = nbits.read(b, scales, None if symmetric else zero.reshape(rows, -1), columns, bits)
    ours = nbits.read(made.b, made.scales, made.zero_points, columns, bits)
    assert np.abs(ours - theirs).max() < 1.1 * np.abs(scales).max()
    assert np.linalg.norm(ours - theirs) < 0.5 * np.linalg.norm(theirs - w)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_what_is_packed_is_read_again_rows_that_were_filled_up_too(bits: int, symmetric: bool) -> None:
    w = np.pad(np.random.default_rng(0).standard_normal((10, 40)).astype(np.float32), ((0, 0), (0, 8)))
    made = rounded(w, 16, symmetric, bits, "mse")
    packed = nbits.pack(made, bits, symmetric)
    assert packed.b.shape == (10, 3, 16 * bits // 8)
    assert symmetric or (packed.zero_points is not None and packed.zero_points.shape == (10, 2 if bits == 4 else 3))
    again = nbits.read(packed.b, packed.scales, packed.zero_points, 40, bits)
    assert np.array_equal(again, made.read()[:, :40])


def test_a_calibration_text_means_gptq(quantize: Quantize, text: Path, little: Artifact) -> None:
    plain, _ = quantize("int4", little)
    made, answer = quantize("int4", little, calibration=text, **SHORT)
    assert answer.notes == ("gptq on 6 samples of 64 tokens",)
    assert error(matrices(made), matrices(plain)) > 0.01
    assert error(matrices(made), matrices(little)) < 0.3
    assert answer.weights is not None
    assert answer.weights.fallbacks == ()
    asked, _ = quantize("int4", little, calibration=text, algorithm="gptq", **SHORT)
    assert (asked.path / folder.WEIGHTS).read_bytes() == (made.path / folder.WEIGHTS).read_bytes()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """What GPTQ is told of the use of matrices, one after the other."""
    every: list[np.ndarray] = []

    def spy(w: np.ndarray, used: np.ndarray, *rest: Any) -> Any:
        every.append(used)
        return gptq(w, used, *rest)

    monkeypatch.setattr(quantize_text, "gptq", spy)
    return every


def test_gptq_is_told_how_the_matrices_are_used(
    quantize: Quantize, text: Path, little: Artifact, seen: list[np.ndarray]
) -> None:
    """The inputs of the first layer's first matrices, computed here from the neutral model."""
    quantize("int4", little, calibration=text, wide="", **SHORT)
    assert [len(used) for used in seen] == [64, 64, 64, 128] * 2 + [64]
    pieces = samples(folder.open_tokenizer(little.path), TEXT, 6, 64)
    with open_checkpoint(little.path.parent / "hf") as model:
        table = model.tensors[HEAD].read()
        x = np.concatenate([table[piece] for piece in pieces])
        x /= np.sqrt((x**2).mean(1, keepdims=True) + model.decoder.norm_epsilon)
        x *= model.tensors["model.layers.0.input_layernorm.weight"].read()
    assert np.allclose(seen[0], x.T @ x / len(x), rtol=1e-3, atol=1e-4)


def test_later_layers_are_measured_on_what_the_earlier_ones_have_become(
    quantize: Quantize, text: Path, little: Artifact, seen: list[np.ndarray]
) -> None:
    for wide in ("", ",".join(PROJECTIONS)):
        quantize("int4", little, calibration=text, wide=wide, **SHORT)
    coarse, fine = seen[:9], seen[9:]
    assert np.array_equal(coarse[0], fine[0])
    assert not np.allclose(coarse[4], fine[4], rtol=1e-3)


def test_the_same_request_gives_the_same_bytes(quantize: Quantize, text: Path, little: Artifact) -> None:
    one, other = (quantize("int4", little, calibration=text, **SHORT)[0].path for _ in range(2))
    for name in (folder.MODEL, folder.WEIGHTS):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_samples_are_no_longer_than_what_the_model_was_trained_for(
    quantize: Quantize, text: Path, little: Artifact
) -> None:
    trained = folder.trained_context(little.path)
    _, answer = quantize("int4", little, calibration=text, calibration_samples=1, calibration_length=100 * trained)
    assert answer.notes == (f"gptq on 1 samples of {trained} tokens",)


def test_what_was_said_of_the_source_is_said_of_what_was_made_of_it(quantize: Quantize, little: Artifact) -> None:
    _, answer = quantize("int8", replace(little, notes=("dequantized from Q4_1",)))
    assert answer.notes == ("dequantized from Q4_1",)


def test_a_text_that_nothing_looks_at_is_said_to_be_unused(quantize: Quantize, text: Path, little: Artifact) -> None:
    made, answer = quantize("int4", little, calibration=text, algorithm="mse")
    assert error(matrices(made), matrices(quantize("int4", little)[0])) == 0
    assert answer.notes == ("the calibration text was not used: mse looks at nothing but the weights",)


def test_without_a_text_the_model_writes_one(quantize: Quantize, text: Path, little: Artifact) -> None:
    made, answer = quantize("int4", little, self_calibration=True, **SHORT)
    again, _ = quantize("int4", little, self_calibration=True, **SHORT)
    assert answer.notes == ("gptq on 6 samples of 64 tokens that the model wrote",)
    assert error(matrices(made), matrices(again)) == 0
    assert error(matrices(made), matrices(quantize("int4", little)[0])) > 0.01
    with pytest.raises(BadRequest, match="a calibration text and self_calibration"):
        quantize("int4", little, calibration=text, self_calibration=True)
    with pytest.raises(BadRequest, match="'self_calibration'"):
        quantize("int8", little, self_calibration=True)


@pytest.mark.parametrize("calibrated", [False, True])
def test_rows_that_do_not_divide_are_listed(
    calibrated: bool, quantize: Quantize, onnxruntime: Any, odd: Artifact, text: Path
) -> None:
    given = {"calibration": text, **SHORT} if calibrated else {}
    artifact, made = quantize("int4", odd, block_size=128, wide="", **given)
    assert made.weights is not None
    listed = {f.tensor.removeprefix("model.layers.0."): (f.got, f.reason) for f in made.weights.fallbacks}
    assert listed.pop("mlp.down_proj.weight") == (
        "int4, blocks of 16, rows filled up to 208", "rows of 200 cannot be cut into blocks of 128",
    )  # fmt: skip
    assert len(listed) == 6
    assert set(listed.values()) == {("int4, blocks of 64", "rows of 192 cannot be cut into blocks of 128")}
    with onnxruntime.run(artifact) as session:
        assert np.isfinite(session.context().prefill(session.tokenize("text"))).all()


@pytest.mark.parametrize(
    ("precision", "given", "said"),
    [
        ("int4", {"block_size": 48}, "power of two"),
        ("int4", {"block_size": 8}, "block_size"),
        ("int4", {"block_size": 512}, "block_size"),
        ("int4", {"algorithm": "hqq"}, "rtn, mse, k_quant, gptq"),
        ("int4", {"algorithm": "gptq"}, "--calibration"),
        ("int4", {"algorithm": "k_quant", "symmetric": True}, "k_quant searches for zero points"),
        ("int4", {"wide": "v_proj,w_proj"}, "'w_proj' is no projection"),
        ("int4", {"embedding": "int2"}, "int4, int8, none"),
        ("int4", {"accuracy_level": 5}, "accuracy_level"),
        ("int8", {"accuracy_level": 3}, "no such kernels"),
        ("int8", {"wide": "v_proj"}, "is for int4, and this is int8"),
        ("int8", {"algorithm": "gptq"}, "int8 has no gptq"),
    ],
)
def test_what_makes_no_sense_is_refused(precision: str, given: dict[str, Any], said: str, quantize: Quantize) -> None:
    with pytest.raises(BadRequest) as refused:
        quantize(precision, **given)
    assert said in f"{refused.value} {refused.value.hint}"


def test_an_unknown_precision_is_refused_with_those_that_are_made() -> None:
    with pytest.raises(UnsupportedPrecision) as refused:
        recipe("q4_k_m", {}, False)
    assert refused.value.supported == ", ".join(RECIPES)


def test_what_is_quantized_already_is_refused(quantize: Quantize, little: Artifact) -> None:
    made, _ = quantize("int8", little)
    with pytest.raises(UnsupportedModel, match="its weights are in few bits already") as refused:
        quantize("int4", made)
    assert refused.value.hint.startswith("edgecore convert")


def test_a_graph_without_layers_is_refused(quantize: Quantize, little: Artifact, text: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in little.path.iterdir():
        (bare / file.name).write_bytes(file.read_bytes())
    model = onnx.load(bare / folder.MODEL, load_external_data=False)
    for node in model.graph.node:
        node.name = node.name.replace("model.norm", "norm")
    onnx.save(model, bare / folder.MODEL)
    with pytest.raises(UnsupportedModel, match="the graph has no layers by name"):
        quantize("int4", replace(little, path=bare), calibration=text, **SHORT)


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
        quantize("int4", calibration=file)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("calibrated", [False, True])
def test_weights_that_are_no_numbers_are_refused(
    broken: float, calibrated: bool, quantize: Quantize, little: Artifact, text: Path, tmp_path: Path
) -> None:
    hurt = tmp_path / "hurt"
    hurt.mkdir()
    for file in little.path.iterdir():
        (hurt / file.name).write_bytes(file.read_bytes())
    data = np.fromfile(hurt / folder.WEIGHTS, np.float16)
    data[len(data) // 4] = broken
    data.tofile(hurt / folder.WEIGHTS)
    given = {"calibration": text, **SHORT} if calibrated else {}
    with pytest.raises(CorruptModel, match="NaN or infinite"):
        quantize("int4", replace(little, path=hurt), **given)


@pytest.mark.parametrize("stage", ["measuring activations", "rounding", "writing a calibration text"])
def test_a_cancelled_quantization_leaves_nothing(
    stage: str, quantize: Quantize, text: Path, little: Artifact, tmp_path: Path
) -> None:
    def stop(done: int, total: int, now: str = "") -> None:
        if now == stage:
            raise Cancelled("enough")

    given = {"rounding": {}, "measuring activations": {"calibration": text}}.get(stage, {"self_calibration": True})
    with pytest.raises(Cancelled):
        quantize("int4", little, progress=stop, **given, **SHORT)
    assert [file for made in tmp_path.glob("made-*") for file in made.iterdir()] == []


def test_a_full_disk_is_said_and_leaves_nothing(
    quantize: Quantize, little: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = small.Weights.add

    def full(self: small.Weights, name: str, values: np.ndarray) -> Any:
        if "layers.1" in name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return add(self, name, values)

    monkeypatch.setattr(small.Weights, "add", full)
    with pytest.raises(DoesNotFit, match="No space left"):
        quantize("int4", little)
    assert [file for made in tmp_path.glob("made-*") for file in made.iterdir()] == []


def test_progress_only_grows_and_nothing_is_printed(
    quantize: Quantize, text: Path, little: Artifact, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, list[int]] = {}

    def report(done: int, total: int, stage: str = "") -> None:
        assert 0 <= done <= total
        seen.setdefault(stage, []).append(done)

    quantize("int4", little, calibration=text, progress=report, **SHORT)
    assert set(seen) == {"measuring activations"}
    assert all(steps == sorted(steps) for steps in seen.values())
    assert capfd.readouterr().out == ""


def test_scales_are_widened_when_the_model_is_loaded_and_not_at_every_call(
    quantize: Quantize, little: Artifact, tmp_path: Path
) -> None:
    artifact, _ = quantize("int4", little)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(artifact.path / folder.MODEL, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node]
    assert kinds.count("MatMulNBits") == 15
    assert "Reshape" not in kinds
    assert not [node for node in kinds if node == "Cast"][2:], "attention's two only"


GOLDENS = Path(__file__).parents[3] / "tests/checkpoint/goldens"


@pytest.mark.parametrize(
    "name",
    ["multi-query-own-head-dim", "mistral-window", "qwen2-windows", "qwen3-tied", "gemma3-new-style-soft-caps",
     "phi3-longrope-new-style", "bitnet-packed"],
)  # fmt: skip
def test_every_family_is_measured_layer_by_layer_and_runs_as_its_file_says(
    name: str, onnxruntime: Any, quantize: Quantize, text: Path, tmp_path: Path
) -> None:
    source = tmp_path / "hf"
    shutil.copytree(GOLDENS / name, source, ignore=shutil.ignore_patterns("*.npz"))
    train_tokenizer(288).save(str(source / "tokenizer.json"))
    made = onnxruntime.convert(source, tmp_path / "onnx", "f16")
    half = Artifact(tmp_path / "onnx", "onnxruntime", "text", "onnx-genai", "f16", made.files, id="golden")
    artifact, answer = quantize("int4", half, calibration=text, calibration_samples=4, calibration_length=48)
    assert answer.notes[-1] == "gptq on 4 samples of 48 tokens"
    with open_checkpoint(source) as model:
        tokens = some_tokens(model.decoder, 40)
        stored = given_weights(weights.dequantized(artifact), model.tensors)
        assert not isinstance(stored, str)
        file = [np.array(rows) for rows in score(model.decoder, stored, tokens, lambda _: None)]
    with onnxruntime.run(artifact) as session:
        assert compare(file, session.score(tokens), tokens).kl_mean < bounds().kernel("int8")


def test_onnxruntime_genai_loads_the_folder_and_answers_as_we_do(
    onnxruntime: Any, quantize: Quantize, little: Artifact, text: Path
) -> None:
    genai = pytest.importorskip(
        "onnxruntime_genai", reason="needs onnxruntime-genai: bootstrap.py test --only onnxruntime"
    )
    artifact, _ = quantize("int4", little, calibration=text, **SHORT)
    with onnxruntime.run(artifact) as session:
        prompt, context = session.tokenize(TEXT)[:20], session.context()
        logits, ours = context.prefill(prompt), list[int]()
        while len(ours) < 10 and not set(ours) & session.eos_ids:
            ours.append(int(logits.argmax()))
            logits = context.step(ours[-1])
    model = genai.Model(str(artifact.path))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + len(ours), do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array(prompt, np.int32))
    theirs = []
    while not generator.is_done():
        generator.generate_next_token()
        theirs.append(int(generator.get_next_tokens()[0]))
    assert theirs == ours
