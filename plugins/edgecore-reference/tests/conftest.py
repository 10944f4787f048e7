"""One tiny model for all tests of this plugin, and hooks called as a worker calls them: through pluggy."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pluggy
import pytest

import edgecore_reference
from edgecore.contract import Artifact, ConvertLimits, Made, Manifest, PayloadFile, hookspecs, no_progress
from edgecore.contract.manifest import parse
from edgecore.contract.options import resolve
from edgecore_reference import hooks

from support.tiny import tiny_llama


@pytest.fixture(scope="session")
def manifest() -> Manifest:
    path = Path(edgecore_reference.__file__).with_name("backend.toml")
    return parse(tomllib.loads(path.read_text()), str(path))


@pytest.fixture(scope="session")
def backend() -> Any:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(hooks)
    manager.check_pending()
    return manager.hook


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


Convert = Callable[..., Made]
Run = Callable[..., Any]


@pytest.fixture
def convert(backend: Any, manifest: Manifest) -> Convert:
    def call(source: Path, out: Path, precision: str = "f32", format: str = "huggingface", **given: Any) -> Made:
        out.mkdir(parents=True, exist_ok=True)
        limits = given.pop("limits", ConvertLimits())
        progress = given.pop("progress", no_progress)
        options = resolve(manifest.options_of("convert"), given, "convert", "reference")
        made: Made = backend.edgecore_convert(
            source=source,
            out=out,
            format=format,
            precision=precision,
            options=options,
            limits=limits,
            progress=progress,
        )
        return made

    return call


@pytest.fixture
def run(backend: Any, manifest: Manifest, native: Callable[[Path], Artifact]) -> Run:
    def call(
        path: Path, device: str = "cpu", context_length: int | None = None, threads: int | None = None, **given: Any
    ) -> Any:
        artifact = native(path)
        options = resolve(manifest.options_of("run"), given, "run", "reference")
        return backend.edgecore_run(
            artifact=artifact, device=device, context_length=context_length, threads=threads, options=options
        )

    return call


@pytest.fixture(scope="session")
def native() -> Callable[[Path], Artifact]:
    """What the store makes of a native file or folder."""

    def call(path: Path) -> Artifact:
        task = "tensor" if path.suffix == ".onnx" else "text"
        files = (PayloadFile(path.name, "model"),) if path.is_file() else ()
        return Artifact(path, "reference", task, path.suffix[1:] or "huggingface", "f32", files)

    return call
