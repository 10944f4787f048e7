"""The graph of a text folder for an NPU with its products in whole numbers: QuantizeLinear and DequantizeLinear around
every Gemm, from which QNN reads that it multiplies whole numbers, and the KV cache in 8 bits where it is wanted.

    x -> Quantize -> Dequantize -> Gemm(., Dequantize(levels)) -> Quantize -> Dequantize [-> Add bias] -> ...

ONNX Runtime's own quantizer would do the whole graph, or operators of a kind; its pieces for QNN decide how, where a
recipe does. What HTP wants of it (QNN 2.51, tried on the emulator):
- A product gives as many bits as it takes: 8 in, 16 out it does not have.
- With weights of 4 bits, zero points other than the middle one are subtracted wrongly (by 1,000 of 65,536 steps where
  the answer is zero): encodings of 16 bits are symmetric.
- Zero points of matrices are nought and written all the same: without, QNN takes 4 bits for 8.
- A bias would be a whole number of 32 bits in steps of both scales; it is added in float16 instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

_TYPES = {8: np.uint8, 16: np.uint16}
_LEAST = 2.0**-20
"""Smaller scales have too few digits in float16."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """Whole numbers for real ones: (level - zero) * scale."""

    bits: int
    scale: float
    """A float16."""
    zero: int

    @classmethod
    def over(cls, low: float, high: float, bits: int, margin: float = 1.0) -> Encoding:
        """Covers low to high. In 16 bits symmetric, and wider by `margin`."""
        levels = (1 << bits) - 1
        if bits == 16:
            return cls(bits, _rounded_up(max(-low, high) * margin / (levels // 2)), (levels + 1) // 2)
        scale = _rounded_up((high - low) / levels)
        return cls(bits, scale, int(np.clip(round(-low / scale), 0, levels)))


@dataclass(frozen=True, slots=True)
class Product:
    """How one Gemm is computed."""

    name: str
    taken: Encoding
    given: Encoding


@dataclass(frozen=True, slots=True)
class Plan:
    """How a graph is rewritten; prefill and decode alike, so that what they share fits both."""

    products: Mapping[str, Product]
    """By the Gemm's name; those that are not there stay in float16."""
    kept: Mapping[str, Encoding]
    """Of the KV cache in 8 bits, by `I.key` and `I.value`; none where it stays in float16."""


def rewrite(model: ModelProto, plan: Plan) -> None:
    """In place. The matrices' initializers are the caller's: whole numbers under the old name, `NAME/scale` and
    `NAME/zero` beside."""
    work = _Rewriting(model)
    for node in list(model.graph.node):
        if node.op_type == "Gemm" and node.name in plan.products:
            work.product(node, plan.products[node.name])
        else:
            work.nodes.append(node)
    for name, encoding in plan.kept.items():
        work.keep(name, encoding)
    work.finish()


def scale_name(matrix: str) -> str:
    return f"{matrix}/scale"


def zero_name(matrix: str) -> str:
    return f"{matrix}/zero"


class _Rewriting:
    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self.nodes: list[NodeProto] = []
        self._constants: dict[str, NDArray[Any]] = {}
        self._done: dict[tuple[str, Encoding], str] = {}

    def product(self, node: NodeProto, how: Product) -> None:
        """The Gemm between encodings; the value that it gave keeps its name."""
        output, bias = node.output[0], node.input[2] if len(node.input) > 2 else ""
        parts = [node.input[1], scale_name(node.input[1]), zero_name(node.input[1])]
        matrix = self._op("DequantizeLinear", parts, f"{node.input[1]}/real", axis=0)
        x = self._through(node.input[0], how.taken)
        made = self._op("Gemm", [x, matrix], f"{node.name}/product", name=node.name, transB=1)
        self._through(made, how.given, f"{node.name}/unbiased" if bias else output)
        if bias:
            self._op("Add", [f"{node.name}/unbiased", bias], output)

    def keep(self, name: str, encoding: Encoding) -> None:
        """The cache of one layer's keys or values in whole numbers: what comes in and what goes out.

        This call's own stay as they are: the same levels for both, and ONNX Runtime moves a Transpose behind them that
        HTP does not have for whole numbers.
        """
        past, present = f"past_key_values.{name}", f"present.{name}"
        for value in (*self.graph.input, *self.graph.output):
            if value.name in (past, present):
                value.type.tensor_type.elem_type = TensorProto.UINT8
        for node in self.nodes:
            node.input[:] = [{past: f"{past}/real", present: f"{present}/exact"}.get(x, x) for x in node.input]
            node.output[:] = [f"{present}/exact" if x == present else x for x in node.output]
        scale, zero = self._numbers(encoding)
        self._op("QuantizeLinear", [f"{present}/exact", scale, zero], present)
        self.nodes.insert(
            0, helper.make_node("DequantizeLinear", [past, scale, zero], [f"{past}/real"], f"{past}/real")
        )

    def finish(self) -> None:
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        self.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in self._constants.items())

    def _through(self, value: str, encoding: Encoding, to: str = "") -> str:
        """`value` as `encoding` leaves it, computed once for all that take it."""
        key = (value, encoding)
        if key not in self._done:
            scale, zero = self._numbers(encoding)
            levels = self._op("QuantizeLinear", [value, scale, zero], f"{value}/levels{encoding.bits}")
            real = to or f"{value}/real{encoding.bits}"
            self._done[key] = self._op("DequantizeLinear", [levels, scale, zero], real)
        return self._done[key]

    def _numbers(self, encoding: Encoding) -> list[str]:
        scale = np.array(encoding.scale, np.float16)
        zero = np.array(encoding.zero, _TYPES[encoding.bits])
        names = [f"scale/{encoding.scale!r}", f"zero{encoding.bits}/{encoding.zero}"]
        self._constants.update(zip(names, (scale, zero), strict=True))
        return names

    def _op(self, kind: str, inputs: Iterable[str], to: str, name: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [to], name or f"{to}/{kind}", **attributes))
        return to


def _rounded_up(scale: float) -> float:
    """The next float16 that is not less."""
    made = np.float16(max(scale, _LEAST))
    return float(made if float(made) >= scale else np.nextafter(made, np.float16(np.inf)))
