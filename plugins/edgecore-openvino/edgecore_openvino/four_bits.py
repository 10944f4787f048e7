"""A text model's layers in 4 bits by GPTQ, on its IR: measure how inputs are used, round, put the small matrices in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import Node, Type
from openvino import opset13 as ops

from edgecore.checkpoint.gptq import Rounded, gptq
from edgecore.contract import Progress, UnsupportedModel, Value
from edgecore_openvino.calibration import Feeding
from edgecore_openvino.recipe import Recipe, group_of
from edgecore_openvino.runtime import compile_model, properties

AT_ONCE = 1 << 30
"""Bytes of sums in memory at once. More layers than fit are done in turns, each on what the turns before have made."""
_EXACT: Mapping[str, Value] = {
    "inference_precision": "f32",
    "kv_cache": "f32",
    "dynamic_quantization_group_size": 0,
    "compile_cache": False,
}
_FLOATS = (Type.f32, Type.f16, Type.bf16)


@dataclass(frozen=True, slots=True)
class Matrix:
    """A constant in floating point that an input is multiplied with, its rows the outputs."""

    constant: Node
    group: int

    @property
    def rows(self) -> int:
        return int(self.constant.get_output_shape(0)[0])


@dataclass(frozen=True, slots=True)
class Inputs:
    """One value of the graph, and all matrices that multiply it: q, k and v have one, and so have gate and up."""

    port: Any
    columns: int
    matrices: tuple[Matrix, ...]

    @property
    def nbytes(self) -> int:
        return 4 * self.columns**2


def in_four_bits(model: ov.Model, wanted: Recipe, feeding: Feeding, progress: Progress) -> None:
    """Replaces the layers' matrices in `model`. Rows that no group divides are left as they are."""
    every = list(_inputs(model, wanted.group_size))
    if not every:
        raise UnsupportedModel(
            "the IR has no matrices that its names call a layer's", supported="IRs that edgecore made"
        )
    turns = list(_turns(every))
    steps, total = 0, sum(len(inputs.matrices) for inputs in every)
    for number, turn in enumerate(turns):
        found = _used(model, turn, feeding, progress, number, len(turns))
        for inputs, used in zip(turn, found, strict=True):
            progress(steps, total, "rounding")
            _round(inputs, used, wanted.mode == "int4_sym")
            steps += len(inputs.matrices)
    progress(total, total, "rounding")


def _inputs(model: ov.Model, group_size: int) -> Iterator[Inputs]:
    """In the order of the computation."""
    found: dict[tuple[str, int], tuple[Any, int, list[Matrix]]] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul" or not node.get_attributes()["transpose_b"]:
            continue
        constant = node.input_value(1).get_node()
        if constant.get_type_name() == "Convert":
            constant = constant.input_value(0).get_node()
        if constant.get_type_name() != "Constant" or constant.get_output_element_type(0) not in _FLOATS:
            continue
        if "layers." not in constant.get_friendly_name():
            continue
        columns = int(constant.get_output_shape(0)[1])
        if group := group_of(columns, group_size):
            port = node.input_value(0)
            key = (port.get_node().get_friendly_name(), port.get_index())
            found.setdefault(key, (port, columns, []))[2].append(Matrix(constant, group))
    for port, columns, matrices in found.values():
        yield Inputs(port, columns, tuple(matrices))


def _turns(every: Sequence[Inputs]) -> Iterator[list[Inputs]]:
    turn: list[Inputs] = []
    for inputs in every:
        if turn and sum(some.nbytes for some in [*turn, inputs]) > AT_ONCE:
            yield turn
            turn = []
        turn.append(inputs)
    yield turn


