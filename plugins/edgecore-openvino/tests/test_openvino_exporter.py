"""Running optimum-intel's exporter as a command: its growing folder is the progress, its last words are the error."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from edgecore.checkpoint.exporters import exporters
from edgecore.contract import ConvertLimits, DoesNotFit, Manifest, UnsupportedModel, no_progress
from edgecore.contract.errors import UnsupportedPrecision
from edgecore_openvino import exporter

ARGUMENTS: dict[str, Any] = {"format": "openvino-genai", "precision": "f16", "options": {}, "limits": ConvertLimits()}


def test_what_it_does_not_take_is_refused_before_it_runs(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="Hugging Face"):
        exporter.edgecore_convert(source=tmp_path, out=tmp_path, progress=no_progress, **ARGUMENTS)
    (tmp_path / "config.json").write_text('{"n_positions": 64}')
    with pytest.raises(UnsupportedPrecision, match="int4"):
        exporter.edgecore_convert(
            source=tmp_path, out=tmp_path, progress=no_progress, **ARGUMENTS | {"precision": "int4"}
        )
    limits = ConvertLimits(max_context=65)
    with pytest.raises(DoesNotFit, match="trained for 64"):
        exporter.edgecore_convert(source=tmp_path, out=tmp_path, progress=no_progress, **ARGUMENTS | {"limits": limits})


def test_the_command_that_others_advise_is_the_one_that_makes_its_environment(manifest: Manifest) -> None:
    assert manifest.exporter
    (known,) = [e for e in exporters() if e.name == manifest.exporter.name]
    assert known.install == "edgecore plugin install openvino --export"
    assert f"optimum-intel=={known.version}" in manifest.exporter.requires


def test_genais_tokenizer_is_ours_where_ours_can_be_made(tiny: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, tmp_path / name)
    (tmp_path / "openvino_tokenizer.xml").write_text("another's")
    assert exporter._tokenizer(tmp_path) == []
    assert (tmp_path / "openvino_tokenizer.xml").read_text() != "another's"
    (tmp_path / "tokenizer.json").unlink()
    assert "was not compared" in exporter._tokenizer(tmp_path)[0]
    (tmp_path / "openvino_tokenizer.xml").unlink()
    assert "made no tokenizer" in exporter._tokenizer(tmp_path)[0]
