"""Damaged, foreign and dangerous folders are typed errors that name file and field, never an end of the process."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from edgecore.contract import Artifact, BadRequest, CorruptModel, EdgecoreError, ModelNotFound, UnsupportedModel
from edgecore_mlx.folder import CONFIG, INDEX, MODEL
from edgecore_mlx.network import failed

Weights = dict[str, mx.array]
DOWN = "model.layers.1.mlp.down_proj"
NORM = "model.norm.weight"


def copied(artifact: Artifact, to: Path) -> Artifact:
    shutil.copytree(artifact.path, to)
    return dataclasses.replace(artifact, path=to)


def configured(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def stored(folder: Path, weights: Weights) -> None:
    """The weights, with an index that says the same."""
    mx.save_safetensors(str(folder / MODEL), weights, {"format": "mlx"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, MODEL)}))


def reweighed(folder: Path, change: Callable[[Weights], Any]) -> None:
    weights = mx.load(str(folder / MODEL))
    assert isinstance(weights, dict)
    mx.eval(list(weights.values()))
    change(weights)
    stored(folder, weights)


def indexed(folder: Path, change: Callable[[dict[str, str]], Any]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def put(name: str, value: mx.array) -> Callable[[Path], None]:
    return lambda folder: reweighed(folder, lambda weights: weights.update({name: value}))


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: reweighed(folder, lambda weights: weights.pop(name))


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: configured(folder, **changes)


def spoiled(name: str, number: float) -> Callable[[Path], None]:
    def change(weights: Weights) -> None:
        flat = weights[name].reshape(-1)
        flat[3] = number
        weights[name] = flat.reshape(weights[name].shape)

    return lambda folder: reweighed(folder, change)


YARN = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    ("damage", "kind", "named"),
    [
        (lambda f: (f / CONFIG).unlink(), ModelNotFound, "config.json"),
        (lambda f: (f / CONFIG).write_text("{"), CorruptModel, "config.json"),
        (config(hidden_size="wide"), CorruptModel, "hidden_size"),
        (config(num_hidden_layers=None), CorruptModel, "num_hidden_layers"),
        (config(num_hidden_layers=3), CorruptModel, r"layers\.2\..*missing"),
        (config(rope_scaling=YARN), UnsupportedModel, "yarn"),
        (config(model_file="model.py"), UnsupportedModel, "model_file.*never run"),
        (config(model_type="mine", auto_map={"AutoModel": "mine.Mine"}), UnsupportedModel, "auto_map.*never run"),
        (config(quantization_config={"quant_method": "gptq", "bits": 4}), UnsupportedModel, "gptq"),
        (lambda f: (f / MODEL).unlink(), (CorruptModel, ModelNotFound), MODEL),
        (lambda f: (f / MODEL).write_bytes((f / MODEL).read_bytes()[:-9]), CorruptModel, "cut short"),
        (lambda f: (f / MODEL).write_bytes(b""), CorruptModel, MODEL),
        (lambda f: (f / INDEX).write_text("[]"), CorruptModel, INDEX),
        (lambda f: indexed(f, lambda m: m.pop(NORM)), CorruptModel, f"{NORM}.*does not name it"),
        (lambda f: indexed(f, lambda m: m.update(more=MODEL)), CorruptModel, "more.*missing"),
        (lambda f: indexed(f, lambda m: m.update(more="gone.safetensors")), CorruptModel, "gone.safetensors"),
        (lambda f: indexed(f, lambda m: m.update({NORM: "../m.safetensors"})), CorruptModel, "not the name of a file"),
        (drop(NORM), CorruptModel, f"{NORM}.*is missing"),
        (drop(f"{DOWN}.weight"), CorruptModel, f"{DOWN}.*is missing"),
        (put(NORM, mx.ones((64,), mx.float16)), CorruptModel, rf"{NORM}.*shape \(64,\)"),
        (put(NORM, mx.ones((256,), mx.int32)), UnsupportedModel, f"{NORM}.*I32"),
        (put("model.layers.0.extra.weight", mx.ones((2,))), UnsupportedModel, "extra"),
        (spoiled(NORM, float("nan")), CorruptModel, f"{NORM}.*NaN"),
        (spoiled(f"{DOWN}.weight", float("inf")), CorruptModel, f"{DOWN}.*NaN or infinite"),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_named_with_what_is_wrong_in_it(
    mlx: Any, tiny_mlx: Artifact, tmp_path: Path, damage: Callable[[Path], Any], kind: type[EdgecoreError], named: str
) -> None:
    broken = copied(tiny_mlx, tmp_path / "broken")
    damage(broken.path)
    with pytest.raises(kind, match=named) as caught:
        mlx.run(broken, 64)
    assert str(broken.path) in caught.value.what, "the folder is named"


def packed(folder: Path, mode: str = "affine", bits: int = 4, group: int = 32) -> None:
    """Packs one matrix and says so."""

    def change(weights: Weights) -> None:
        how = {"group_size": group, "bits": bits, "mode": mode}
        levels, scales, *biases = mx.quantize(weights.pop(f"{DOWN}.weight"), **how)  # type: ignore[arg-type]
        weights |= {f"{DOWN}.weight": levels, f"{DOWN}.scales": scales}
        weights |= {f"{DOWN}.biases": biases[0]} if biases else {}

    reweighed(folder, change)
    configured(folder, quantization={"group_size": group, "bits": bits, "mode": mode})


@pytest.mark.parametrize(
    ("damage", "mode", "kind", "named"),
    [
        (drop(f"{DOWN}.scales"), "affine", (CorruptModel, UnsupportedModel), DOWN),
        (drop(f"{DOWN}.biases"), "affine", CorruptModel, f"{DOWN}.biases.*is missing"),
        (put(f"{DOWN}.scales", mx.ones((256, 15))), "affine", CorruptModel, DOWN),
        (put(f"{DOWN}.scales", mx.ones((255, 16))), "affine", CorruptModel, DOWN),
        (put(f"{DOWN}.biases", mx.ones((256, 17))), "affine", CorruptModel, f"{DOWN}.biases.*shape"),
        (put(f"{DOWN}.biases", mx.ones((256, 16), mx.int32)), "affine", UnsupportedModel, "I32"),
        (put(f"{DOWN}.weight", mx.ones((256, 63), mx.uint32)), "affine", CorruptModel, DOWN),
        (spoiled(f"{DOWN}.scales", float("nan")), "affine", CorruptModel, f"{DOWN}.scales.*NaN"),
        (spoiled(f"{DOWN}.scales", 255), "mxfp4", CorruptModel, f"{DOWN}.scales.*NaN"),
        (config(quantization={"group_size": 32, "bits": 7}), "affine", UnsupportedModel, "7 bits"),
        (config(quantization={"group_size": 32, "bits": 4, "mode": "int4"}), "affine", UnsupportedModel, "int4"),
        (config(quantization={"group_size": "x", "bits": 4}), "affine", CorruptModel, "group_size"),
    ],
)
def test_damaged_packing_is_named_with_its_matrix(
    mlx: Any, tiny_mlx: Artifact, tmp_path: Path, damage: Callable[[Path], Any], mode: str, kind: Any, named: str
) -> None:
    broken = copied(tiny_mlx, tmp_path / "broken")
    packed(broken.path, mode)
    mlx.run(broken, 64).close()
    damage(broken.path)
    with pytest.raises(kind, match=named):
        mlx.run(broken, 64)


def test_a_file_of_code_beside_a_model_that_needs_none_is_never_run(
    mlx: Any, tiny_mlx: Artifact, tmp_path: Path
) -> None:
    artifact = copied(tiny_mlx, tmp_path / "code")
    ran = tmp_path / "ran"
    (artifact.path / "model.py").write_text(f"open({str(ran)!r}, 'w')\n")
    configured(artifact.path, auto_map={"AutoModelForCausalLM": "model.Mine"})
    mlx.run(artifact, 64).close()
    assert not ran.exists()


def test_damaged_headers_never_end_the_process(mlx: Any, tiny_mlx: Artifact, tmp_path: Path) -> None:
    """Bytes of each JSON file and of the weights' header are changed at random: a typed error, or it still runs."""
    artifact = copied(tiny_mlx, tmp_path / "fuzzed")
    draw = random.Random(7)
    outcomes: dict[str, int] = {}
    for name in (CONFIG, INDEX, MODEL):
        file = artifact.path / name
        whole = file.read_bytes()
        header = 8 + int.from_bytes(whole[:8], "little") if name == MODEL else len(whole)
        for _ in range(40):
            damaged = bytearray(whole)
            for _ in range(draw.randint(1, 3)):
                damaged[draw.randrange(header)] = draw.choice(b'0123456789"{}[]:,x \x00\xff')
            file.write_bytes(damaged)
            try:
                with mlx.run(artifact, 8) as session:
                    session.context().prefill([1, 2])
                outcome = "runs"
            except EdgecoreError as error:
                outcome = type(error).__name__
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
        file.write_bytes(whole)
    assert outcomes["CorruptModel"] > 40
    assert sum(outcomes.values()) == 120


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("[malloc] Unable to allocate 99999999999 bytes."), "DoesNotFit"),
        (RuntimeError("[metal::malloc] Attempting to allocate 9 bytes which is greater than the max"), "DoesNotFit"),
        (MemoryError("std::bad_alloc"), "DoesNotFit"),
        (RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory"), "DoesNotFit"),
        (ValueError("[matmul] Last dimension of first input"), "EdgecoreError"),
    ],
)
def test_what_mlx_says_of_a_failure_is_told_by_its_kind(error: Exception, kind: str) -> None:
    assert type(failed(error)).__name__ == kind


@pytest.mark.parametrize(
    "given", [{"kv_bits": 7}, {"kv_bits": "many"}, {"prefill_step_size": 0}, {"kv_group_size": 16}, {"max_kv_size": 4}]
)
def test_options_that_make_no_sense_are_refused(mlx: Any, tiny_mlx: Artifact, given: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        mlx.run(tiny_mlx, 64, **given)
