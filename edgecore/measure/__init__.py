"""One method of measuring for every backend, so that two numbers can be put side by side.

Names are imported on first use: the worker needs `loop` alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecore.measure.bandwidth import memory_bandwidth
    from edgecore.measure.benchmark import Arm, Comparison, measure
    from edgecore.measure.loop import run_workload
    from edgecore.measure.memory import Memory, MemoryWatch

_MODULE_OF = {
    "Arm": "benchmark",
    "Comparison": "benchmark",
    "Memory": "memory",
    "MemoryWatch": "memory",
    "measure": "benchmark",
    "memory_bandwidth": "bandwidth",
    "run_workload": "loop",
}
__all__ = ["Arm", "Comparison", "Memory", "MemoryWatch", "measure", "memory_bandwidth", "run_workload"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