def _used(
    model: ov.Model, turn: Sequence[Inputs], feeding: Feeding, progress: Progress, number: int, turns: int
) -> list[NDArray[np.float32]]:
    """The mean of x x^T over all samples for each of `turn`. Layers that come later, and the head, are not computed."""
    results = [ops.result(inputs.port) for inputs in turn]
    part = ov.Model(results, _states(model, results), model.get_parameters(), "inputs")
    request = compile_model(part, "cpu", properties("cpu", None, _EXACT)).create_infer_request()
    sums = [np.zeros((inputs.columns, inputs.columns), np.float32) for inputs in turn]
    tokens = 0
    for done, feeds in enumerate(feeding):
        progress(number * len(feeding) + done, turns * len(feeding), "measuring activations")
        request.reset_state()
        # Not `infer`: on one thread OpenVINO 2026.4 loses what fails there.
        request.start_async(feeds, share_inputs=True)
        request.wait()
        values = [request.get_output_tensor(at).data for at in range(len(turn))]
        for at, total in enumerate(sums):
            x = values[at].reshape(-1, total.shape[0])
            total += x.T @ x
        tokens += values[0].size // sums[0].shape[0]
    for total in sums:
        total /= tokens
    return sums


def _states(model: ov.Model, results: Sequence[Node]) -> list[Node]:
    """What writes the KV caches that the computation of `results` reads: without it they could not be read."""
    seen, ahead, read = set(), list(results), set()
    while ahead:
        node = ahead.pop()
        if node.get_friendly_name() in seen:
            continue
        seen.add(node.get_friendly_name())
        if node.get_type_name() == "ReadValue":
            read.add(node.get_attributes()["variable_id"])
        ahead += [value.get_node() for value in node.input_values()]
    return [sink for sink in model.get_sinks() if sink.get_attributes()["variable_id"] in read]


def _round(inputs: Inputs, used: NDArray[np.float32], symmetric: bool) -> None:
    """All matrices of one input at once, since they share what is dear: the inverse, and the loop over columns."""
    weights = np.concatenate([m.constant.get_data(dtype=np.float32) for m in inputs.matrices])
    made = gptq(weights, used, inputs.matrices[0].group, symmetric)
    start = 0
    for matrix in inputs.matrices:
        _replace(matrix.constant, made.rows(start, start + matrix.rows), symmetric)
        start += matrix.rows


def _replace(constant: Node, made: Rounded, symmetric: bool) -> None:
    """The matrix in the form in which NNCF writes 4 bits and the runtime's kernels know them."""
    name, whole = constant.get_friendly_name(), list(constant.get_output_shape(0))
    rows, groups = made.scale.shape
    shape = [rows, groups, -1] if groups > 1 else whole
    type, shift = (Type.i4, np.int8(8)) if symmetric else (Type.u4, np.uint8(0))
    small = (made.levels.astype(shift.dtype) - shift).reshape(shape)
    value = ops.convert(ops.constant(small, dtype=type, name=name), Type.f16)
    if not symmetric:
        zero = ops.constant(made.zero.reshape([rows, groups, 1][: len(shape)]), dtype=type, name=f"{name}/zero_point")
        value = ops.subtract(value, ops.convert(zero, Type.f16))
    scale = ops.constant(made.scale.reshape([rows, groups, 1][: len(shape)]), name=f"{name}/scale")
    value = ops.multiply(value, scale)
    if groups > 1:
        value = ops.reshape(value, np.array(whole, np.int64), special_zero=False)
    _hand_over(constant, value)


def _hand_over(old: Node, new: Node) -> None:
    """Everything that used `old` uses `new`, widened where it was."""
    for target in old.output(0).get_target_inputs():
        user = target.get_node()
        if user.get_type_name() == "Convert" and old.get_output_element_type(0) != Type.f32:
            widened = ops.convert(new, user.get_output_element_type(0))
            for further in user.output(0).get_target_inputs():
                further.replace_source_output(widened.output(0))
        else:
            same = (
                new if old.get_output_element_type(0) == Type.f16 else ops.convert(new, old.get_output_element_type(0))
            )
            target.replace_source_output(same.output(0))
