"""What a finished ONNX folder weighs and what its weights are: read from the graph, whoever quantized it and however.

A weight is an initializer with whatever only initializers do to it on its way to the operator that uses it (widening,
scale and zero point, reshaping, transposing). Names are canonical in graphs that edgecore made, quantized or not;
those of onnxruntime_genai's builder are brought back to them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgecore.contract import Artifact, CannotDo, Fallback, Weights
from edgecore_onnxruntime import htp_folder, nbits
from edgecore_onnxruntime.folder import model_file
from edgecore_onnxruntime.model_file import check_file, read_tensor

Floats = NDArray[np.float32]
_CANONICAL = re.compile(r"(model\..+|lm_head)\.(weight|bias)")
_BUILDER = (
    (re.compile(r"\.(MatMul|Add|layernorm)(?=\.(weight|bias))"), ""),
    (re.compile(r"_(Q\d|quantized)$"), ""),
    (re.compile(r"\.attn\."), ".self_attn."),
    (re.compile(r"model\.layers\.\d+\.final_norm_layernorm"), "model.norm"),
)
"""What onnxruntime_genai's builder and ONNX Runtime's quantizers put into names."""
_FUSED = {"self_attn.qkv_proj": ("q", "k", "v")}
_STEPS = ("Cast", "Transpose", "Reshape", "DequantizeLinear", "Identity")
"""Operators between an initializer and the one that computes with it."""
_USERS = {
    "MatMul": (1,), "Gemm": (1, 2), "MatMulNBits": (1, 2, 3), "MatMulInteger": (1, 3), "Gather": (0,),
    "GatherBlockQuantized": (0, 2, 3), "RMSNormalization": (1,), "SimplifiedLayerNormalization": (1,),
    "SkipSimplifiedLayerNormalization": (2,), "Add": (0, 1),
}  # fmt: skip
"""Which inputs of an operator hold weights; of Gemm and Add each is one of its own, else all make one."""
_APART = ("Gemm", "Add")
_EMBEDDING = "model.embed_tokens.weight"


class Weighs(Protocol):
    """A weight, wherever it lies."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def elements(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def read(self) -> Floats: ...


