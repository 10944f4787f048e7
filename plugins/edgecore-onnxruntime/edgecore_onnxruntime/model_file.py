"""An ONNX file and the files that it names, looked at before any runtime reads them."""

from __future__ import annotations

from pathlib import Path

from edgecore.checkpoint.onnx_file import OnnxHeader, read_header
from edgecore.contract import CorruptModel, DoesNotFit, ModelNotFound, usable_memory


def check_file(path: Path) -> OnnxHeader:
    """Raises `ModelNotFound`, and `CorruptModel` for a file that is truncated or names others that are missing, cut off
    or outside its folder."""
    if not path.exists():
        raise ModelNotFound(f"{path} does not exist")
    if not path.is_file():
        raise CorruptModel(f"{path} is no file")
    return read_header(path)


def check_room(path: Path, header: OnnxHeader) -> None:
    """Raises `DoesNotFit` where the weights are larger than the free memory."""
    held = sum((path.parent / name).stat().st_size for name in header.external) + path.stat().st_size
    _, free = usable_memory()
    if held > free:
        raise DoesNotFit(
            f"{path}: {held / 2**30:.1f} GiB of weights, and {free / 2**30:.1f} GiB of memory are free",
            hint="a precision with fewer bits",
        )
