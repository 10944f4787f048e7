"""Where the work ran, by the runtime's own words: operators that it executed, and the time each took.

Profiling costs speed, so it is a property of a model that is compiled for it and asked once; where nobody asked for it,
the runtime's assignment is what is known.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import openvino as ov

from edgecore.contract import Placement, PlacementSource
from edgecore_openvino.runtime import core, execution_devices, unit

_SUBGRAPH = re.compile(r"subgraph(\d+): (.*)", re.S)
"""How HETERO names what it profiled."""


def placement_of(
    compiled: ov.CompiledModel,
    profile: Iterable[Any] = (),
    assigned: Mapping[str, str] | None = None,
) -> Placement:
    """The placement of a compiled model.

    profile:  `InferRequest.get_profiling_info()` after one inference of a model compiled with `PERF_COUNT`; without it
              the answer is the assignment alone.
    assigned: what `assignment` answered, for a model on several devices.
    """
    devices = [unit(name) for name in execution_devices(compiled)]
    ran = [entry for entry in profile if str(entry.status).endswith("EXECUTED")]
    named = ", ".join(execution_devices(compiled))
    if ran and (len(set(devices)) == 1 or assigned):
        return _profiled(ran, devices, assigned or {}, named)
    if assigned:
        count = Counter(unit(device) for device in assigned.values())
        return Placement(PlacementSource.RUNTIME_ASSIGNMENT, _shares(count), detail=f"query_model: {_words(count)}")
    if len(set(devices)) == 1:
        return Placement(PlacementSource.RUNTIME_ASSIGNMENT, {devices[0]: 1.0}, detail=f"EXECUTION_DEVICES: {named}")
    return Placement()


def assignment(model: ov.Model, properties: Mapping[str, Any]) -> dict[str, str]:
    """Which device HETERO gives each operator, by the operator's name: `{"MatMul_4": "GPU.0"}`. Constants and what goes
    in and out compute nothing and are left out."""
    given = str(properties.get("MULTI_DEVICE_PRIORITIES", ""))
    found = core().query_model(model, f"HETERO:{given}" if given else "HETERO")
    idle = ("Constant", "Parameter", "Result")
    names = {node.get_friendly_name() for node in model.get_ops() if node.get_type_name() not in idle}
    return {name: device for name, device in found.items() if name in names}


def _profiled(ran: list[Any], devices: list[str], assigned: Mapping[str, str], named: str) -> Placement:
    units = _units_by_subgraph(ran, assigned) if assigned else {}
    operators: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for entry in ran:
        part = _SUBGRAPH.fullmatch(entry.node_name)
        where = units.get(part[1], devices[0]) if part else devices[0]
        operators[where] += 1
        seconds[where] += entry.real_time.total_seconds()
    kinds = Counter(entry.exec_type for entry in ran)
    usual = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common(3))
    return Placement(
        PlacementSource.RUNTIME_PROFILE,
        _shares(operators),
        _shares(seconds),
        f"PERF_COUNT on {named}: {_words(operators)}, in {sum(seconds.values()) * 1e3:.3g} ms; mostly {usual}",
    )


def _units_by_subgraph(ran: list[Any], assigned: Mapping[str, str]) -> dict[str, str]:
    """The device of each of HETERO's parts, by the operators in it whose assignment is known."""
    votes: dict[str, Counter[str]] = {}
    for entry in ran:
        part = _SUBGRAPH.fullmatch(entry.node_name)
        if part and part[2] in assigned:
            votes.setdefault(part[1], Counter())[unit(assigned[part[2]])] += 1
    return {part: count.most_common(1)[0][0] for part, count in votes.items()}


def _shares(count: Mapping[str, float]) -> dict[str, float]:
    total = sum(count.values())
    return {name: number / total for name, number in count.items()} if total else {}


def _words(count: Counter[str]) -> str:
    return ", ".join(f"{number} operators on {name}" for name, number in count.most_common())
