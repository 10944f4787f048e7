"""Running llama.cpp's converter as a script: its growing file is the progress, its last words are the error."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest

from edgecore.contract import BackendUnavailable, ConvertLimits, UnsupportedModel, no_progress
from edgecore_llamacpp import exporter, source_package


def test_only_folders_are_exported(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"format": "gguf", "precision": "f16", "options": {}, "limits": ConvertLimits()}
    with pytest.raises(UnsupportedModel, match="Hugging Face"):
        exporter.edgecore_convert(source=tmp_path, out=tmp_path, progress=no_progress, **arguments)


def test_the_source_package_is_unpacked_once(tmp_path: Path) -> None:
    top = f"llama_cpp_python-{source_package.RUNTIME}"
    inner = tmp_path / top / "vendor" / "llama.cpp"
    inner.mkdir(parents=True)
    (inner / "convert_hf_to_gguf.py").write_text("print('hello')")
    sdist = tmp_path / "package.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        archive.add(tmp_path / top, top)
    found = source_package.llama_cpp(tmp_path / "cache", sdist)
    assert (found / "convert_hf_to_gguf.py").is_file()
    sdist.unlink()
    assert source_package.llama_cpp(tmp_path / "cache", sdist) == found
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [top]


def test_another_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "readme").write_text("nothing")
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "readme", "other-1.0/readme")
    with pytest.raises(BackendUnavailable, match=source_package.RUNTIME):
        source_package.llama_cpp(tmp_path / "cache", tmp_path / "other.tar.gz")
