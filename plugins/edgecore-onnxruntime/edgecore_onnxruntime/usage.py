"""How a model's matrices are used on a text: computed layer by layer, with one layer's weights in memory at a time.

What a layer gets comes from the layers before as they have become, rounded. The graph is cut where it has
names: before the first norm of every layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from edgecore.checkpoint.gptq import Floats
from edgecore.contract import Progress, UnsupportedModel
from edgecore_onnxruntime import runtime
from edgecore_onnxruntime.matrices import Matrix, Source

_FIRST_NORM = re.compile(r"model\.layers\.\d+\.input_layernorm")
_LAST_NORM = "model.norm"
_MEASURING = "measuring activations"
Pieces = Sequence[Sequence[int]]
Feeds = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Inputs:
    """One value of the graph, and all matrices that multiply it: q, k and v have one, and so have gate and up."""

    value: str
    matrices: tuple[Matrix, ...]

    @property
    def columns(self) -> int:
        return self.matrices[0].columns


Round = Callable[[Inputs, Floats], Sequence[Floats]]
"""Matrices of one input and the mean of its x x^T -> what they become, (rows, columns) each."""


def walk(source: Source, matrices: Sequence[Matrix], pieces: Pieces, rounded: Round, progress: Progress) -> None:
    """Calls `rounded` for all of `matrices` that multiply something, in the order of the computation.

    Raises `UnsupportedModel` for a graph that has no layers by name.
    """
    cuts = _cuts(source)
    runs = _Runs(pieces, 2 * len(cuts), progress)
    states = _embedded(source, matrices, cuts[0].live, runs)
    for layer, inputs in enumerate(_inputs(source, matrices, cuts)):
        after = cuts[layer + 1].live if layer + 1 < len(cuts) else ()
        every = [matrix for some in inputs for matrix in some.matrices] if after else []
        weights = {_multiplied(matrix): source.weights(matrix).T for matrix in every}
        given = dict.fromkeys((*cuts[layer].live, *weights), TensorProto.FLOAT)
        used = [np.zeros((some.columns, some.columns), np.float32) for some in inputs]
        measured = _Part(source, given, [some.value for some in inputs])
        for values in runs.of(measured, [state | weights for state in states]):
            for some, total in zip(inputs, used, strict=True):
                x = values[some.value].reshape(-1, some.columns)
                total += x.T @ x
        for some, total in zip(inputs, used, strict=True):
            made = rounded(some, total / np.float32(sum(map(len, pieces))))
            for matrix, now in zip(some.matrices, made, strict=True) if after else ():
                weights[_multiplied(matrix)] = np.ascontiguousarray(now.T)
        if after:
            states = list(runs.of(_Part(source, given, after), [state | weights for state in states]))


@dataclass(frozen=True, slots=True)
class _Cut:
    """Before a node: what of the text's values is computed by then and read later."""

    position: int
    live: tuple[str, ...]


def _cuts(source: Source) -> list[_Cut]:
    """Before the first norm of every layer, and before the last norm."""
    nodes = source.model.graph.node
    names = [node.name for node in nodes]
    positions = [at for at, name in enumerate(names) if _FIRST_NORM.fullmatch(name)]
    if not positions or _LAST_NORM not in names:
        raise UnsupportedModel("the graph has no layers by name", supported="text models that edgecore converted")
    made, last = dict[str, int](), dict[str, int]()
    for at, node in enumerate(nodes):
        last |= dict.fromkeys(node.input, at)
        # What follows from rows of the embedding; positions and masks are computed anew in every part.
        looks_up = node.op_type == "Gather" and node.input[1] == "input_ids"
        if looks_up or any(name in made for name in node.input):
            made |= dict.fromkeys(filter(None, node.output), at)
    return [
        _Cut(at, tuple(name for name, start in made.items() if start < at <= last.get(name, -1)))
        for at in (*positions, names.index(_LAST_NORM))
    ]


def _inputs(source: Source, matrices: Sequence[Matrix], cuts: Sequence[_Cut]) -> Iterator[list[Inputs]]:
    """What is multiplied behind each cut and before the next, in the order of the computation."""
    made = {name: at for at, node in enumerate(source.model.graph.node) for name in node.output}
    found: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        for node in matrix.multiplied:
            found.setdefault(node.input[0], []).append(matrix)
    for start, end in zip(cuts, [*(cut.position for cut in cuts[1:]), len(made)], strict=True):
        yield [Inputs(v, tuple(some)) for v, some in found.items() if start.position <= made[v] < end]


