"""build for a profile: what build makes, compiled ahead of time for a machine that need not be here.

The model is converted, quantized and compared as always; then the backend that suits the profile compiles it, and the
result is an artifact of its own that says what it requires. Where its device is here, or an emulator of it, it is
compared again. Where not, nobody has seen it run: it is unverified, and kept only on request.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgecore.contract.artifacts import Artifact
from edgecore.contract.errors import BackendUnavailable, BadRequest, CannotDo, DeviceUnavailable, PlacementRefused
from edgecore.contract.options import Value, resolve
from edgecore.contract.progress import Progress, no_progress
from edgecore.environments import install_command
from edgecore.machine import Profile, Suited, profile
from edgecore.quality import Assessment
from edgecore.registry import Entry, find
from edgecore.sources import Source
from edgecore.sources.source import file_digest
from edgecore.store import Staging
from edgecore.verbs import choosing, verifying
from edgecore.verbs import making as make
from edgecore.verbs.making import Making
from edgecore.verbs.opening import artifact_of
from edgecore.verbs.targets import locate
from edgecore.workers import Backend, connect


def build(given: str | Path, making: Making, on_progress: Progress = no_progress) -> Artifact:
    """Convert, quantize and, for `making.profile`, compile.

    Raises what `making.build` does; `BadRequest` for a profile that there is not or that does not name the backend,
    `BackendUnavailable` and `CannotDo` where nothing that is installed compiles for it, and `QualityRefused`, before
    any work, for a device that is not here unless `allow_unverified`.
    """
    if not making.profile:
        return make.build(given, making, on_progress)
    described = profile(making.profile)
    entry, suited = suitable(described, making.backend)
    with connect(entry, memory_limit=making.memory_limit) as backend:
        seen, away = _seen_on(backend, described, suited)
        if away:
            verifying.enforce(Assessment.unverified(away), _named(entry, making.precision or "the model"), making)
        names = {option.name for option in entry.ready_manifest.options_of("compile")}
        chosen: dict[str, Value] = {**suited.options, **{k: v for k, v in making.options.items() if k in names}}
        others = {k: v for k, v in making.options.items() if k not in names}
        here = replace(making, profile=None, backend=making.backend or entry.name, device=suited.device, options=others)
        target = locate(given, offline=making.offline, on_progress=on_progress)
        options = resolve(entry.ready_manifest.options_of("compile"), chosen, "compile", entry.name, target.task)
        if making.precision and target.source:
            precision = choosing.selected(entry, making.precision, target.task, suited.device)
            choosing.check_device(entry.ready_manifest, precision, target.task, suited.device)
        base = artifact_of(target, entry, here, on_progress)
        if not base.native and base.backend != entry.name:
            raise BadRequest(
                f"{given} was made by backend {base.backend!r}, and {entry.name!r} compiles for {described.name}",
                supported=f"a source, or what {entry.name} made of one",
            )
        source = target.source or verifying.source_of(base, making.offline, on_progress)
        return _compiled(backend, base, source, described, suited, options, seen, making, on_progress)


def suitable(described: Profile, name: str | None) -> tuple[Entry, Suited]:
    """The backend and the device that compile for a profile: the best that is installed, or the one named."""
    named = find(name).name if name else None
    rows = [row for row in described.suited if named in (None, row.backend)]
    known = ", ".join(f"{row.backend} ({row.device})" for row in described.suited)
    if not rows:
        raise BadRequest(f"profile {described.name!r} names no device of backend {named!r}", supported=known)
    lacking = None
    for row in rows:
        try:
            entry = find(name or row.backend)
        except BackendUnavailable:
            lacking = lacking or row.backend
            continue
        with connect(entry) as backend:
            if backend.has_hook("compile"):
                return entry, row
    what = f"no installed backend compiles ahead of time for {described.name}"
    if lacking:
        raise BackendUnavailable(what, supported=known, hint=install_command(lacking))
    raise CannotDo(f"{what}: what build makes is compiled where it runs", hint="the same command without --profile")


def _seen_on(backend: Backend, described: Profile, suited: Suited) -> tuple[str, str]:
    """The device on which what is compiled can be compared here: its own, else an emulator that is claimed for the same
    formats. Or why it cannot."""
    manifest, probed = backend.entry.ready_manifest, {d.name: d for d in backend.probe().devices}
    formats = {claim.format for claim in manifest.claims if claim.device == suited.device}
    same = {claim.device for claim in manifest.claims if claim.format in formats}
    for name in (suited.device, *(d.name for d in manifest.devices if d.emulated and d.name in same)):
        if name in probed and probed[name].available:
            return name, ""
    reason = probed[suited.device].reason if suited.device in probed else ""
    why = f": {reason}" if reason else ""
    return "", f"compiled for the {suited.device} of {described.title}, which is not here{why}"


def _compiled(
    backend: Backend,
    base: Artifact,
    source: Source | None,
    described: Profile,
    suited: Suited,
    options: Mapping[str, Value],
    seen: str,
    making: Making,
    progress: Progress,
) -> Artifact:
    precision = base.precision or "native"
    facts = json.dumps(described.data, sort_keys=True, default=str)
    step = make.step_of("compile", backend, precision, options) | {
        "from": base.id or _native_digest(base),
        "device": suited.device,
        "profile": described.name,
        "profile_sha256": hashlib.sha256(facts.encode()).hexdigest(),
    }

    def made(staging: Staging) -> Artifact:
        made = backend.compile(
            artifact=base,
            out=staging.path,
            profile=described.data,
            device=suited.device,
            options=options,
            deadline=making.deadline,
            on_progress=progress,
        )
        step["format"] = made.format or base.format
        chain = base.chain or ((make.origin(source),) if source else ())
        return make.artifact_from(staging, made, step, chain, base.task, base.family, base.context_length)

    def compared(artifact: Artifact) -> dict[str, Any]:
        away = f"compiled for {described.title}, which is not here"
        assessment = _judged(artifact) if seen else Assessment.unverified(away)
        verifying.enforce(assessment, artifact, making)
        return verifying.record(backend, artifact, assessment, "quick")

    def _judged(artifact: Artifact) -> Assessment:
        declared = verifying.declared_precision(backend, artifact)
        try:
            return verifying.judge(backend, artifact, source, declared, "quick", progress, device=seen)
        except (DeviceUnavailable, PlacementRefused) as error:
            return Assessment.unverified(f"compiled for {described.title}, and it does not run here: {error.what}")

    return make.stored(backend, step, precision, making, progress, made, compared)


def _named(entry: Entry, precision: str) -> Artifact:
    """What an error names before there is an artifact."""
    return Artifact(Path(), entry.name, "", "", precision, ())


def _native_digest(base: Artifact) -> str:
    """Of the model's file and of those beside it that bear its name: an .xml has its weights in a .bin."""
    model = base.model
    files = sorted(model.parent.glob(f"{model.stem}.*")) if model.is_file() else sorted(model.rglob("*"))
    return hashlib.sha256("".join(f"{p.name} {file_digest(p)}\n" for p in files if p.is_file()).encode()).hexdigest()
