"""Names, types and shapes of a tensor model's inputs and outputs, as its source has them.

An IR keeps no names of dimensions, and calls an output by one of several names; so `state` writes the source's own into
the IR's runtime information, and `stated` reads them there. For an IR of others they are made up from its ports.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import openvino as ov

from edgecore.contract import CorruptModel, TensorSpec
from edgecore_openvino.elements import dtype_name

_WHERE = ["edgecore", "interface"]
Specs = tuple[TensorSpec, ...]


def from_source(model: ov.Model | ov.CompiledModel, inputs: Specs, outputs: Specs) -> tuple[Specs, Specs]:
    """The source's specs beside the model's ports, which know types better, and often shapes."""
    return (
        tuple(_merged(spec, port) for spec, port in zip(inputs, model.inputs, strict=True)),
        tuple(_merged(spec, port) for spec, port in zip(outputs, model.outputs, strict=True)),
    )


def state(model: ov.Model, inputs: Specs, outputs: Specs) -> None:
    """Written where an IR keeps it."""
    told = [[[spec.name, spec.shape] for spec in side] for side in (inputs, outputs)]
    model.set_rt_info(json.dumps(told, separators=(",", ":")), _WHERE)


def stated(model: ov.Model) -> tuple[Specs, Specs]:
    """As the IR says, else by its ports' names. Raises `CorruptModel` where both contradict each other."""
    if not model.has_rt_info(_WHERE):
        return from_source(model, named(model.inputs), named(model.outputs))
    try:
        sides = json.loads(str(model.get_rt_info(_WHERE).astype(str)))
        inputs, outputs = ([TensorSpec(str(name), "", tuple(shape)) for name, shape in side] for side in sides)
        return from_source(model, tuple(inputs), tuple(outputs))
    except (ValueError, TypeError) as error:
        raise CorruptModel(f"the IR's rt_info says other inputs and outputs than its layers: {error}") from None


def named(ports: Iterable[Any]) -> Specs:
    """Specs that say no more than what the ports are called."""
    return tuple(TensorSpec(_name(port, number), "", ()) for number, port in enumerate(ports))


def _name(port: Any, number: int) -> str:
    names = sorted(port.get_names())
    return str(names[0] if names else port.node.friendly_name or number)


def _merged(spec: TensorSpec, port: Any) -> TensorSpec:
    """Fixed where either says so; a dimension that nobody names is `NAME_AXIS`."""
    known = port.partial_shape
    dtype = dtype_name(port.element_type, repr(spec.name))
    if known.rank.is_dynamic:
        return TensorSpec(spec.name, dtype, spec.shape)
    named = spec.shape if len(spec.shape) == len(known) else tuple(f"{spec.name}_{axis}" for axis in range(len(known)))
    shape = tuple(dim.get_length() if dim.is_static else symbol for dim, symbol in zip(known, named, strict=True))
    return TensorSpec(spec.name, dtype, shape)
