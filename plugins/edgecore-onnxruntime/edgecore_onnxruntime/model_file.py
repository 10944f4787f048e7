"""An ONNX file and the files it names, looked at before ONNX Runtime reads them."""

from __future__ import annotations

from pathlib import Path


def check_file(path: Path) -> None:
    """Raises `ModelNotFound`, `CorruptModel`."""
