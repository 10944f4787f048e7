"""A copy of an artifact where the user wants it, whole or not there."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

import psutil

from edgecore import disk
from edgecore.contract.artifacts import Artifact
from edgecore.contract.errors import BadRequest, CorruptModel, EdgecoreError
from edgecore.store import schema


def export(artifact: Artifact, out: Path) -> Artifact:
    """As `Store.export` says; `out` is absolute."""
    if artifact.native:
        raise BadRequest(f"{artifact.path} is a native file: copy it with your own tools")
    if there := _identical(artifact, out):
        return there
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise BadRequest(f"{out} exists and is not this artifact", supported="a name that is not taken")
    out.parent.mkdir(parents=True, exist_ok=True)
    _sweep(out)
    beside = out.with_name(f".{out.name}.{os.getpid()}.partial")
    disk.remove_tree(beside)
    try:
        _copy(artifact, beside)
        with suppress(OSError):
            out.rmdir()
        try:
            os.rename(beside, out)
        except OSError as error:
            if there := _identical(artifact, out):
                return there
            raise BadRequest(f"{out} was made by someone else meanwhile") from error
        disk.sync_folder(out.parent)
    finally:
        disk.remove_tree(beside)
    return schema.read(out)


def _copy(artifact: Artifact, to: Path) -> None:
    to.mkdir()
    for file in artifact.files:
        target = to / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if disk.copy_file(artifact.path / file.path, target) != file.sha256:
            raise CorruptModel(
                f"{artifact.path / file.path} is not what was sealed: its SHA-256 differs",
                hint=f"edgecore cache rm {artifact.id}",
            )
        disk.seal(target)
    if (artifact.path / schema.EVIDENCE).is_dir():
        shutil.copytree(artifact.path / schema.EVIDENCE, to / schema.EVIDENCE, ignore=shutil.ignore_patterns(".*"))
    disk.write_whole(to / schema.ARTIFACT_FILE, schema.write(artifact))


def _identical(artifact: Artifact, out: Path) -> Artifact | None:
    try:
        there = schema.read(out)
    except EdgecoreError:
        return None
    same = there.id == artifact.id and there.files == artifact.files
    return there if same and all(disk.sha256_of(out / f.path) == f.sha256 for f in there.files) else None


def _sweep(out: Path) -> None:
    """Removes copies that killed exporters left beside this name."""
    for left in out.parent.glob(f".{out.name}.*.partial"):
        pid = left.name.split(".")[-2]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            disk.remove_tree(left)
