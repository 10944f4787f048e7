"""Which shapes a function takes that was exported with `shapeless=True`.

MLX takes all of them: it infers what comes out and looks at little. A matrix product of rows that are too long reads
memory that was never set, and answers. Here every operator is looked at for the shapes at hand, and sizes that may
change are found by changing them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from math import prod
from typing import Any

import mlx.core as mx

from edgecore.contract import BadRequest, TensorSpec
from edgecore_mlx.elements import element
from edgecore_mlx.mlxfn import Tensor, Trace

Shape = tuple[int, ...]
Side = Sequence[Shape]
State = Sequence[Any]
Function = Callable[..., Sequence[mx.array]]
MOST_SHAPES = 64
"""Shapes of inputs that are remembered."""
MOST_PAIRED = 8
"""Places of one size among which pairs are tried."""
MOST_STEPS = 100_000
"""Operators looked at to find what may change, about two seconds; what is left then stays as it was traced."""


def _product(s: Side, state: State, was: Side) -> bool:
    made = (*s[0][:-1], s[1][-1])
    return s[0][-1] == s[1][-2] and s[0][:-2] == s[1][:-2] and all(shape == made for shape in s[2:])


def _quantized(s: Side, state: State, was: Side) -> bool:
    _, bits, _, transposed = state[:4]
    return s[0][-1] == (s[1][-1] * 32 // int(bits) if transposed else s[1][-2])


def _convolution(s: Side, state: State, was: Side) -> bool:
    _, low, high, dilation, stretch, groups, _ = state
    sides = zip(s[0][1:-1], s[1][1:-1], low, high, dilation, stretch, strict=True)
    within = ((n - 1) * by + 1 + before + after >= (k - 1) * apart + 1 for n, k, before, after, apart, by in sides)
    return s[0][-1] == s[1][-1] * int(groups) and all(within)


def _gather(s: Side, state: State, was: Side) -> bool:
    axes, sizes = state
    kept = (s[0][axis] >= was[0][axis] if axis in axes else s[0][axis] == size for axis, size in enumerate(sizes))
    return all(kept) and len(set(s[1:])) <= 1


def _along(s: Side, state: State, was: Side) -> bool:
    axis = int(state[-1])
    return s[0][axis] >= was[0][axis] and all(_without(shape, axis) == _without(s[0], axis) for shape in s[1:])


def _attention(s: Side, state: State, was: Side) -> bool:
    return s[0][0] == s[1][0] == s[2][0] and s[0][-1] == s[1][-1] and s[1][1:-1] == s[2][1:-1]


def _without(shape: Shape, axis: int) -> Shape:
    return (*shape[:axis], *shape[axis + 1 :])


_CHECKS: Mapping[str, Callable[[Side, State, Side], bool]] = {
    **dict.fromkeys(
        "Add ArcTan2 BitwiseBinary Divide DivMod Equal FloorDivide Greater GreaterEqual Less LessEqual LogAddExp "
        "LogicalAnd LogicalOr Maximum Minimum Multiply NotEqual Power Remainder Select Subtract".split(),
        lambda s, state, was: len(set(s)) == 1,
    ),
    **dict.fromkeys(("Matmul", "AddMM"), _product),
    **dict.fromkeys(("QuantizedMatmul", "GatherQMM"), _quantized),
    **dict.fromkeys(("RMSNorm", "LayerNorm"), lambda s, state, was: all(w in ((), s[0][-1:]) for w in s[1:])),
    **dict.fromkeys(("Partition", "ArgPartition"), lambda s, state, was: -s[0][state[1]] <= state[0] < s[0][state[1]]),
    **dict.fromkeys(("GatherAxis", "ScatterAxis"), _along),
    "Concatenate": lambda s, state, was: len({_without(shape, state[0]) for shape in s}) == 1,
    "Convolution": _convolution,
    "Gather": _gather,
    "GatherMM": lambda s, state, was: s[0][-1] == s[1][-2],
    "Hadamard": lambda s, state, was: s[0][-1] == was[0][-1],
    "Reduce": lambda s, state, was: len(state[1]) == len(s[0]) or {s[0][axis] for axis in state[1]} != {1},
    "ScaledDotProductAttention": _attention,
    "Unflatten": lambda s, state, was: prod(state[1]) == s[0][state[0]],
}
"""Whether an operator computes inputs of these shapes rightly and within their bounds, by its state and by the shapes
that it was traced with: indices and scales may be of that time. What is broadcast has an operator of its own; what is
reduced must not be of size 1 throughout, which MLX leaves out before it comes to that; what is not here MLX checks."""


class Shapes:
    """What a function makes of shapes. Its constants must have been evaluated: else MLX cannot walk it."""

    def __init__(self, function: Function, inputs: Sequence[Tensor]) -> None:
        self._function = function
        self._traced = tuple(tensor.shape for tensor in inputs)
        self._dtypes = [element(tensor.dtype) for tensor in inputs]
        self._known: dict[tuple[Shape, ...], tuple[Shape, ...]] = {}
        self._operators: list[list[Shape]] = []
        """Their inputs' shapes as traced, in the order of the walk."""
        self.steps = 0
        self.infer(self._traced)

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
        if any(0 in shape for shape in set(shapes) - set(self._traced)):
            raise BadRequest(
                "an input is empty: what MLX does about that it did when the function was exported",
                supported="sizes from 1",
            )
        outputs: list[Shape] = []
        faults: list[str] = []
        traced = iter(self._operators)

        def look(found: Mapping[str, Any]) -> None:
            if found["type"] == "outputs":
                outputs.extend(tuple(shape) for _, shape, _ in found["outputs"])
            elif found["type"] == "primitive" and not faults:
                self.steps += 1
                name, taken = found["name"], [tuple(shape) for _, shape, _ in found["inputs"]]
                if shapes == self._traced:
                    self._operators.append(taken)
                    return
                was = next(traced, taken)
                if name in _CHECKS and not _CHECKS[name](taken, found["arguments"], was):
                    faults.append(f"MLX has no {name} of {' and '.join(map(str, map(list, taken)))}")

        fed = [mx.zeros(shape, dtype) for shape, dtype in zip(shapes, self._dtypes, strict=True)]
        try:
            mx.export_function(look, self._function, *fed)
        except (ValueError, RuntimeError, IndexError) as error:
            faults.append(" ".join(str(error).split())[:300])
        if faults:
            raise BadRequest(f"these inputs do not go together: {faults[0]}")
        return tuple(outputs)


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
