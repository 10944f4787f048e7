"""The payload becomes the artifact's own: plain files, complete, hashed, on the disk, read-only."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgecore import disk
from edgecore.contract.artifacts import PayloadFile
from edgecore.contract.errors import PluginFault
from edgecore.store import schema


def sealed_payload(folder: Path, files: Sequence[PayloadFile], backend: str) -> tuple[PayloadFile, ...]:
    """`files` with sizes and digests, and with whatever else lies in the folder in the role `other`."""
    roles = {file.path: file.role for file in files}
    _check(folder, files, roles, backend)
    found = sorted(p for p in folder.rglob("*") if not p.is_dir())
    return tuple(
        _seal(path, PayloadFile(relative, roles.get(relative, "other")))
        for path in found
        if (relative := path.relative_to(folder).as_posix())
    )


def _check(folder: Path, files: Sequence[PayloadFile], roles: dict[str, str], backend: str) -> None:
    def fault(why: str) -> PluginFault:
        return PluginFault(f"backend {backend!r}: {why}")

    if len(roles) != len(files):
        raise fault("it names a file twice in Made.files")
    if list(roles.values()).count("model") > 1:
        raise fault("it names more than one file of role 'model' in Made.files")
    for path, role in roles.items():
        if role not in schema.ROLES:
            raise fault(f"{path} has the role {role!r}; roles are {', '.join(schema.ROLES)}")
        if not disk.is_inside(path):
            raise fault(f"{path} in Made.files is not a relative path inside the output folder")
        if not (folder / path).is_file():
            raise fault(f"{path} is in Made.files and was not written")
    for name in (schema.ARTIFACT_FILE, schema.EVIDENCE):
        if (folder / name).exists():
            raise fault(f"it wrote {name}, a name that belongs to the store")
    for path_found in folder.rglob("*"):
        if path_found.is_dir() and path_found.is_symlink():
            raise fault(f"{path_found.name} is a link to a folder; write files")


def _seal(path: Path, file: PayloadFile) -> PayloadFile:
    if path.is_symlink() or path.stat().st_nlink > 1:
        # A link would make the artifact depend on its source, and sealing would change the source's mode.
        own = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
        digest = disk.copy_file(path.resolve(), own)
        os.replace(own, path)
    else:
        disk.sync_file(path)
        digest = disk.sha256_of(path)
    disk.seal(path)
    return replace(file, size=path.stat().st_size, sha256=digest)
