"""What QNN compiled when a folder was opened, kept for the next time: compiling takes seconds, loading does not.

In edgecore's cache folder, one folder a graph, chip, options and set of versions; the least recently used go when
all together take more than `MOST`. Nothing depends on it: what cannot be kept or read is compiled where it is opened.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import onnxruntime as ort

from edgecore.contract import Artifact, EdgecoreError, UnsupportedModel, Value, cache_folder
from edgecore_onnxruntime import context, qnn, runtime
from edgecore_onnxruntime.chips import NPU, chip_here

FORMAT = "onnx-htp"
"""Whose graphs are compiled when they are opened; others were, ahead of time."""
MOST = 8 << 30
"""Bytes of all that is kept."""
_ASKED = ("soc_model", "graph_optimization", *qnn.PROVIDER)
"""Options that may make another binary."""
_MAKING, _DAY = "making-", 24 * 3600
_FAILS: tuple[type[Exception], ...] = (EdgecoreError, *runtime.ERRORS)


def open_kept(
    artifact: Artifact, file: Path, threads: int | None, device: str, options: Mapping[str, Value]
) -> ort.InferenceSession:
    """One of the artifact's graphs, as it was compiled before or as it is kept now. Raises as `qnn.open_on_npu`."""
    compiles = artifact.format == FORMAT and not options.get("allow_fallback")
    if compiles and options.get("compile_cache", True):
        with suppress(*_FAILS):
            return _opened(artifact, file, threads, device, options)
    return qnn.open_on_npu(file, threads, device, options)


def _opened(
    artifact: Artifact, file: Path, threads: int | None, device: str, options: Mapping[str, Value]
) -> ort.InferenceSession:
    kept = _folder() / _key(artifact, file, device, options)
    if not kept.is_dir():
        _keep(file, kept, threads, device, options)
    try:
        os.utime(kept)
        return qnn.open_on_npu(kept / file.name, threads, device, options)
    except _FAILS:
        shutil.rmtree(kept, ignore_errors=True)
        raise


def _folder() -> Path:
    return cache_folder("onnxruntime") / "compiled"


def _key(artifact: Artifact, file: Path, device: str, options: Mapping[str, Value]) -> str:
    """Of everything that the binary depends on. Native files are known by their size and time."""
    parts: list[object] = [file.name, device, chip_here() if device == NPU else ""]
    parts += [*sorted(runtime.versions().items()), *sorted(qnn.versions().items())]
    parts += [(name, options.get(name)) for name in _ASKED]
    for known in artifact.files:
        stat = (file.parent / known.path).stat()
        parts.append((known.path, stat.st_size, known.sha256 or (str(file.parent), stat.st_mtime_ns)))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _keep(file: Path, kept: Path, threads: int | None, device: str, options: Mapping[str, Value]) -> None:
    """Under its final name whole or not at all; of two at once, the first one's stays. QNN compiles what is compiled
    until the process ends, and loads what is damaged: neither gets that far."""
    if qnn.check_graph(file):
        raise UnsupportedModel(f"{file.name} is compiled already")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=_MAKING, ignore_cleanup_errors=True) as folder:
        session_options = runtime.session_options(threads, options)
        qnn.add_npu(session_options, device, str(options.get("soc_model") or ""), options)
        compiler = ort.ModelCompiler(session_options, file, embed_compiled_data_into_model=False)
        made = Path(folder) / "made"
        made.mkdir()
        compiler.compile_to_file(str(made / file.name))
        context.sealed(made / file.name)
        with suppress(FileExistsError):
            made.rename(kept)
    _prune(kept.parent)


def _prune(folder: Path) -> None:
    """The oldest go; the newest stays, however large, and so does what another process is making."""
    ages = {path: path.stat().st_mtime for path in folder.iterdir()}
    making = {path for path, time in ages.items() if path.name.startswith(_MAKING) and max(ages.values()) - time < _DAY}
    found = sorted(ages.keys() - making, key=lambda path: ages[path], reverse=True)
    total = 0
    for number, path in enumerate(found):
        total += sum(file.stat().st_size for file in path.glob("*"))
        if number and total > MOST:
            shutil.rmtree(path, ignore_errors=True)
