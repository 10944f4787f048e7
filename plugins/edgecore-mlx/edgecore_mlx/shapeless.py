"""Which shapes a function takes that was exported with `shapeless=True`.

MLX takes all of them: it infers what comes out and looks at little. A matrix product of rows that are too long reads
memory that was never set, and answers. Here every operator is looked at for the shapes at hand, and sizes that may
change are found by changing them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import mlx.core as mx

from edgecore.contract import BadRequest, TensorSpec
from edgecore_mlx.mlxfn import Tensor, Trace

Shape = tuple[int, ...]
Function = Callable[..., Sequence[mx.array]]
MOST_SHAPES = 64
"""Shapes of inputs that are remembered."""
MOST_PAIRED = 8
"""Places of one size among which pairs are tried."""
MOST_STEPS = 100_000
"""Operators looked at to find what may change, about two seconds; what is left then stays as it was traced."""
_SAME = frozenset(
    "Add ArcTan2 BitwiseBinary Divide DivMod Equal FloorDivide Greater GreaterEqual Less LessEqual LogAddExp "
    "LogicalAnd LogicalOr Maximum Minimum Multiply NotEqual Power Remainder Select Subtract".split()
)
"""Operators of inputs of one shape: what is broadcast has an operator of its own."""


class Shapes:
    """What a function makes of shapes. Its constants must have been evaluated: else MLX cannot walk it."""

    def __init__(self, function: Function, inputs: Sequence[Tensor]) -> None:
        self._function = function
        self._dtypes = [getattr(mx, "bool_" if tensor.dtype == "bool" else tensor.dtype) for tensor in inputs]
        self._known: dict[tuple[Shape, ...], tuple[Shape, ...]] = {}
        self.steps = 0

    def infer(self, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
        """The outputs' shapes. Raises `BadRequest` naming the operator that these inputs do not fit."""
        key = tuple(shapes)
        if key not in self._known:
            answer = self._walk(key)
            if len(self._known) < MOST_SHAPES:
                self._known[key] = answer
            return answer
        return self._known[key]

    def fits(self, shapes: Sequence[Shape]) -> bool:
        try:
            self.infer(shapes)
        except BadRequest:
            return False
        return True

    def _walk(self, shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
        outputs: list[Shape] = []
        faults: list[str] = []

        def look(found: Mapping[str, Any]) -> None:
            if found["type"] == "outputs":
                outputs.extend(tuple(shape) for _, shape, _ in found["outputs"])
            elif found["type"] == "primitive" and not faults:
                self.steps += 1
                name, taken = found["name"], [tuple(shape) for _, shape, _ in found["inputs"]]
                if not takes(name, taken, found["arguments"]):
                    faults.append(f"{name} of {' and '.join(map(str, map(list, taken)))}")

        fed = [mx.zeros(shape, dtype) for shape, dtype in zip(shapes, self._dtypes, strict=True)]
        try:
            mx.export_function(look, self._function, *fed)
        except (ValueError, RuntimeError) as error:
            faults.append(" ".join(str(error).split())[:300])
        if faults:
            raise BadRequest(f"these inputs do not go together: {faults[0]}")
        return tuple(outputs)


def takes(name: str, shapes: Sequence[Shape], state: Sequence[Any]) -> bool:
    """Whether an operator computes inputs of these shapes within their bounds; what is not known here is MLX's to
    check."""
    first, second = shapes[0] if shapes else (), shapes[1] if len(shapes) > 1 else ()
    if name in _SAME:
        return len(set(shapes)) <= 1
    if name in ("Matmul", "AddMM"):
        return first[-1] == second[-2] and first[:-2] == second[:-2]
    if name == "GatherMM":
        return first[-1] == second[-2]
    if name in ("QuantizedMatmul", "GatherQMM"):
        _, bits, _, transposed = state[:4]
        return first[-1] == (second[-1] * 32 // int(bits) if transposed else second[-2])
    if name == "Convolution":
        return first[-1] == second[-1] * int(state[-2])
    if name == "Concatenate":
        axis = state[0]
        return len({shape[:axis] + shape[axis + 1 :] for shape in shapes}) == 1
    if name in ("RMSNorm", "LayerNorm"):
        return all(not weight or weight == first[-1:] for weight in shapes[1:])
    if name == "ScaledDotProductAttention":
        third = shapes[2]
        return first[0] == second[0] == third[0] and first[-1] == second[-1] and second[1:-1] == third[1:-1]
    if name == "Gather":
        axes, sizes = state[0], state[1]
        whole = all(axis in axes or size == first[axis] for axis, size in enumerate(sizes))
        return whole and len(set(shapes[1:])) <= 1
    if name in ("GatherAxis", "ScatterAxis"):
        axis = state[-1]
        return all(i == axis or a == b for i, (a, b) in enumerate(zip(first, second, strict=True)))
    return True


Place = tuple[int, int]
"""An input's number and an axis of it."""


def specs(shapes: Shapes, names: Sequence[str], trace: Trace) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs with a symbol for every size that may change, the same for those that change together only.

    names: of the inputs; outputs are `output_0` and on.
    """
    traced = tuple(tensor.shape for tensor in trace.inputs)
    symbols: dict[Place, str] = {}
    sizes: dict[str, int] = {}
    answers: dict[str, tuple[Shape, ...]] = {}
    for group, size in _free(shapes, traced):
        symbol = f"{names[group[0][0]]}_{group[0][1]}"
        symbols.update(dict.fromkeys(group, symbol))
        sizes[symbol], answers[symbol] = size, shapes.infer(_changed(traced, group, size))

    def follows(number: int, axis: int, old: int) -> int | str:
        moved = {symbol: new for symbol, answer in answers.items() if (new := answer[number][axis]) != old}
        if not moved:
            return old
        (symbol, new), *more = moved.items()
        start = next(traced[i][a] for (i, a), named in symbols.items() if named == symbol)
        return symbol if not more and (start, sizes[symbol]) == (old, new) else f"output_{number}_{axis}"

    taken = tuple(
        TensorSpec(name, tensor.dtype, tuple(symbols.get((i, a), size) for a, size in enumerate(tensor.shape)))
        for i, (name, tensor) in enumerate(zip(names, trace.inputs, strict=True))
    )
    given = tuple(
        TensorSpec(f"output_{i}", tensor.dtype, tuple(follows(i, a, size) for a, size in enumerate(tensor.shape)))
        for i, tensor in enumerate(trace.outputs)
    )
    return taken, given


def _free(shapes: Shapes, traced: tuple[Shape, ...]) -> list[tuple[tuple[Place, ...], int]]:
    """Places whose size may change, alone or with those of the same size, and a size that each was found to take."""
    places = [(i, a) for i, shape in enumerate(traced) for a in range(len(shape))]
    found = [((place,), size) for place in places if (size := _other(shapes, traced, (place,)))]
    left = [place for place in places if all(place not in group for group, _ in found)]
    for size in {traced[i][a] for i, a in left}:
        alike = [(i, a) for i, a in left if traced[i][a] == size]
        for group in (tuple(alike), *(combinations(alike, 2) if len(alike) <= MOST_PAIRED else ())):
            if len(group) > 1 and alike and set(group) <= set(alike) and (other := _other(shapes, traced, group)):
                found.append((group, other))
                alike = [place for place in alike if place not in group]
    return sorted(found)


def _other(shapes: Shapes, traced: tuple[Shape, ...], group: tuple[Place, ...]) -> int:
    """Another size that these places may have, 0 where none was found."""
    size = traced[group[0][0]][group[0][1]]
    if shapes.steps > MOST_STEPS:
        return 0
    tried = (size + 1, 2 * size) if size > 1 else (size + 1,)
    return next((other for other in tried if shapes.fits(_changed(traced, group, other))), 0)


def _changed(traced: Sequence[Shape], places: Sequence[Place], size: int) -> tuple[Shape, ...]:
    return tuple(
        tuple(size if (i, a) in places else old for a, old in enumerate(shape)) for i, shape in enumerate(traced)
    )
