"""What a folder weighs and its weights by canonical name, whoever packed them and however."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgecore.checkpoint import open_checkpoint
from edgecore.contract import Artifact, CannotDo, CorruptModel
from edgecore_conformance.fixtures import random_models
from edgecore_mlx import folder, weights
from edgecore_mlx.recipe import Packing

PACKINGS = [
    *(Packing(bits, 64) for bits in (2, 3, 4, 5, 6, 8)), Packing(4, 32), Packing(4, 128), Packing(4, 32, "mxfp4"),
    Packing(8, 32, "mxfp8"), Packing(4, 16, "nvfp4"),
]  # fmt: skip


def artifact(path: Path) -> Artifact:
    return Artifact(path, "mlx", "text", "mlx", "", ())


def native(source: Path, out: Path, how: Packing, dtype: mx.Dtype = mx.bfloat16, named: bool = False) -> dict[str, Any]:
    """What mlx_lm would write: matrices quantized by MLX. Answers MLX's own reading of them, by name."""
    out.mkdir()
    stored: dict[str, mx.array] = {}
    wanted: dict[str, Any] = {}
    with mx.stream(mx.cpu):
        for name, weight in mx.load(str(source / folder.MODEL)).items():
            path, numbers = name.removesuffix(".weight"), weight.astype(dtype)
            if weight.ndim == 1:
                stored[name], wanted[name] = numbers, numbers
                continue
            word = {"group_size": how.group_size, "bits": how.bits, "mode": how.mode}
            parts = mx.quantize(numbers, **word)
            stored |= {
                f"{path}.{kind}": part for kind, part in zip(("weight", "scales", "biases"), parts, strict=False)
            }
            wide = [part.astype(mx.float32) if part.dtype == dtype else part for part in parts]
            wanted[name] = mx.dequantize(*wide, **word, dtype=mx.float32)
        mx.save_safetensors(str(out / folder.MODEL), stored, metadata={"format": "mlx"})
    config = json.loads((source / folder.CONFIG).read_text())
    said = Packing(4, 64).config() | dict.fromkeys(wanted, how.config()) if named else how.config()
    (out / folder.CONFIG).write_text(json.dumps(config | {"quantization": said, "quantization_config": said}))
    return {name: np.array(value.astype(mx.float32)) for name, value in wanted.items()}


@pytest.mark.parametrize("family", [*random_models.families(), "bitnet-packed"])
def test_every_family_has_its_canonical_weights(mlx: Any, tmp_path: Path, family: str) -> None:
    """Fused matrices in parts, norms with their one, ternary weights as numbers."""
    made = mlx.convert(random_models.family(family), tmp_path / "out", "f32")
    with open_checkpoint(random_models.family(family)) as model:
        found = weights.dequantized(artifact(tmp_path / "out"))
        assert list(found) == list(model.tensors)
        for name, tensor in model.tensors.items():
            assert np.array_equal(found[name], tensor.read()), name
            assert found[name].dtype == np.float32
        assert made.weights.parameters == model.parameters
        name = "model.layers.1.mlp.up_proj.weight"  # the second part of a fused one, in phi3
        assert np.array_equal(weights.canonical(tmp_path / "out")[name].rows(5, 9), model.tensors[name].rows(5, 9))
    if family == "bitnet-packed":
        assert made.weights.eligible_bits_per_weight == pytest.approx(2, abs=0.01)


@pytest.mark.parametrize("how", PACKINGS, ids=lambda p: f"{p.mode}-{p.bits}-{p.group_size}")
def test_packed_matrices_are_the_numbers_that_mlx_makes_of_them(tiny: Path, tmp_path: Path, how: Packing) -> None:
    wanted = native(tiny, tmp_path / "out", how)
    found = weights.dequantized(artifact(tmp_path / "out"))
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert np.array_equal(found[name], values), name
    of_scales = 8 if how.mode != "affine" else 32
    size = weights.measure(tmp_path / "out")
    assert size.eligible_bits_per_weight == how.bits + of_scales / how.group_size
    assert size.parameters == sum(values.size for values in wanted.values())


def test_a_packing_that_config_does_not_name_is_told_by_the_description(tiny: Path, tmp_path: Path) -> None:
    """As mlx_lm tells it: 8 bits in groups of 32 have the arrays of 4 in groups of 64, in a matrix half as wide."""
    wanted = native(tiny, tmp_path / "out", Packing(8, 32))
    config = json.loads((tmp_path / "out/config.json").read_text())
    (tmp_path / "out/config.json").write_text(json.dumps(config | {"quantization": Packing(4, 64).config()}))
    found = weights.dequantized(artifact(tmp_path / "out"))
    assert all(np.array_equal(found[name], values) for name, values in wanted.items())


def test_a_packed_matrix_of_other_sizes_than_the_description_is_corrupt(tiny: Path, tmp_path: Path) -> None:
    native(tiny, tmp_path / "out", Packing(4, 64))
    stored = mx.load(str(tmp_path / "out/model.safetensors"))
    stored["model.layers.0.mlp.up_proj.weight"] = stored["model.layers.0.mlp.up_proj.weight"][:, :-1]
    mx.save_safetensors(str(tmp_path / "out/model.safetensors"), stored)
    with pytest.raises(CorruptModel, match=r"layers\.0\.mlp\.up_proj"):
        weights.dequantized(artifact(tmp_path / "out"))


def test_a_missing_weight_is_corrupt(tiny_mlx: Artifact, tmp_path: Path) -> None:
    stored = load_file(tiny_mlx.path / folder.MODEL)
    del stored["model.layers.1.mlp.up_proj.weight"]
    save_file(stored, tmp_path / folder.MODEL)
    (tmp_path / folder.CONFIG).write_text((tiny_mlx.path / folder.CONFIG).read_text())
    with pytest.raises(CorruptModel, match=r"layers\.1\.mlp\.up_proj\.weight"):
        weights.dequantized(artifact(tmp_path))


def test_other_architectures_weigh_something_and_have_no_canonical_names(tmp_path: Path) -> None:
    (tmp_path / folder.CONFIG).write_text(json.dumps({"model_type": "gpt2"}))
    table, matrix, bias = (np.zeros(shape, np.float16) for shape in ((10, 4), (4, 12), (12,)))
    save_file({"wte.weight": table, "h.0.attn.weight": matrix, "h.0.attn.bias": bias}, tmp_path / folder.MODEL)
    found = weights.measure(tmp_path)
    assert (found.parameters, found.bits_per_weight, found.eligible_bits_per_weight) == (100, 16, 16)
    with pytest.raises(CannotDo, match="no canonical names"):
        weights.dequantized(artifact(tmp_path))
