"""`hf:ORG/NAME[@REV][:QUANT|/FILE]`: a model of a Hugging Face hub, pinned to the commit it was fetched at.

huggingface_hub knows the hub: endpoint, credentials, addresses, the list of files with their digests. The bytes are
fetched by `downloading.download`, because huggingface_hub 2 starts an interrupted file again from nothing and compares
sizes only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from edgecore import disk, paths
from edgecore.checkpoint.onnx_file import external_files
from edgecore.contract.errors import (
    BackendUnavailable,
    BadRequest,
    EdgecoreError,
    ModelNotFound,
    Timeout,
    UnsupportedModel,
)
from edgecore.contract.progress import Progress
from edgecore.sources.downloading import Download, download
from edgecore.sources.kinds import SUPPORTED, detect
from edgecore.sources.resolving import Fetched, Look, fetched
from edgecore.sources.source import is_folder_file

FORM = "hf:ORG/NAME[@REV][:QUANT|/FILE]"
_SPEC = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/[^/:]+/[^/:]+|[^/:]+))?(?::(?P<quant>[\w.-]+)|/(?P<file>.+))?"
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A parsed spec."""

    repo: str
    revision: str | None
    quant: str | None
    file: str | None

    @property
    def spec(self) -> str:
        return f"hf:{self.repo}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository at one commit."""

    name: str
    size: int
    digests: dict[str, str]


def parse(text: str) -> Wanted:
    """`ORG/NAME[@REV][:QUANT|/FILE]`. Raises `BadRequest`."""
    found = _SPEC.fullmatch(text)
    if found is None:
        raise BadRequest(f"'hf:{text}' names no repository", supported=FORM)
    return Wanted(found["repo"], found["revision"], found["quant"], found["file"])


def fetch(text: str, progress: Progress, look: Look) -> Fetched:
    """Ask, choose, download, check; a folder's weights come last, after a look at the rest of it. Raises as
    `edgecore.sources.resolve` says."""
    wanted = parse(text)
    hub = _library()
    progress(0, 1, f"asking for {wanted.repo}")
    info = _ask(hub, wanted)
    files = {f.name: f for f in map(_file, info.siblings or ())}
    folder = paths.sources() / "hf" / wanted.repo.replace("/", "--") / str(info.sha)
    chosen = choose(files, wanted)
    weights = [name for name in chosen if name.endswith(".safetensors")] if len(chosen) > 1 else []
    for name in chosen:
        if name not in weights:
            _get(hub, wanted, str(info.sha), files[name], folder, progress)
    if weights:
        look(folder)
    for name in weights:
        _get(hub, wanted, str(info.sha), files[name], folder, progress)
    path = folder / chosen[0] if len(chosen) == 1 else folder
    if len(chosen) == 1:
        # An ONNX file may keep its weights beside it; which files those are stands in it.
        for beside in external_files(path):
            name = Path(chosen[0]).with_name(beside).as_posix()
            if name not in files:
                raise ModelNotFound(f"{wanted.repo}: {chosen[0]} takes weights from {name}, which is not there")
            _get(hub, wanted, str(info.sha), files[name], folder, progress)
            chosen = [*chosen, name]
    detect(path)
    origin = {"from": "hub", "repository": wanted.repo, "revision": wanted.revision or "", "commit": str(info.sha)}
    origin |= {"file": chosen[0] if path.is_file() else "", "licence": _licence(info)}
    digests = {folder / name: files[name].digests.get("sha256") or disk.sha256_of(folder / name) for name in chosen}
    return fetched(path, {k: v for k, v in origin.items() if v}, digests)


def choose(files: Iterable[str], wanted: Wanted) -> list[str]:
    """The files to fetch: one, or those of a folder. Raises `ModelNotFound`, `BadRequest` that lists the choices."""
    names = sorted(files)
    if wanted.file:
        if wanted.file not in names:
            raise ModelNotFound(f"{wanted.spec} has no file {wanted.file!r}", supported=_listed(names))
        return [wanted.file]
    ggufs = [n for n in names if n.lower().endswith(".gguf")]
    if wanted.quant:
        return [_one(_of_quant(ggufs, wanted), wanted)]
    at_root = [n for n in names if "/" not in n and is_folder_file(n)]
    weights = [n for n in at_root if n.endswith(".safetensors")]
    if "config.json" in names and weights:
        # Some repositories carry the same weights twice, in another program's layout.
        own = [n for n in weights if n.startswith("model")] or weights
        return [n for n in at_root if n not in weights or n in own]
    models = ggufs or [n for n in names if n.lower().endswith(".onnx")]
    if models:
        return [_one(models, wanted)]
    if any(n.endswith((".bin", ".pt", ".pth", ".ckpt")) for n in names):
        raise UnsupportedModel(
            f"{wanted.spec} has its weights as pickles, which run code when they are read",
            supported="*.safetensors, *.gguf",
        )
    raise ModelNotFound(f"{wanted.spec} has no model; it has {_listed(names)}", supported=SUPPORTED)


