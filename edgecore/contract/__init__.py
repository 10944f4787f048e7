"""What a plugin's author reads and imports. `from edgecore.contract import hookimpl` is how a plugin begins.

Names are imported on first use, so that help and listing, which need the manifest alone, load neither numpy nor pluggy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecore.contract.artifacts import Artifact, Fallback, Made, PayloadFile, Weights
    from edgecore.contract.disk import check_room, full_disk
    from edgecore.contract.errors import (
        BackendUnavailable, BadRequest, Cancelled, CannotDo, CorruptModel, DeviceUnavailable, DoesNotFit, EdgecoreError,
        ModelNotFound, PlacementRefused, PluginFault, QualityRefused, Timeout, UnsupportedModel, UnsupportedPrecision,
        WorkerCrashed,
    )  # fmt: skip
    from edgecore.contract.feeds import check_feeds, fixed, fixed_sizes
    from edgecore.contract.exporting import run_exporter
    from edgecore.contract.hookspecs import ConvertLimits, Probe, ProbedDevice, hookimpl
    from edgecore.contract.manifest import CONTRACT_VERSION, Claim, Device, Format, Manifest
    from edgecore.contract.measurement import Repetition, Samples, Workload
    from edgecore.contract.options import Option, Value
    from edgecore.contract.placement import Placement, PlacementSource
    from edgecore.contract.precisions import Precision, PrecisionClass
    from edgecore.contract.progress import Progress, no_progress, watch_growth
    from edgecore.contract.resources import cache_folder, usable_memory, usable_threads
    from edgecore.contract.sampling import GREEDY, Sampler, Sampling
    from edgecore.contract.sessions import (
        Logits, Message, Piece, TensorSession, TensorSpec, TextContext, TextSession,
    )  # fmt: skip

_HOME = {
    "artifacts": ("Artifact", "Fallback", "Made", "PayloadFile", "Weights"),
    "disk": ("check_room", "full_disk"),
    "errors": (
        "BackendUnavailable", "BadRequest", "Cancelled", "CannotDo", "CorruptModel", "DeviceUnavailable", "DoesNotFit",
        "EdgecoreError", "ModelNotFound", "PlacementRefused", "PluginFault", "QualityRefused", "Timeout",
        "UnsupportedModel", "UnsupportedPrecision", "WorkerCrashed",
    ),
    "feeds": ("check_feeds", "fixed", "fixed_sizes"),
    "exporting": ("run_exporter",),
    "hookspecs": ("ConvertLimits", "Probe", "ProbedDevice", "hookimpl"),
    "manifest": ("CONTRACT_VERSION", "Claim", "Device", "Format", "Manifest"),
    "measurement": ("Repetition", "Samples", "Workload"),
    "options": ("Option", "Value"),
    "placement": ("Placement", "PlacementSource"),
    "precisions": ("Precision", "PrecisionClass"),
    "progress": ("Progress", "no_progress", "watch_growth"),
    "resources": ("cache_folder", "usable_memory", "usable_threads"),
    "sampling": ("GREEDY", "Sampler", "Sampling"),
    "sessions": ("Logits", "Message", "Piece", "TensorSession", "TensorSpec", "TextContext", "TextSession"),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

# Literal, so that type checkers of plugins see what is exported; a test holds it to `_HOME`.
__all__ = [
    "Artifact",
    "BackendUnavailable",
    "BadRequest",
    "CONTRACT_VERSION",
    "Cancelled",
    "CannotDo",
    "Claim",
    "ConvertLimits",
    "CorruptModel",
    "Device",
    "DeviceUnavailable",
    "DoesNotFit",
    "EdgecoreError",
    "Fallback",
    "Format",
    "GREEDY",
    "Logits",
    "Made",
    "Manifest",
    "Message",
    "ModelNotFound",
    "Option",
    "PayloadFile",
    "Piece",
    "Placement",
    "PlacementRefused",
    "PlacementSource",
    "PluginFault",
    "Precision",
    "PrecisionClass",
    "Probe",
    "ProbedDevice",
    "Progress",
    "QualityRefused",
    "Repetition",
    "Sampler",
    "Samples",
    "Sampling",
    "TensorSession",
    "TensorSpec",
    "TextContext",
    "TextSession",
    "Timeout",
    "UnsupportedModel",
    "UnsupportedPrecision",
    "Value",
    "Weights",
    "WorkerCrashed",
    "Workload",
    "cache_folder",
    "check_feeds",
    "fixed",
    "fixed_sizes",
    "check_room",
    "full_disk",
    "hookimpl",
    "no_progress",
    "run_exporter",
    "usable_memory",
    "usable_threads",
    "watch_growth",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
