"""Convert and quantize as one kind of work, so that what holds for both (progress, cancelling, a full disk, a killed
worker) is observed by one piece of code; and what lies in folders before and after."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecore.contract.artifacts import Artifact, Made
from edgecore.contract.errors import DeviceUnavailable, EdgecoreError
from edgecore.contract.manifest import Manifest
from edgecore.contract.precisions import Precision
from edgecore.contract.progress import Progress, no_progress
from edgecore.workers import Backend
from edgecore_conformance import tensor_models
from edgecore_conformance.bench import Bench, sha256_of
from edgecore_conformance.check import Cell, Check
from edgecore_conformance.known import TRAINED

Tree = dict[str, list[Any]]
"""Relative path to [size, modification time in ns, permissions, sha256]; a folder has size -1 and no digest."""
PLACES = ("home", "temp", "cwd", "edgecore")
"""Where a careless plugin leaves things: each gets an empty folder for a worker that is watched."""


def tree(folder: Path) -> Tree:
    """Everything below a folder. A folder's own time is left out: reading may change it on some systems."""
    found: Tree = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else [folder]:
        name, status = path.relative_to(folder).as_posix() if path != folder else path.name, path.lstat()
        whole = path.is_file() and not path.is_symlink()
        found[name] = [
            status.st_size if whole else -1,
            status.st_mtime_ns if whole else 0,
            status.st_mode & 0o7777,
            sha256_of(path) if whole else "",
        ]
    return found


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder."""
    return {name: facts[3] for name, facts in tree(folder).items() if facts[3]}


def changes(before: Tree, after: Tree) -> list[str]:
    """What was added, removed or touched, in words."""
    said = [f"{name} was added" for name in after if name not in before]
    said += [f"{name} was removed" for name in before if name not in after]
    said += [f"{name} was changed" for name in before if name in after and before[name][3] != after[name][3]]
    return said + [
        f"{name} was touched (time or permissions)"
        for name in before
        if name in after and before[name][3] == after[name][3] and before[name] != after[name]
    ]


def places(folder: Path) -> dict[str, Path]:
    """Empty folders for home, temporary files, the working directory and EDGECORE_HOME, made below `folder`."""
    made = {name: folder / name for name in PLACES}
    for path in made.values():
        path.mkdir(parents=True, exist_ok=True)
    return made


def environment(where: Mapping[str, Path]) -> dict[str, str | None]:
    """Variables that lead a process there; None for those that would lead it elsewhere."""
    home, temp = str(where["home"]), str(where["temp"])
    moved: dict[str, str | None] = dict.fromkeys(
        ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "HF_HOME")
    )
    moved |= dict.fromkeys(("HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA"), home)
    moved |= dict.fromkeys(("TMPDIR", "TMP", "TEMP"), temp)
    return moved | {"EDGECORE_HOME": str(where["edgecore"])}


@contextmanager
def elsewhere(where: Mapping[str, Path]) -> Iterator[None]:
    """Processes started within live in these places. Only around starting one: this process moves along meanwhile."""
    tempfile.gettempdir()  # remembered by tempfile before the variables change: ours stays where it is
    before, here = dict(os.environ), Path.cwd()
    for name, value in environment(where).items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    os.chdir(where["cwd"])
    try:
        yield
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)


def nested(bench: Bench, purpose: str) -> Path:
    """An empty folder alone in a new one, so that what a plugin writes beside it is seen (`beside`)."""
    out = bench.folder(purpose) / "out"
    out.mkdir()
    return out


def beside(out: Path) -> list[str]:
    """What lies beside a folder of `nested`."""
    return sorted(path.name for path in out.parent.iterdir() if path != out)


def trees(where: Mapping[str, Path]) -> dict[str, Tree]:
    return {name: tree(path) for name, path in where.items()}


def told(error: BaseException, bench: Bench | None = None) -> dict[str, str]:
    """An exception as facts: its type, its words and what it says is supported, without this machine's folders."""
    words = str(getattr(error, "what", error)), str(getattr(error, "supported", ""))
    hide = {str(Path.home()): "~", tempfile.gettempdir(): "{temp}"}
    if bench is not None:
        hide = {str(bench.work): "{work}", **hide}
    said = []
    for word in words:
        for folder, name in hide.items():
            word = word.replace(folder, name) if len(folder) > 1 else word
        said.append(word[:2000])
    return {"error": type(error).__name__, "what": said[0], "supported": said[1]}


def attempt(work: Callable[[], Any], bench: Bench | None = None) -> dict[str, str]:
    """The error of a call as facts; empty where it raised none. Only errors of the contract are caught, and not the one
    that the device of the run is missing: what cannot be run at all says nothing of the call."""
    try:
        work()
    except EdgecoreError as error:
        if isinstance(error, DeviceUnavailable) and bench is not None and bench.missing:
            raise
        return told(error, bench)
    return {}


UNTYPED = ("", "PluginFault", "WorkerCrashed", "Timeout", "EdgecoreError")
"""Names that are no typed refusal: no error at all, a fault, a death, and the base class that says nothing."""


@dataclass(frozen=True, slots=True)
class Job:
    """One conversion or quantization that can be done any number of times."""

    verb: str
    precision: Precision
    source: Path
    """What it reads and must leave alone: a file or a folder."""
    work: Callable[[Backend, Path, Progress, float], Made]
    """(backend, empty folder, progress, deadline in seconds)."""
    base: Artifact | None = None
    """Of a quantization: what is quantized."""

    def run(self, backend: Backend, out: Path, deadline: float, progress: Progress = no_progress) -> Made:
        return self.work(backend, out, progress, deadline)