@dataclass(frozen=True)
class Graph:
    """A model's file without its weights."""

    file: Path

    @cached_property
    def nodes(self) -> list[NodeProto]:
        return list(self._proto.graph.node)

    @cached_property
    def makers(self) -> dict[str, NodeProto]:
        return {output: node for node in self.nodes for output in node.output}

    @cached_property
    def initializers(self) -> dict[str, TensorProto]:
        return {tensor.name: tensor for tensor in self._proto.graph.initializer}

    @cached_property
    def _proto(self) -> Any:
        check_file(self.file)
        return onnx.load(self.file, load_external_data=False)

    def stored(self, name: str) -> list[str]:
        """Initializers that make this value; none where anything else does."""
        return self._stored(name) or []

    def _stored(self, name: str) -> list[str] | None:
        if name in self.initializers:
            return [name]
        node = self.makers.get(name)
        if node is None or node.op_type not in (*_STEPS, "Constant"):
            return None
        parts = [self._stored(value) for value in node.input]
        return None if None in parts else [name for part in parts if part for name in part]

    def value(self, name: str) -> NDArray[Any]:
        if name in self.initializers:
            return read_tensor(self.initializers[name], self.file.parent)
        node = self.makers[name]
        made: Any = ReferenceEvaluator(node).run(None, {value: self.value(value) for value in node.input})
        return np.asarray(made[0])

    def nbytes(self, name: str) -> int:
        tensor = self.initializers[name]
        lengths = [int(entry.value) for entry in tensor.external_data if entry.key == "length"]
        return lengths[0] if lengths else numpy_helper.to_array(tensor).nbytes


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight of a graph."""

    name: str
    graph: Graph
    node: NodeProto
    inputs: tuple[str, ...]
    """Of the node: what makes this weight."""
    rows: tuple[int, int] | None = None
    """Of a fused matrix, those that are this one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Canonical: a matrix has its outputs first."""
        whole = self._whole
        return whole if self.rows is None else (self.rows[1] - self.rows[0], *whole[1:])

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """With scales and zero points, without the shapes that reshaping needs."""
        types = {name: self.graph.initializers[name].data_type for name in self._stored}
        whole = sum(self.graph.nbytes(name) for name, type in types.items() if type != TensorProto.INT64)
        return whole if self.rows is None else whole * self.shape[0] // self._whole[0]

    def read(self) -> Floats:
        values = np.ascontiguousarray(self._values(), np.float32)
        if (smoothing := self._smoothing()) is not None:
            values = values * smoothing if values.ndim == 1 else values / smoothing
        return values if self.rows is None else values[slice(*self.rows)]

    def _smoothing(self) -> Floats | None:
        """What a norm's weight was divided by, and the columns of the matrices behind it multiplied with."""
        node: NodeProto | None = self.node
        while node is not None and node.op_type in ("Gemm", "DequantizeLinear", "QuantizeLinear"):
            node = self.graph.makers.get(node.input[0])
        if node is None or node.op_type != "RMSNormalization":
            return None
        name = smoothing_name(node.input[1])
        return self.graph.value(name) if name in self.graph.initializers else None

    @property
    def _stored(self) -> list[str]:
        names = [name for value in self.inputs for name in self.graph.stored(value)]
        return [*names, _scale(names[0])] if self.node.op_type == "MatMulInteger" else names

    @property
    def _whole(self) -> tuple[int, ...]:
        """The shape of what the node takes, of all parts of a fused matrix."""
        a, sizes = _attributes(self.node), tuple(self.graph.initializers[self._stored[0]].dims)
        match self.node.op_type:
            case "MatMulNBits":
                return a["N"], a["K"]
            case "GatherBlockQuantized":
                return sizes[0], math.prod(sizes[1:]) * 8 // a.get("bits", 4)
        return sizes[::-1] if len(sizes) == 2 and self._inputs_first != self._turned else sizes

    @property
    def _inputs_first(self) -> bool:
        """Whether the node takes a matrix so."""
        return self.node.op_type in ("MatMul", "MatMulInteger") or (
            self.node.op_type == "Gemm" and not _attributes(self.node).get("transB")
        )

    @property
    def _turned(self) -> bool:
        """Whether a Transpose stands between the stored matrix and its user."""
        node, turned = self.graph.makers.get(self.inputs[0]), False
        while node is not None:
            turned ^= node.op_type == "Transpose"
            node = self.graph.makers.get(node.input[0])
        return turned

    def _values(self) -> NDArray[Any]:
        values, a = [self.graph.value(name) for name in self.inputs], _attributes(self.node)
        zero = values[-1] if len(values) > 2 else None
        match self.node.op_type:
            case "MatMulNBits":
                return nbits.read(values[0], values[1], zero, a["K"], a["bits"])
            case "GatherBlockQuantized":
                return nbits.read(values[0], values[1], zero, self.shape[1], a.get("bits", 4))
            case "MatMulInteger":
                levels = [value.astype(np.float32) for value in values]
                values = [(levels[0] - sum(levels[1:])) * self.graph.value(self._stored[-1])]
        return values[0].T if self._inputs_first and values[0].ndim == 2 else values[0]


def smoothing_name(norm: str) -> str:
    """The initializer that says how a norm was smoothed; by the name of its weight."""
    return f"{norm}/smoothing"


def find(file: Path) -> dict[str, Weight]:
    """The weights of a graph by name, in the order of the computation. A name that is not known keeps the file's."""
    graph, found, seen = Graph(file), dict[str, Weight](), set[str]()
    for node in graph.nodes:
        for inputs in _weights_of(node):
            stored = graph.stored(inputs[0])
            if stored and stored[0] not in seen and _is_weight(graph, node, stored[0]):
                seen.add(stored[0])
                for weight in _split(graph, Weight(_name(node, stored[0]), graph, node, inputs)):
                    found.setdefault(weight.name, weight)
    return found


