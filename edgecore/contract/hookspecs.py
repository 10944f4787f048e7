"""The hooks: the heavy half of a plugin, called in a worker only.

Each call goes to the one selected backend, never as a fan-out. An author implements them as plain functions in the
module that the manifest names, each marked with `edgecore.contract.hookimpl`, and leaves out what the backend does not
do. Arguments are only ever added, with a default here and in implementations; an implementation may leave out
arguments that it does not need. Paths are absolute. `options` is complete: declared defaults are filled in.

Whatever is raised that is not an `EdgecoreError` is reported as the plugin's fault, with the last lines of its
traceback.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pluggy

from edgecore.contract.artifacts import Artifact, Made
from edgecore.contract.measurement import Samples, Workload
from edgecore.contract.options import Value
from edgecore.contract.progress import Progress
from edgecore.contract.sessions import TensorSession, TextSession

PROJECT = "edgecore"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True, slots=True)
class ProbedDevice:
    """One device as the runtime sees it here, now."""

    name: str
    """As in the manifest (`cpu`)."""
    available: bool
    description: str = ""
    """As the runtime names it (`AMD EPYC, AVX2`)."""
    reason: str = ""
    """What is missing, where it is not available."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What can run here, now."""

    devices: tuple[ProbedDevice, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the runtime and what it loads: `{"llama-cpp-python": "0.3.36"}`. They enter artifact ids."""
    features: Mapping[str, str] = field(default_factory=dict)
    """What the runtime says it was built with or found (`AVX512: yes`), for the reader."""


@dataclass(frozen=True, slots=True)
class ConvertLimits:
    """What every conversion takes beside the backend's own options."""

    max_context: int | None = None
    """Tokens that the result must hold; None keeps what the model was trained for."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Fixed input shapes by name for tensor models; empty keeps them dynamic."""
    prefill_chunk: int | None = None
    """Tokens a prefill graph takes at once, where the target needs static shapes."""


@hookspec(firstresult=True)
def edgecore_probe() -> Probe:
    """What can run here, now? Answers within a second, without side effects, and never raises for a missing device:
    that is a `ProbedDevice` with `available=False` and a reason."""
    raise AssertionError("a specification is not called")


@hookspec(firstresult=True)
def edgecore_convert(
    source: Path, out: Path, format: str, precision: str, options: Mapping[str, Value], limits: ConvertLimits,
    progress: Progress,
) -> Made:  # fmt: skip
    """Turn a source into this backend's format.

    source:    a Hugging Face folder or a GGUF file (open it with `edgecore.checkpoint.open_checkpoint`), or an ONNX
               file. It is never written to.
    out:       an empty folder. Write nothing elsewhere. A failed or cancelled call may leave anything in it: it is
               discarded.
    format:    one of the manifest's formats.
    precision: one that the manifest says is made `by = "convert"`.
    Raises `UnsupportedModel`, `UnsupportedPrecision`, `CorruptModel`, `DoesNotFit`, `Cancelled`.
    """
    raise AssertionError("a specification is not called")


@hookspec(firstresult=True)
def edgecore_quantize(
    artifact: Artifact, out: Path, precision: str, calibration: Path | None, options: Mapping[str, Value],
    progress: Progress,
) -> Made:  # fmt: skip
    """Turn an artifact of this backend into another precision.

    calibration: UTF-8 text for text models, a folder of `.npz` feeds for tensor models; None where none was given.
                 A precision that requires it is refused before this call when it is None.
    `out`, and what is raised, as for convert.
    """
    raise AssertionError("a specification is not called")


@hookspec(firstresult=True)
def edgecore_run(
    artifact: Artifact, device: str, context_length: int | None, threads: int | None, options: Mapping[str, Value]
) -> TextSession | TensorSession:
    """Open an artifact on a device.

    context_length: tokens, at least 1 (the caller has seen to it); None lets the backend choose, at most what the model
                    was trained for.
    threads:        None means what affinity and quota allow (`edgecore.contract.usable_threads`).
    Raises `DeviceUnavailable`, `PlacementRefused`, `CorruptModel`, `DoesNotFit`.
    """
    raise AssertionError("a specification is not called")


@hookspec(firstresult=True)
def edgecore_benchmark(
    artifact: Artifact, device: str, workload: Workload, options: Mapping[str, Value], progress: Progress
) -> Samples | None:
    """Run one workload in a native loop and answer raw samples. Leave it out where the backend has none, and answer
    None where it has none for the artifact's task: the contract's own loop over the session is used then, and
    conformance holds both to each other. Options are those of `run`."""
    raise AssertionError("a specification is not called")


@hookspec(firstresult=True)
def edgecore_weights(artifact: Artifact) -> Mapping[str, Any]:
    """Optional: the artifact's weights, dequantized, as a lazy mapping from canonical tensor name
    (`edgecore.checkpoint`) to float32 array. With it, what the file lost and what the kernels lost are told apart.
    Raises `CannotDo` for an artifact whose weights cannot be read, one that was compiled, say."""
    raise AssertionError("a specification is not called")


@hookspec(firstresult=True)
def edgecore_compile(
    artifact: Artifact, out: Path, profile: Mapping[str, Any], options: Mapping[str, Value], progress: Progress,
    device: str = "",
) -> Made:  # fmt: skip
    """Optional: compile ahead of time for a machine that is not here.

    profile: a parsed `hwprofiles/*.toml`. What it says of the runtime's needs by option name is in `options` already.
    device:  the one of the backend's that the profile names.
    `Made.format` says what was written, `Made.requires` what a machine must have to load it; `edgecore_run` refuses it
    where that is missing, by `DeviceUnavailable`. Raises that too for a compiler that is missing.
    """
    raise AssertionError("a specification is not called")
