"""Running optimum-intel's exporter as a command: its growing folder is the progress, its last words are the error."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgecore.checkpoint.exporters import exporters
from edgecore.contract import Cancelled, ConvertLimits, DoesNotFit, Manifest, UnsupportedModel, no_progress
from edgecore.contract.errors import UnsupportedPrecision
from edgecore_openvino import exporter

ARGUMENTS: dict[str, Any] = {"format": "openvino-genai", "precision": "f16", "options": {}, "limits": ConvertLimits()}


def script(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_the_growing_folder_is_the_progress(tmp_path: Path) -> None:
    file = tmp_path / "openvino_model.bin"
    code = f"import time; f = open({str(file)!r}, 'wb', 0); f.write(bytes(500)); time.sleep(1); f.write(bytes(500))"
    seen: list[tuple[int, int]] = []
    exporter.run(script(code), tmp_path, 1000, lambda done, total, stage="": seen.append((done, total)))
    assert seen == sorted(seen)
    assert (500, 1000) in seen
    assert seen[-1] == (1000, 1000)


def test_cancelling_ends_the_command(tmp_path: Path) -> None:
    def cancel(done: int, total: int, stage: str = "") -> None:
        raise Cancelled("enough")

    start = time.monotonic()
    with pytest.raises(Cancelled):
        exporter.run(script("import time; time.sleep(60)"), tmp_path, 1, cancel)
    assert time.monotonic() - start < 30


def test_its_last_words_are_the_error(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="optimum-intel failed: no such architecture"):
        exporter.run(script("raise SystemExit('no such architecture')"), tmp_path, 1, no_progress)


def test_it_runs_without_a_network(tmp_path: Path) -> None:
    code = "import os; assert os.environ['HF_HUB_OFFLINE'] == os.environ['TRANSFORMERS_OFFLINE'] == '1'"
    exporter.run(script(code), tmp_path, 1, no_progress)


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
