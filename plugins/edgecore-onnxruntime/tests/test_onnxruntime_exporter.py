"""Running onnxruntime_genai's builder as a command: its growing folder is the progress, its last words the error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgecore.checkpoint.exporters import exporters
from edgecore.contract import ConvertLimits, DoesNotFit, Manifest, UnsupportedModel, UnsupportedPrecision, no_progress
from edgecore_onnxruntime import exporter

ARGUMENTS: dict[str, Any] = {"format": "onnx-genai", "precision": "f32", "options": {}, "limits": ConvertLimits()}


def test_what_it_does_not_take_is_refused_before_it_runs(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="Hugging Face"):
        exporter.edgecore_convert(source=tmp_path, out=tmp_path, progress=no_progress, **ARGUMENTS)
    (tmp_path / "config.json").write_text('{"n_positions": 64}')
    with pytest.raises(UnsupportedPrecision, match="f16"):
        exporter.edgecore_convert(
            source=tmp_path, out=tmp_path, progress=no_progress, **ARGUMENTS | {"precision": "f16"}
        )
    limits = ConvertLimits(max_context=65)
    with pytest.raises(DoesNotFit, match="trained for 64"):
        exporter.edgecore_convert(source=tmp_path, out=tmp_path, progress=no_progress, **ARGUMENTS | {"limits": limits})


def test_what_it_does_not_know_is_answered_by_its_last_words(tmp_path: Path) -> None:
    """Here it lacks torch, or does not know the model."""
    (tmp_path / "config.json").write_text('{"model_type": "none", "architectures": ["None"]}')
    with pytest.raises(UnsupportedModel, match=r"the ONNX Runtime GenAI builder failed: \w+"):
        exporter.edgecore_convert(source=tmp_path, out=tmp_path / "out", progress=no_progress, **ARGUMENTS)


def test_the_command_that_others_advise_is_the_one_that_makes_its_environment(manifest: Manifest) -> None:
    assert manifest.exporter
    assert manifest.exporter.name == exporter.NAME
    (known,) = [e for e in exporters() if e.name == exporter.NAME]
    assert known.install == "edgecore plugin install onnxruntime --export"
    assert f"onnxruntime-genai=={known.version}" in manifest.exporter.requires
