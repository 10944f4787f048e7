"""Weights are read back from a graph by their canonical names, as it was written and as ONNX Runtime's quantizers and
onnxruntime_genai's builder leave it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from edgecore.checkpoint import Oracle, open_checkpoint
from edgecore.contract import Artifact, CannotDo
from edgecore_onnxruntime import weights
from edgecore_onnxruntime.folder import MODEL

from support.bare_onnx import Model
from support.divergence import divergence, some_tokens


def artifact(folder: Path) -> Artifact:
    return Artifact(folder, "onnxruntime", "text", "onnx-genai", "any", (), id="any")


@pytest.fixture
def wide(onnxruntime: Any, tiny: Path, tmp_path: Path) -> Path:
    """A folder in float32, whose graph ONNX Runtime's quantizers take."""
    onnxruntime.convert(tiny, tmp_path / "wide", "f32")
    return tmp_path / "wide"


def beside(source: Path, out: Path, model: onnx.ModelProto | None = None) -> Artifact:
    out.mkdir(exist_ok=True)
    (out / "genai_config.json").write_text((source / "genai_config.json").read_text())
    if model is not None:
        onnx.save(model, out / MODEL)
    return artifact(out)


def error(given: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(given - wanted) / np.linalg.norm(wanted))


def test_what_was_written_is_read_back_bit_by_bit(tiny: Path, tiny_onnx: Artifact) -> None:
    found = weights.dequantized(tiny_onnx)
    with open_checkpoint(tiny) as model:
        assert found.keys() == model.tensors.keys()
        for name, tensor in model.tensors.items():
            assert np.array_equal(found[name], tensor.read()), name


@pytest.mark.parametrize(
    ("bits", "block", "symmetric", "size", "most"),
    [(4, 32, True, 5, 0.12), (4, 32, False, 5.125, 0.12), (4, 128, True, 4.25, 0.16), (8, 32, True, 9, 0.01)],
)
def test_blocks_of_few_bits_are_measured_and_dequantized(
    tiny: Path, wide: Path, tmp_path: Path, bits: int, block: int, symmetric: bool, size: float, most: float
) -> None:
    quantizer = MatMulNBitsQuantizer(
        onnx.load(wide / MODEL), bits=bits, block_size=block, is_symmetric=symmetric, accuracy_level=1
    )
    quantizer.process()
    made = beside(wide, tmp_path / "out", quantizer.model.model)
    measured, found = weights.measure(made.path / MODEL), weights.dequantized(made)
    assert measured.eligible_bits_per_weight == pytest.approx(size, abs=0.01)
    with open_checkpoint(tiny) as model:
        assert found.keys() == model.tensors.keys()
        assert measured.parameters == model.parameters
        for name, tensor in model.tensors.items():
            assert error(found[name], tensor.read()) < most, name
        tokens = some_tokens(model.decoder, 32)
        given = {name: _Given(name, array) for name, array in found.items()}
        wanted = np.concatenate(list(Oracle(model.decoder, given).score(tokens)))  # type: ignore[arg-type]
    assert divergence(wanted, Model(made.path / MODEL).logits(tokens, [32])).mean() < 1e-6


@pytest.mark.parametrize(("type", "per_channel"), [(QuantType.QInt8, True), (QuantType.QUInt8, False)])
def test_dynamic_int8_is_measured_and_dequantized(
    tiny: Path, wide: Path, tmp_path: Path, type: QuantType, per_channel: bool
) -> None:
    made = beside(wide, tmp_path / "out")
    quantize_dynamic(
        wide / MODEL,
        made.path / MODEL,
        op_types_to_quantize=["MatMul"],
        per_channel=per_channel,
        weight_type=type,
        extra_options={"DefaultTensorType": TensorProto.FLOAT},
    )
    found = weights.dequantized(made)
    assert weights.measure(made.path / MODEL).eligible_bits_per_weight == pytest.approx(8, abs=0.2)
    with open_checkpoint(tiny) as model:
        assert found.keys() == model.tensors.keys()
        for name, tensor in model.tensors.items():
            assert error(found[name], tensor.read()) < 0.03, name


def test_the_builders_names_and_fused_matrices_are_brought_back(tiny: Path, wide: Path, tmp_path: Path) -> None:
    model = onnx.load(wide / MODEL)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.initializer[:], made.graph.node[:]
    renamed: dict[str, str] = {"model.norm.weight": "model.layers.2.final_norm_layernorm.weight"}
    for name in held:
        for part in ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
            if name.endswith(f"{part}.weight"):
                renamed[name] = name.replace("self_attn", "attn").replace(".weight", ".MatMul.weight")
    for node in model.graph.node:
        if node.name.endswith(("k_proj", "v_proj")):
            continue
        if node.name.endswith("q_proj"):
            at = node.name.removesuffix("q_proj")
            whole = np.concatenate([held.pop(f"{at}{part}_proj.weight") for part in "qkv"], axis=1)
            node.input[1] = at.replace("self_attn", "attn") + "qkv_proj.MatMul.weight"
            held[node.input[1]] = whole
        if node.op_type == "GroupQueryAttention":
            node.input[1] = node.input[2] = ""
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        made.graph.node.append(node)
    made.graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(array), renamed.get(name, name)) for name, array in held.items()
    )
    found = weights.dequantized(beside(wide, tmp_path / "out", made))
    with open_checkpoint(tiny) as source:
        assert found.keys() == source.tensors.keys()
        for name, tensor in source.tensors.items():
            assert np.array_equal(found[name], tensor.read()), name
        assert weights.measure(tmp_path / "out" / MODEL).parameters == source.parameters


def test_a_graph_that_does_not_name_its_weights_is_not_guessed_at(wide: Path, tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(np.ones((4, 8), np.float32), "w")],
    )
    with pytest.raises(CannotDo, match="which weights they are"):
        weights.dequantized(beside(wide, tmp_path / "out", helper.make_model(graph)))


class _Given:
    """A dequantized weight as the oracle reads one."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self._array = name, array

    def read(self) -> np.ndarray:
        return self._array

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self._array[start:stop]
