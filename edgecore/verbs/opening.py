"""Open anything for running: build what is missing first, after saying so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgecore.contract.artifacts import Artifact
from edgecore.contract.errors import BadRequest, DeviceUnavailable
from edgecore.contract.options import Value, resolve
from edgecore.contract.progress import Progress, no_progress
from edgecore.contract.sessions import TensorSession, TextSession
from edgecore.registry import Entry
from edgecore.store import Store
from edgecore.verbs import choosing, probing, verifying
from edgecore.verbs import making as make
from edgecore.verbs.making import Making
from edgecore.verbs.targets import Target, choose, locate
from edgecore.workers import connect


@dataclass(frozen=True, slots=True)
class Runnable:
    """An artifact, the backend that opens it, and where."""

    artifact: Artifact
    entry: Entry
    device: str
    options: Mapping[str, Value]


def prepare(
    given: str | Path,
    making: Making,
    device: str | None = None,
    *,
    on_progress: Progress = no_progress,
    say: Callable[[str], None] = lambda line: None,
) -> Runnable:
    """What `given` names, ready to open: a native file where it lies, an artifact as it is, a source after building it.

    Backend options are sorted to the verbs that declare them; those of `run` come back in the answer.
    """
    make.refuse_profile(making)
    target = locate(given, offline=making.offline, on_progress=on_progress)
    entry = choose(making.backend, target)
    manifest = entry.ready_manifest
    declared = manifest.options_of("run")
    run_names = {o.name for o in declared}
    run_options = {k: v for k, v in making.options.items() if k in run_names}
    build_options = {k: v for k, v in making.options.items() if k not in run_names}
    if target.task:  # before anything is built; of a native file only its format says it
        resolve(declared, run_options, "run", entry.name, target.task)
    artifact = artifact_of(target, entry, replace(making, options=build_options, device=device), on_progress, say)
    if not artifact.native:
        verifying.recheck(Store(), artifact, making)
    options = resolve(declared, run_options, "run", entry.name, artifact.task)
    return Runnable(artifact, entry, pick_device(entry, device, artifact), options)


def artifact_of(
    target: Target,
    entry: Entry,
    making: Making,
    on_progress: Progress = no_progress,
    say: Callable[[str], None] = lambda line: None,
) -> Artifact:
    """The target as an artifact of this backend: as it lies where nothing else is asked for, else converted and
    quantized. `making.options` are those of these two."""
    manifest = entry.ready_manifest
    given, changed = target.given, bool(making.options)
    artifact = target.artifact
    limited = making.max_context or making.prefill_chunk or making.shapes
    if artifact is None and not (making.precision or limited or changed):
        artifact = target.native(manifest)
    if artifact is None:
        task = target.task
        asked = making.precision or choosing.default_precision(entry, task, making.device)
        wanted = choosing.selected(entry, asked, task, making.device).name
        say(f"{given}: building {wanted} for {entry.name}, unless it is stored already")
        return make.build(given, replace(making, backend=making.backend or entry.name), on_progress)
    if changed or (making.precision and making.precision.lower() != artifact.precision):
        if making.precision:
            return make.quantize(given, making, on_progress)
        resolve(manifest.options_of("run"), making.options, "run", entry.name, artifact.task)
    return artifact


def pick_device(entry: Entry, asked: str | None, artifact: Artifact | None = None) -> str:
    """The device asked for, else the backend's first for such an artifact that is here and not emulated. Raises
    `DeviceUnavailable`."""
    devices = entry.ready_manifest.devices
    if asked is None:
        claimed = verifying.devices_of(entry.ready_manifest, artifact) if artifact else ()
        return _first_here(entry, [d.name for d in claimed or devices if not d.emulated])
    if entry.ready_manifest.device(asked) is None:
        raise DeviceUnavailable(
            f"backend {entry.name!r} has no device {asked!r}",
            supported=", ".join(d.name for d in devices),
            hint="edgecore doctor",
        )
    return asked


def _first_here(entry: Entry, devices: Sequence[str]) -> str:
    """By the last probe, or by a fresh one where that found the first missing: it may be here by now. A CPU is
    anywhere, and of one there is no choice; where none is here it is the first, which then says why."""
    first = devices[0]
    if first == "cpu" or len(devices) == 1:
        return first

    def here(answer: Mapping[str, Any]) -> set[str]:
        return {str(device.get("name")) for device in answer["devices"] if device.get("available")}

    known = probing.last(entry.name)
    if known and known["plugin"] == entry.version and first in here(known):
        return first
    found = here(probing.probe(entry))
    return next((name for name in devices if name in found), first)


def open_session(
    runnable: Runnable,
    *,
    isolated: bool = True,
    context_length: int | None = None,
    threads: int | None = None,
    memory_limit: int | None = None,
    deadline: float | None = None,
) -> TextSession | TensorSession:
    """A session that owns its worker: closing it ends the process."""
    backend = connect(runnable.entry, isolated=isolated, memory_limit=memory_limit)
    try:
        return backend.open(
            runnable.artifact,
            device=runnable.device,
            context_length=context_length,
            threads=threads,
            options=runnable.options,
            deadline=deadline,
            owned=True,
        )
    except BaseException:
        backend.close()
        raise


def text_session(runnable: Runnable, **how: object) -> TextSession:
    """`open_session` for verbs that need text. Raises `BadRequest` for a tensor model."""
    if runnable.artifact.task != "text":
        raise BadRequest(
            f"{runnable.artifact.path.name} is a tensor model",
            supported="text models for this verb",
            hint="edgecore run MODEL --inputs feeds.npz --out out.npz",
        )
    session = open_session(runnable, **how)  # type: ignore[arg-type]
    assert isinstance(session, TextSession)
    return session