def _of_quant(ggufs: list[str], wanted: Wanted) -> list[str]:
    """Names that carry the quantization as a word of their own: Q4_K is not in Q4_K_M."""
    carries = re.compile(rf"(?:^|[-./_]){re.escape(wanted.quant or '')}(?=$|[-./])", re.IGNORECASE)
    found = [n for n in ggufs if carries.search(n[: -len(".gguf")])]
    if not found:
        raise ModelNotFound(f"{wanted.spec} has no GGUF file named {wanted.quant}", supported=_listed(ggufs) or "none")
    return found


def _one(found: list[str], wanted: Wanted) -> str:
    parts = [n for n in found if re.search(r"-\d{5}-of-\d{5}\.gguf$", n)]
    if parts and len(parts) == len(found):
        raise UnsupportedModel(
            f"{wanted.spec}: {found[0]} is one part of a model that is split over files", supported="GGUF in one file"
        )
    if len(found) > 1:
        raise BadRequest(
            f"{wanted.spec} has {len(found)} files that this could mean",
            supported=_listed(found),
            hint=f"{wanted.spec}/{found[0]}",
        )
    return found[0]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise BackendUnavailable(
            "hf: sources need the package huggingface_hub, which is not installed here",
            supported="a path, pypi:DIST",
            hint="python -m pip install huggingface_hub",
        ) from error
    return huggingface_hub


def _endpoint() -> str | None:
    # Read at each call: huggingface_hub reads it once, when it is imported.
    return os.environ.get("HF_ENDPOINT") or None


def _ask(hub: Any, wanted: Wanted) -> Any:
    """The repository at a commit, with names, sizes and digests."""
    import huggingface_hub.errors as errors

    try:
        api = hub.HfApi(endpoint=_endpoint(), library_name="edgecore")
        return api.model_info(wanted.repo, revision=wanted.revision, files_metadata=True, timeout=30)
    except Exception as error:
        # In this order: a gated repository is also "not found", and a missing revision is also an HTTP error.
        kinds: tuple[tuple[type[Exception], EdgecoreError], ...] = (
            (
                errors.GatedRepoError,
                ModelNotFound(f"{wanted.spec} asks for its terms to be accepted", hint="hf auth login"),
            ),
            (
                errors.RevisionNotFoundError,
                ModelNotFound(f"{wanted.spec}: {wanted.repo} has no revision {wanted.revision!r}"),
            ),
            (
                errors.RepositoryNotFoundError,
                ModelNotFound(
                    f"{wanted.spec}: there is no such repository, or it is private",
                    hint="hf auth login, for a private one",
                ),
            ),
            (errors.HFValidationError, BadRequest(f"{wanted.spec}: {error}", supported=FORM)),
            (
                errors.OfflineModeIsEnabled,
                ModelNotFound(f"{wanted.spec} was not fetched yet, and HF_HUB_OFFLINE is set"),
            ),
            (errors.HfHubHTTPError, ModelNotFound(f"{wanted.spec}: the hub answers: {_first_line(error)}")),
            (_request_error(hub), Timeout(f"{wanted.spec}: the hub does not answer: {_first_line(error)}")),
        )
        for kind, ours in kinds:
            if isinstance(error, kind):
                raise ours from error
        raise


def _get(hub: Any, wanted: Wanted, commit: str, file: HubFile, folder: Path, progress: Progress) -> None:
    """One file under `folder`, whole and checked, or not there."""
    if not disk.is_inside(file.name):
        raise BadRequest(f"{wanted.repo} has a file named {file.name!r}, which leaves its folder")
    target = folder / file.name
    if target.is_file() and target.stat().st_size == file.size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    url = hub.hf_hub_url(wanted.repo, file.name, revision=commit, endpoint=_endpoint())
    wish = Download(url, file.name, "the hub", file.digests, _request_error(hub))
    download(_Client(hub), wish, partial, progress)
    disk.sync_file(partial)
    os.replace(partial, target)


class _Client:
    """huggingface_hub's HTTP client, with its credentials, as `download` wants it."""

    def __init__(self, hub: Any) -> None:
        self._session: Any = hub.utils.get_session()
        self._headers: dict[str, str] = hub.utils.build_hf_headers(library_name="edgecore")

    def get_stream(self, url: str, *, headers: Any = None) -> Any:
        return self._session.stream("GET", url, headers={**self._headers, **(headers or {})}, timeout=30)


def _request_error(hub: Any) -> type[Exception]:
    """Of httpx or its successor, whichever this huggingface_hub speaks through."""
    library = import_module(type(hub.utils.get_session()).__module__.partition(".")[0])
    kind: type[Exception] = library.RequestError
    return kind


def _file(sibling: Any) -> HubFile:
    if sibling.lfs:
        return HubFile(sibling.rfilename, int(sibling.lfs.size), {"sha256": sibling.lfs.sha256})
    return HubFile(sibling.rfilename, int(sibling.size or 0), {"git-sha1": sibling.blob_id} if sibling.blob_id else {})


def _licence(info: Any) -> str:
    card = getattr(info, "card_data", None)
    named = getattr(card, "license", None) if card else None
    tags = [t.partition(":")[2] for t in getattr(info, "tags", None) or () if t.startswith("license:")]
    return str(named or (tags[0] if tags else ""))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
