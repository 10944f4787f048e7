"""Hooks called as a worker calls them: through pluggy, with the manifest's defaults filled in."""

from __future__ import annotations

import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pluggy
import pytest

import edgecore_mlx
from edgecore.contract import Artifact, ConvertLimits, Made, Manifest, hookspecs, no_progress
from edgecore.contract.manifest import parse
from edgecore.contract.options import resolve
from edgecore_mlx import hooks

from support.tiny import tiny_llama

# The suite's models, without the suite: it is not installed where the plugin is tested alone.
sys.path.append(str(Path(__file__).parents[3] / "conformance"))


@pytest.fixture(scope="session")
def manifest() -> Manifest:
    path = Path(edgecore_mlx.__file__).with_name("backend.toml")
    return parse(tomllib.loads(path.read_text()), str(path))


@dataclass(frozen=True)
class Hooks:
    """The hooks as the verbs call them. One thread: the machine is shared."""

    hook: Any
    manifest: Manifest

    def convert(self, source: Path, out: Path, precision: str = "f16", **given: Any) -> Made:
        out.mkdir(parents=True)
        format, limits = given.pop("format", "mlx"), given.pop("limits", ConvertLimits())
        progress = given.pop("progress", no_progress)
        made: Made = self.hook.edgecore_convert(
            source=source,
            out=out,
            format=format,
            precision=precision,
            options=resolve(self.manifest.options_of("convert"), given, "convert", "mlx"),
            limits=limits,
            progress=progress,
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
            options=resolve(self.manifest.options_of("quantize"), given, "quantize", "mlx", artifact.task, precision),
            progress=progress,
        )
        return made

    def run(self, artifact: Artifact, context_length: int | None = None, device: str = "cpu", **given: Any) -> Any:
        options = resolve(self.manifest.options_of("run"), given, "run", "mlx")
        return self.hook.edgecore_run(
            artifact=artifact, device=device, context_length=context_length, threads=1, options=options
        )


@pytest.fixture(scope="session")
def mlx(manifest: Manifest) -> Hooks:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(hooks)
    manager.check_pending()
    return Hooks(manager.hook, manifest)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder."""
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_mlx(mlx: Hooks, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The tiny model converted, F16, as the store would make an artifact of it."""
    out = tmp_path_factory.mktemp("models") / "f16"
    made = mlx.convert(tiny, out)
    return Artifact(out, "mlx", "text", "mlx", "f16", made.files, id="tiny")
