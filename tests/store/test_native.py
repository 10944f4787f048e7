"""Native files and folders as artifacts: known by content, marker or suffix, described from headers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgecore.contract.errors import CorruptModel
from edgecore.contract.manifest import Format, Manifest, parse
from edgecore.store import native_artifact

from support.models import write_gguf, write_onnx


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """A backend that opens a file by content, a file by suffix, a folder by marker, and a folder as a whole."""
    formats = [
        {"name": "gguf", "task": "text", "suffixes": [".gguf"]},
        {"name": "onnx", "task": "tensor", "suffixes": [".onnx"]},
        {"name": "ir", "task": "tensor", "suffixes": [".xml"], "marker": "openvino_model.xml"},
        {"name": "mlx", "task": "text", "marker": "weights.npz"},
    ]
    data = {
        "name": "all", "title": "All", "summary": "", "contract": "1.0", "hooks": "x", "distribution": "x",
        "runtime": {"distribution": "x"}, "formats": formats, "capabilities": {},
    }  # fmt: skip
    return parse(data, "test")


def test_a_gguf_file_is_described_from_its_header_whatever_it_is_called(tmp_path: Path, manifest: Manifest) -> None:
    path = write_gguf(tmp_path / "blob")
    artifact = native_artifact(path, manifest)
    assert artifact is not None
    assert artifact.native
    assert (artifact.backend, artifact.task, artifact.format, artifact.precision) == ("all", "text", "gguf", "q8_0")
    assert (artifact.family, artifact.context_length) == ("llama", 2048)
    assert artifact.model == path
    assert artifact.files[0].size == path.stat().st_size


def test_a_gguf_file_without_a_file_type_has_no_precision(tmp_path: Path, manifest: Manifest) -> None:
    artifact = native_artifact(write_gguf(tmp_path / "m.gguf", None), manifest)
    assert artifact is not None
    assert artifact.precision == ""


def test_an_onnx_file_brings_its_external_weights(tmp_path: Path, manifest: Manifest) -> None:
    artifact = native_artifact(write_onnx(tmp_path / "m.onnx", external=True), manifest)
    assert artifact is not None
    assert (artifact.format, artifact.precision) == ("onnx", "f16")
    assert [(f.path, f.role) for f in artifact.files] == [("m.onnx", "model"), ("w.data", "weights")]
    (tmp_path / "w.data").unlink()
    with pytest.raises(CorruptModel, match=r"takes weights from w\.data, which is not beside it"):
        native_artifact(tmp_path / "m.onnx", manifest)


def test_a_folder_is_known_by_its_marker(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "ir").mkdir()
    for name in ("openvino_model.xml", "openvino_model.bin"):
        (tmp_path / "ir" / name).write_text("x")
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "weights.npz").write_text("x")
    ir, mlx = (native_artifact(tmp_path / name, manifest) for name in ("ir", "mlx"))
    assert ir is not None
    assert mlx is not None
    assert (ir.format, ir.model) == ("ir", tmp_path / "ir" / "openvino_model.xml")
    assert (mlx.format, mlx.model) == ("mlx", tmp_path / "mlx")


def test_a_folder_is_known_by_a_key_of_its_config_too(tmp_path: Path, manifest: Manifest) -> None:
    packed = replace(manifest, formats=(Format("mlx", "text", marker="weights.npz", config_key="quantization"),))
    (tmp_path / "config.json").write_text('{"model_type": "llama", "quantization": {"bits": 4}}')
    assert (found := native_artifact(tmp_path, packed)) is not None
    assert (found.format, found.model) == ("mlx", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "quantization": null}')
    assert native_artifact(tmp_path, packed) is None


def test_what_no_format_explains_is_not_native(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    assert native_artifact(tmp_path / "notes.txt", manifest) is None
    assert native_artifact(tmp_path, manifest) is None
    assert native_artifact(tmp_path / "missing", manifest) is None


@pytest.mark.parametrize("name", ["m.gguf", "m.onnx"])
def test_a_truncated_native_file_is_corrupt(tmp_path: Path, manifest: Manifest, name: str) -> None:
    path = (write_gguf if name == "m.gguf" else write_onnx)(tmp_path / name)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptModel, match="truncated"):
        native_artifact(path, manifest)