class OfQuantize(Check):
    """Applies to plugins that quantize language models; speaks of claims about text where a cell names no task."""

    def applies(self, manifest: Manifest) -> bool:
        return makes(manifest, "quantize", "text")

    def proves(self, manifest: Manifest, cell: Cell) -> Mapping[str, str]:
        return {"task": "text", **super().proves(manifest, cell)}


class OfEither(OfQuantize):
    """Of models of both tasks, as far as a plugin quantizes them: cells of a tensor model say `task=tensor`."""

    def applies(self, manifest: Manifest) -> bool:
        return any(makes(manifest, "quantize", task) for task in ("text", "tensor"))

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        """One for text, and one for each precision of tensor models, which differ more than those of text: with feeds
        or without."""
        text: list[Cell] = [{}] if makes(manifest, "quantize", "text") else []
        return text + tensor_cells(manifest, device)


def tensor_cells(manifest: Manifest, device: str) -> list[Cell]:
    """Precisions that quantize makes of tensor models."""
    if not makes(manifest, "quantize", "tensor"):
        return []
    made = [p for p in claimed(manifest, device, "tensor") if p.by != "convert"]
    return [{"precision": p.name, "task": "tensor"} for p in made]


def convert_job(bench: Bench, source: Path, precision: Precision, format: str = "", task: str = "text") -> Job:
    format = format or bench.format_for(precision.name, task)

    def work(backend: Backend, out: Path, progress: Progress, deadline: float) -> Made:
        bench.stage = "convert"
        return backend.convert(
            source=source, out=out, format=format, precision=precision.name, options=bench.options("convert", task),
            limits=bench.limits(task, source), deadline=deadline, on_progress=progress,
        )  # fmt: skip

    return Job("convert", precision, source, work)


def quantize_job(bench: Bench, precision: Precision, fixture: str = TRAINED, base: Artifact | None = None) -> Job:
    """base: what is quantized in the place of the fixture's own artifact."""
    base = base or bench.artifact(fixture, format=bench.format_for(precision.name))
    calibration = calibration_of(bench, base.task) if precision.calibration == "required" else None

    def work(backend: Backend, out: Path, progress: Progress, deadline: float) -> Made:
        bench.stage = "quantize"
        return backend.quantize(
            artifact=base, out=out, precision=precision.name, calibration=calibration,
            options=bench.options("quantize", base.task), deadline=deadline, on_progress=progress,
        )  # fmt: skip

    return Job("quantize", precision, base.path, work, base)


def calibration_of(bench: Bench, task: str) -> Path:
    """A text, or a folder of feeds of the classifier."""
    if task == "text":
        return bench.calibration()
    return tensor_models.calibration_folder(bench, tensor_models.calibrating())


def base_of(bench: Bench, task: str, precision: str = "") -> Artifact:
    """What is quantized (to a precision): the trained language model, or the classifier."""
    if task == "tensor":
        return tensor_models.classifier(bench)[0]
    return bench.artifact(TRAINED, format=bench.format_for(precision) if precision else "")


def makes(manifest: Manifest, verb: str, task: str = "text") -> bool:
    """Whether a plugin declares that it does this for models of a task."""
    if not manifest.formats_of(task) or (verb == "convert" and not sources_of(manifest, task)):
        return False
    return any(p.by in (verb, "both") for p in manifest.precisions_of(task))


def sources_of(manifest: Manifest, task: str) -> list[str]:
    """Kinds of sources that a plugin declares, of those that there are for a task."""
    return [kind for kind in ("huggingface", "gguf", "onnx") if kind in manifest.sources and task_of(kind) == task]


def task_of(source: str) -> str:
    """The task of models from a kind of source."""
    return "tensor" if source == "onnx" else "text"


def claimed(manifest: Manifest, device: str, task: str = "text") -> list[Precision]:
    """Precisions that the plugin claims for a task on a device, in the manifest's order."""
    names = {c.precision for c in manifest.claims if c.task == task and c.device == device}
    return [p for p in manifest.precisions if p.name in names]


def families(manifest: Manifest, device: str, precision: str = "") -> list[str]:
    """Families claimed for text on a device, in the order of the claims."""
    found = {
        c.family: None
        for c in manifest.claims
        if c.task == "text" and c.device == device and precision in ("", c.precision)
    }
    return list(found)


def usual(manifest: Manifest, device: str) -> Precision:
    """The precision of language models that stands for quantize where one is enough: claimed, recommended, with the
    fewest bits, and without calibration where there is such."""
    known = [p for p in claimed(manifest, device) if p.by != "convert"] or [
        p for p in manifest.precisions_of("text") if p.by != "convert"
    ]
    return min(known, key=lambda p: (p.calibration == "required", not p.recommended, p.by == "both", p.bits))


def calibrated(manifest: Manifest, device: str, task: str) -> list[Precision]:
    """The precisions that options of quantize are tried with, one after the other: those that take calibration data
    first, of text the usual one before."""
    known = [p for p in manifest.precisions_of(task) if p.by != "convert"]
    claims = {p.name for p in claimed(manifest, device, task)}
    known.sort(key=lambda p: (p.calibration == "none", p.name not in claims, not p.recommended, p.bits))
    first = [usual(manifest, device)] if task == "text" else []
    return list(dict.fromkeys([*(p for p in first if p.calibration != "none"), *known]))
