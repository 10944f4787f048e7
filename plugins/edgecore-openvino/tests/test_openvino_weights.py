"""Weights are read back from an IR by their canonical names, as it was written and as NNCF left it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from edgecore.checkpoint import Oracle, open_checkpoint
from edgecore.contract import Artifact, CannotDo, PayloadFile
from edgecore_openvino import weights
from edgecore_openvino.folder import MODEL, WEIGHTS

from support.bare_ir import Model, divergence, some_tokens

MODE = nncf.CompressWeightsMode
"""Mode and group size; bits of the layers' matrices, scales and zero points included; relative error."""
QUANTIZED = [
    (MODE.INT8_ASYM, -1, 8.08, 0.01),
    (MODE.INT8_SYM, -1, 8.06, 0.01),
    (MODE.INT4_SYM, 64, 4.25, 0.12),
    (MODE.INT4_ASYM, 64, 4.31, 0.12),
    (MODE.NF4, 64, 4.25, 0.12),
    (MODE.MXFP4, 32, 4.25, 0.15),
    (MODE.NVFP4, 16, 4.5, 0.12),
]


def artifact(folder: Path) -> Artifact:
    files = (PayloadFile(MODEL, "model"), PayloadFile(WEIGHTS, "weights"))
    return Artifact(folder, "openvino", "text", "openvino-genai", "any", files, id="any")


def compressed(source: Path, out: Path, **options: Any) -> Artifact:
    out.mkdir()
    model = nncf.compress_weights(ov.Core().read_model(source / MODEL), **options)
    ov.save_model(model, out / MODEL, compress_to_fp16=False)
    return artifact(out)


def error(given: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(given - wanted) / np.linalg.norm(wanted))


def test_what_was_written_is_read_back_bit_by_bit(tiny: Path, tiny_ir: Artifact) -> None:
    found = weights.dequantized(tiny_ir)
    with open_checkpoint(tiny) as model:
        assert found.keys() == model.tensors.keys()
        for name, tensor in model.tensors.items():
            assert np.array_equal(found[name], tensor.read()), name


@pytest.mark.parametrize(("mode", "group", "bits", "most"), QUANTIZED, ids=lambda value: getattr(value, "value", None))
def test_every_quantization_is_measured_and_dequantized(
    tiny: Path, tiny_ir: Artifact, tmp_path: Path, mode: Any, group: int, bits: float, most: float
) -> None:
    made = compressed(tiny_ir.path, tmp_path / "out", mode=mode, group_size=group)
    measured, found = weights.measure(made.model), weights.dequantized(made)
    assert measured.eligible_bits_per_weight == pytest.approx(bits, abs=0.01)
    with open_checkpoint(tiny) as model:
        assert found.keys() == model.tensors.keys()
        assert measured.parameters == model.parameters
        for name, tensor in model.tensors.items():
            assert error(found[name], tensor.read()) < most, name


def test_the_oracle_with_these_weights_answers_as_the_device(tiny: Path, tiny_ir: Artifact, tmp_path: Path) -> None:
    made = compressed(tiny_ir.path, tmp_path / "out", mode=MODE.INT4_SYM, group_size=64)
    with open_checkpoint(tiny) as model:
        tokens = some_tokens(model.decoder, 32)
        given = {name: _Given(name, array) for name, array in weights.dequantized(made).items()}
        wanted = np.concatenate(list(Oracle(model.decoder, given).score(tokens)))  # type: ignore[arg-type]
    assert divergence(wanted, Model(made.model).logits(tokens, [32])).mean() < 1e-6


def test_what_awq_divides_weights_by_is_multiplied_back(tiny: Path, tiny_ir: Artifact, tmp_path: Path) -> None:
    """Its factor stands on the way of the activations then: the matrix alone would be another one."""
    core = ov.Core()
    model = core.read_model(tiny_ir.path / MODEL)
    user = next(op for op in model.get_ops() if op.get_friendly_name() == "model.layers.0.mlp.down_proj")
    factor = np.linspace(0.5, 2, user.get_input_shape(1)[1], dtype=np.float32)
    scaled = ops.multiply(user.input_value(0), ops.constant(factor[None, None]))
    scaled.set_friendly_name("model.layers.0.mlp.multiply/awq_mul")
    user.input(0).replace_source_output(scaled.output(0))
    ov.save_model(model, tmp_path / MODEL, compress_to_fp16=False)
    found = weights.dequantized(artifact(tmp_path))["model.layers.0.mlp.down_proj.weight"]
    with open_checkpoint(tiny) as source:
        assert np.allclose(found, source.tensors["model.layers.0.mlp.down_proj.weight"].read() * factor)


def test_optimums_names_are_brought_back(tiny_ir: Artifact, tmp_path: Path) -> None:
    model = ov.Core().read_model(tiny_ir.path / MODEL)
    for op in model.get_ops():
        name = op.get_friendly_name()
        if op.get_type_name() == "Constant" and name.endswith(".weight"):
            vector = len(op.get_output_shape(0)) == 1
            stem = name.removesuffix(".weight")
            op.set_friendly_name("Constant_1" + stem if vector else f"self.{stem}._openvino_orig_weight")
            if vector:
                (user,) = op.output(0).get_target_inputs()
                user.get_node().set_friendly_name(f"__module.{stem}/aten::mul/Multiply_1")
    ov.save_model(model, tmp_path / MODEL, compress_to_fp16=False)
    ours, theirs = weights.dequantized(tiny_ir), weights.dequantized(artifact(tmp_path))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_a_graph_that_does_not_name_its_weights_is_not_guessed_at(tmp_path: Path) -> None:
    x = ops.parameter([-1, 8], np.float32)
    product = ops.matmul(x, ops.constant(np.ones((4, 8), np.float32)), False, True)
    ov.save_model(ov.Model([product], [x]), tmp_path / MODEL)
    with pytest.raises(CannotDo, match="which weights they are"):
        weights.dequantized(artifact(tmp_path))


class _Given:
    """A dequantized weight as the oracle reads one."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self._array = name, array

    def read(self) -> np.ndarray:
        return self._array

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self._array[start:stop]
