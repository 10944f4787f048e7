"""An ONNX file and the files that it names, looked at before any runtime reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

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


def read_tensor(tensor: Any, folder: Path) -> NDArray[Any]:
    """An initializer's values, from the file beside the model where they lie there. onnx's own reader refuses files
    with several hard links, which snapshots and caches make of a folder; that they lie in it is checked (`check_file`).
    """
    from onnx import TensorProto, external_data_helper, numpy_helper  # opening a model does without it

    if not external_data_helper.uses_external_data(tensor):
        return numpy_helper.to_array(tensor)
    whole = TensorProto()
    whole.CopyFrom(tensor)
    place = external_data_helper.ExternalDataInfo(tensor)
    with (folder / place.location).open("rb") as file:
        file.seek(place.offset or 0)
        whole.raw_data = file.read(place.length if place.length is not None else -1)
    whole.ClearField("external_data")
    whole.data_location = TensorProto.DEFAULT
    return numpy_helper.to_array(whole)


def check_room(path: Path, header: OnnxHeader) -> None:
    """Raises `DoesNotFit` where the weights are larger than the free memory."""
    held = sum((path.parent / name).stat().st_size for name in header.external) + path.stat().st_size
    _, free = usable_memory()
    if held > free:
        raise DoesNotFit(
            f"{path}: {held / 2**30:.1f} GiB of weights, and {free / 2**30:.1f} GiB of memory are free",
            hint="a precision with fewer bits",
        )
