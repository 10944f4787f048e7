"""What a file of exported functions is to its caller: names for inputs that have none, and the traces of one function
as one, whose sizes differ from trace to trace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from edgecore.contract import BadRequest, TensorSpec
from edgecore_mlx.mlxfn import Functions, Tensor, Trace

Specs = tuple[TensorSpec, ...]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Signature:
    """Traces that differ in sizes alone. Inputs by position come first and are called `input_0` and on."""

    names: tuple[str, ...]
    keywords: tuple[str, ...]
    traces: tuple[Trace, ...]

    @property
    def positional(self) -> int:
        return len(self.names) - len(self.keywords)

    def specs(self) -> tuple[Specs, Specs]:
        """Inputs and outputs; a size that differs between traces has a symbol, the same where it is always the same."""
        symbols: dict[Shape, str] = {}
        outputs = [f"output_{number}" for number in range(len(self.traces[0].outputs))]
        sides = ((self.names, [t.inputs for t in self.traces]), (outputs, [t.outputs for t in self.traces]))
        taken, given = (
            tuple(
                _merged(name, tensors, symbols)
                for name, tensors in zip(names, zip(*by_trace, strict=True), strict=True)
            )
            for names, by_trace in sides
        )
        return taken, given

    def check(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Raises `BadRequest` for shapes that were never traced, after `check_feeds`."""
        if len(self.traces) == 1:
            return
        fed = tuple(feeds[name].shape for name in self.names)
        known = [tuple(tensor.shape for tensor in trace.inputs) for trace in self.traces]
        if fed in known:
            return
        for number, name in enumerate(self.names):
            allowed = list(dict.fromkeys(shapes[number] for shapes in known))
            if fed[number] not in allowed:
                raise BadRequest(
                    f"input {name!r} has shape {list(fed[number])}",
                    supported=" or ".join(str(list(s)) for s in allowed),
                )
        raise BadRequest(
            f"inputs of shapes {_listed(fed)} were never traced together",
            supported="; ".join(_listed(shapes) for shapes in known),
        )

    def __str__(self) -> str:
        return ", ".join(f"{spec.name}: {spec.dtype} {list(spec.shape)}" for spec in self.specs()[0]) or "no inputs"


def signatures(file: Functions) -> tuple[Signature, ...]:
    """In the order of the file. Of a shapeless one a trace takes all sizes, and MLX the first that fits."""
    found: dict[tuple[Any, ...], list[Trace]] = {}
    for trace in file.traces:
        found.setdefault((trace.keywords, _kind(trace.inputs), _kind(trace.outputs)), []).append(trace)
    kept = [traces[:1] if file.shapeless else traces for traces in found.values()]
    return tuple(Signature(_names(traces[0]), traces[0].keywords, tuple(traces)) for traces in kept)


def _kind(tensors: Iterable[Tensor]) -> tuple[tuple[str, int], ...]:
    return tuple((tensor.dtype, len(tensor.shape)) for tensor in tensors)


def _names(trace: Trace) -> tuple[str, ...]:
    stem = "input"
    while any(keyword.startswith(f"{stem}_") for keyword in trace.keywords):
        stem = f"positional_{stem}"
    return (*(f"{stem}_{n}" for n in range(len(trace.inputs) - len(trace.keywords))), *trace.keywords)


def _merged(name: str, tensors: Sequence[Tensor], symbols: dict[Shape, str]) -> TensorSpec:
    dims: list[int | str] = []
    for axis, sizes in enumerate(zip(*(tensor.shape for tensor in tensors), strict=True)):
        dims.append(sizes[0] if len(set(sizes)) == 1 else symbols.setdefault(sizes, f"{name}_{axis}"))
    return TensorSpec(name, tensors[0].dtype, tuple(dims))


def _listed(shapes: Iterable[Shape]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes)
