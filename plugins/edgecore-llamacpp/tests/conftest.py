"""One tiny model for all tests, converted once, and hooks called as a worker calls them: through pluggy."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pluggy
import pytest

import edgecore_llamacpp
from edgecore.contract import Artifact, ConvertLimits, Made, Manifest, PayloadFile, hookspecs, no_progress
from edgecore.contract.manifest import parse
from edgecore.contract.options import resolve
from edgecore_llamacpp import hooks

from support.tiny import tiny_llama


@pytest.fixture(scope="session")
def manifest() -> Manifest:
    path = Path(edgecore_llamacpp.__file__).with_name("backend.toml")
    return parse(tomllib.loads(path.read_text()), str(path))


@dataclass(frozen=True)
class Hooks:
    """The hooks with declared defaults filled in, as the verbs call them. One thread: the machine is shared."""

    hook: Any
    manifest: Manifest

    def convert(self, source: Path, out: Path, precision: str = "f16", **given: Any) -> Made:
        out.mkdir(parents=True)
        made: Made = self.hook.edgecore_convert(
            source=source,
            out=out,
            format=given.pop("format", "gguf"),
            precision=precision,
            options={},
            limits=given.pop("limits", ConvertLimits()),
            progress=given.pop("progress", no_progress),
        )
        return made

    def quantize(self, artifact: Artifact, out: Path, precision: str, **given: Any) -> Made:
        out.mkdir(parents=True)
        calibration, progress = given.pop("calibration", None), given.pop("progress", no_progress)
        made: Made = self.hook.edgecore_quantize(
            artifact=artifact,
            out=out,
            precision=precision,
            calibration=calibration,
            options=resolve(self.manifest.options_of("quantize"), given, "quantize", "llamacpp"),
            progress=progress,
        )
        return made

    def run(self, artifact: Artifact, context_length: int | None = None, device: str = "cpu", **given: Any) -> Any:
        options = resolve(self.manifest.options_of("run"), given, "run", "llamacpp")
        return self.hook.edgecore_run(
            artifact=artifact, device=device, context_length=context_length, threads=1, options=options
        )


@pytest.fixture(scope="session")
def llama(manifest: Manifest) -> Hooks:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(hooks)
    manager.check_pending()
    return Hooks(manager.hook, manifest)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder whose rows divide by 256."""
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def native() -> Callable[[Path], Artifact]:
    """What the store makes of a GGUF file."""
    return lambda path: Artifact(path, "llamacpp", "text", "gguf", "", (PayloadFile(path.name, "model"),))


@pytest.fixture(scope="session")
def tiny_gguf(
    llama: Hooks, tiny: Path, native: Callable[[Path], Artifact], tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    """The tiny model as GGUF F16."""
    out = tmp_path_factory.mktemp("models") / "f16"
    llama.convert(tiny, out)
    return native(out / "model.gguf")