def _multiplied(matrix: Matrix) -> str:
    """The value, (columns, rows) in float32, that the matrix is multiplied as."""
    return str(matrix.multiplied[0].input[1])


def _embedded(source: Source, matrices: Sequence[Matrix], first: Sequence[str], runs: _Runs) -> list[Feeds]:
    """What goes into the first layer. Rows are looked up here: a table may be larger than a graph without files."""
    looked_up = [(matrix, node) for matrix in matrices for node in matrix.looked_up]
    given = {node.output[0]: source.initializers[matrix.name].data_type for matrix, node in looked_up}
    part = _Part(source, given, first)
    rows = [
        {node.output[0]: source.read(matrix.name)[np.array([piece])] for matrix, node in looked_up}
        for piece in runs.pieces
    ]
    return list(runs.of(part, rows))


@dataclass
class _Runs:
    """Parts of the graph over all pieces, and how far that is."""

    pieces: Pieces
    times: int
    progress: Progress
    done: int = 0

    def of(self, part: _Part, given: Sequence[Feeds]) -> Iterator[Feeds]:
        self.done += 1
        for number, (piece, feeds) in enumerate(zip(self.pieces, given, strict=True)):
            self.progress((self.done - 1) * len(self.pieces) + number, self.times * len(self.pieces), _MEASURING)
            yield part.run(piece, feeds)


class _Part:
    """The nodes that lead from what is `given` (values and their types) to `wanted`, as a model of its own."""

    def __init__(self, source: Source, given: Mapping[str, int], wanted: Sequence[str]) -> None:
        graph = source.model.graph
        nodes = _leading(source, given, wanted)
        read = {name for node in nodes for name in node.input}
        ports = {port.name: port for port in graph.input if port.name in read and port.name not in source.initializers}
        ports |= {name: _port(name, type) for name, type in given.items() if name in read}
        small = [
            numpy_helper.from_array(np.ascontiguousarray(source.read(name)), name)
            for name in source.initializers
            if name in read and name not in given
        ]
        outputs = [_port(name, TensorProto.FLOAT) for name in wanted]
        made = helper.make_model(
            helper.make_graph(nodes, "part", list(ports.values()), outputs, small),
            opset_imports=source.model.opset_import,
            ir_version=source.model.ir_version,
        )
        self._wanted, self._ports = list(wanted), ports
        try:
            self._session = ort.InferenceSession(
                made.SerializeToString(), runtime.session_options(None, {"spinning": False}), providers=[runtime.CPU]
            )
        except runtime.ERRORS as error:
            raise runtime.unopened(source.folder, error) from None

    def run(self, piece: Sequence[int], given: Feeds) -> Feeds:
        feeds = {name: given[name] if name in given else _feed(port, piece) for name, port in self._ports.items()}
        try:
            return dict(zip(self._wanted, self._session.run(self._wanted, feeds), strict=True))
        except runtime.ERRORS as error:
            raise runtime.failed(error) from None


def _leading(source: Source, given: Collection[str], wanted: Sequence[str]) -> list[NodeProto]:
    needed, ahead = set(), list(wanted)
    while ahead:
        value = ahead.pop()
        node = source.producers.get(value)
        if node is None or value in given or node.name in needed:
            continue
        needed.add(node.name)
        ahead += node.input
    return [node for node in source.model.graph.node if node.name in needed]


def _port(name: str, type: int) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, type, None)


def _feed(port: ValueInfoProto, piece: Sequence[int]) -> NDArray[Any]:
    """A piece that stands alone: nothing is in the KV cache before it."""
    if port.name == "input_ids":
        return np.array([piece], np.int64)
    if port.name == "attention_mask":
        return np.ones((1, len(piece)), np.int64)
    if port.name == "position_ids":
        return np.arange(len(piece), dtype=np.int64)[None]
    batch, heads, _, size = (dim.dim_value for dim in port.type.tensor_type.shape.dim)
    return np.zeros((batch or 1, heads, 0, size), helper.tensor_dtype_to_np_dtype(port.type.tensor_type.elem_type))