def measure(file: Path, fallbacks: Iterable[Fallback] = ()) -> Weights:
    """Bits per weight of the finished file: over all weights, and over the layers' matrices."""
    weights = _all(file).values()
    return Weights(
        bits_per_weight=_bits(weights),
        eligible_bits_per_weight=_bits(weight for weight in weights if in_layer(weight)),
        parameters=sum(weight.elements for weight in weights),
        fallbacks=tuple(fallbacks),
    )


def in_layer(weight: Weighs) -> bool:
    """A matrix of a layer: what a precision means to change. Embeddings and output head are apart."""
    return len(weight.shape) > 1 and "layers." in weight.name


def dequantized(artifact: Artifact) -> Mapping[str, Floats]:
    """Every weight by canonical name, computed when it is asked for. Raises `CannotDo` where names do not tell."""
    file = artifact.path / htp_folder.PREFILL
    file = file if file.is_file() else model_file(artifact)
    known = {name: weight for name, weight in _all(file).items() if _CANONICAL.fullmatch(name)}
    if _EMBEDDING not in known or not any(".layers." in name for name in known):
        raise CannotDo(
            f"{file}: its initializers do not say which weights they are",
            supported="folders that edgecore or onnxruntime_genai's model builder made",
        )
    return Dequantized(known)


class Dequantized(Mapping[str, Floats]):
    """Weights of a graph by canonical name, each read when it is asked for."""

    def __init__(self, weights: Mapping[str, Weighs]) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> Floats:
        return self._weights[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def _weights_of(node: NodeProto) -> list[tuple[str, ...]]:
    """The inputs of a node that may be weights, those together that make one."""
    names = [node.input[i] for i in _USERS.get(node.op_type, ()) if i < len(node.input) and node.input[i]]
    return [(name,) for name in names] if node.op_type in _APART else [tuple(names)] if names else []


def _is_weight(graph: Graph, node: NodeProto, name: str) -> bool:
    tensor = graph.initializers[name]
    if node.op_type in ("Gather", "GatherBlockQuantized"):
        return bool(node.input[1] == "input_ids")
    if node.op_type == "Add":
        return len(tensor.dims) == 1 and tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
    return True


def _name(node: NodeProto, stored: str) -> str:
    """Canonical, where the graph says it."""
    if node.op_type in ("Gather", "GatherBlockQuantized"):
        return _EMBEDDING
    for pattern, plain in _BUILDER:
        stored = pattern.sub(plain, stored)
    return stored


def _scale(quantized: str) -> str:
    """What ONNX Runtime's quantize_dynamic calls the scale of a matrix."""
    return quantized.removesuffix("_quantized") + "_scale"


def _split(graph: Graph, weight: Weight) -> Iterator[Weight]:
    """A fused matrix or bias as its parts, of the sizes that attention says."""
    whole = next((whole for whole in _FUSED if f".{whole}." in weight.name), "")
    attention = next((node for node in graph.nodes if node.op_type == "GroupQueryAttention"), None)
    if not whole or attention is None:
        yield weight
        return
    a = _attributes(attention)
    q, kv = a["num_heads"], a["kv_num_heads"]
    head, start = weight.shape[0] // (q + 2 * kv), 0
    for part, heads in zip(_FUSED[whole], (q, kv, kv), strict=True):
        name = weight.name.replace(whole, f"self_attn.{part}_proj")
        yield Weight(name, graph, weight.node, weight.inputs, (start, start + heads * head))
        start += heads * head


def _all(file: Path) -> dict[str, Weighs]:
    """The graph's, and the embedding table that lies beside an NPU's graph."""
    found: dict[str, Weighs] = {}
    if (file.parent / htp_folder.DESCRIPTION).is_file():
        found[_EMBEDDING] = htp_folder.Table(file.parent, _EMBEDDING)
    return {**found, **find(file)}


def _bits(weights: Iterable[Weighs]) -> float:
    sizes = [(weight.nbytes, weight.elements) for weight in weights]
    elements = sum(count for _, count in sizes)
    return 8 * sum(size for size, _ in sizes) / elements if elements else 0.0


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
