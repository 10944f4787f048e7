"""Where the work ran, by the runtime's own words: operators that it executed, and the time each took.

Profiling costs a tenth of a microsecond an operator on a CPU and more elsewhere, so it is an option (`perf_count`);
without it the runtime's assignment is what is known.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import openvino as ov

from edgecore.contract import Placement, PlacementSource
from edgecore_openvino.runtime import core, execution_devices, unit

IDLE = ("Constant", "Parameter", "Result")
_SUBGRAPH = re.compile(r"subgraph(\d+): (.*)", re.S)
"""How HETERO names what it profiled."""


def placement_of(
    compiled: ov.CompiledModel, request: Any = None, assigned: Mapping[str, str] | None = None
) -> Placement:
    """The placement of a compiled model.

    request:  one of the model's. Where it was compiled with `PERF_COUNT` and has run, the answer is what was measured;
              else it is the assignment alone.
    assigned: what `assignment` answered, for a model on several devices.
    """
    named = execution_devices(compiled)
    units = {unit(name) for name in named}
    ran = _executed(request)
    if ran and (len(units) == 1 or assigned):
        return _profiled(ran, named, assigned or {})
    if assigned:
        count = Counter(unit(device) for device in assigned.values())
        return Placement(PlacementSource.RUNTIME_ASSIGNMENT, _shares(count), detail=f"query_model: {_words(count)}")
    if len(units) == 1:
        said = f"EXECUTION_DEVICES: {', '.join(named)}"
        return Placement(PlacementSource.RUNTIME_ASSIGNMENT, dict.fromkeys(units, 1.0), detail=said)
    return Placement()


def assignment(model: ov.Model, properties: Mapping[str, Any]) -> dict[str, str]:
    """Which device HETERO gives each operator, by the operator's name: `{"MatMul_4": "GPU.0"}`. Constants and what goes
    in and out compute nothing and are left out. What a model itself says (`affinity`) stands above all."""
    given = str(properties.get("MULTI_DEVICE_PRIORITIES", ""))
    found = core().query_model(model, f"HETERO:{given}" if given else "HETERO")
    assigned: dict[str, str] = {}
    for node in model.get_ops():
        name, said = node.get_friendly_name(), node.get_rt_info()
        if node.get_type_name() not in IDLE and name in found:
            assigned[name] = said["affinity"].astype(str) if "affinity" in said else found[name]
    return assigned


def _executed(request: Any) -> list[Any]:
    """What the last inference executed; nothing where nothing was timed."""
    try:
        profile = request.get_profiling_info() if request is not None else ()
    except RuntimeError:  # Devices may refuse where it was not asked for at the start.
        return []
    return [entry for entry in profile if str(entry.status).endswith("EXECUTED")]


def _profiled(ran: list[Any], named: list[str], assigned: Mapping[str, str]) -> Placement:
    units, only = _units_by_subgraph(ran, assigned), unit(named[0])
    operators: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for entry in ran:
        part = _SUBGRAPH.fullmatch(entry.node_name)
        where = units.get(part[1], only) if part else only
        operators[where] += 1
        seconds[where] += entry.real_time.total_seconds()
    kinds = Counter(entry.exec_type for entry in ran)
    usual = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common(3))
    return Placement(
        PlacementSource.RUNTIME_PROFILE,
        _shares(operators),
        _shares(seconds),
        f"PERF_COUNT on {', '.join(named)}: {_words(operators)}, {sum(seconds.values()) * 1e3:.3g} ms; mostly {usual}",
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
