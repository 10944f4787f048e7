"""Arrays in and out of ONNX Runtime. Its Python binding knows numpy's types only; what `ml_dtypes` adds goes through as
bytes in a tensor of its own, four-bit numbers two a byte with the first in the lower half."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto

from edgecore.contract import UnsupportedModel

_NAMES = {
    "bool": "bool", "int8": "int8", "int16": "int16", "int32": "int32", "int64": "int64", "uint8": "uint8",
    "uint16": "uint16", "uint32": "uint32", "uint64": "uint64", "float16": "float16", "float": "float32",
    "double": "float64", "bfloat16": "bfloat16", "float8e4m3fn": "float8_e4m3fn", "float8e4m3fnuz": "float8_e4m3fnuz",
    "float8e5m2": "float8_e5m2", "float8e5m2fnuz": "float8_e5m2fnuz", "int4": "int4", "uint4": "uint4",
    "float4e2m1": "float4_e2m1fn",
}  # fmt: skip
"""ONNX Runtime's types by numpy's and ml_dtypes' names."""
_KINDS = {
    "bfloat16": TensorProto.BFLOAT16, "float8_e4m3fn": TensorProto.FLOAT8E4M3FN,
    "float8_e4m3fnuz": TensorProto.FLOAT8E4M3FNUZ, "float8_e5m2": TensorProto.FLOAT8E5M2,
    "float8_e5m2fnuz": TensorProto.FLOAT8E5M2FNUZ, "int4": TensorProto.INT4, "uint4": TensorProto.UINT4,
    "float4_e2m1fn": TensorProto.FLOAT4E2M1,
}  # fmt: skip
"""TensorProto.DataType of those that numpy lacks."""
_HALF_BYTES = ("int4", "uint4", "float4_e2m1fn")


def known(name: str) -> bool:
    """Whether ONNX Runtime has numpy's or ml_dtypes' type of that name."""
    return name in _NAMES.values()


def dtype_name(type: str, what: str) -> str:
    """numpy's or ml_dtypes' name of `tensor(float)`. Raises `UnsupportedModel` naming `what` for text, sequences and
    the like."""
    kind, _, element = type.partition("(")
    name = _NAMES.get(element.rstrip(")")) if kind == "tensor" else None
    if name is None:
        raise UnsupportedModel(f"{what} has type {type}", supported=f"tensors of {', '.join(_NAMES.values())}")
    return name


@cache
def dtype_of(name: str) -> np.dtype[Any]:
    """numpy's dtype by its or ml_dtypes' name."""
    return np.dtype(getattr(ml_dtypes, name, name))


def plain(name: str) -> bool:
    """Whether numpy itself has the type, and ONNX Runtime takes such arrays as they are."""
    return name not in _KINDS


def laid(array: NDArray[Any]) -> NDArray[Any]:
    """The array where ONNX Runtime reads it rightly, else a copy: it takes no heed of byte order and alignment."""
    flags = array.flags
    if flags.c_contiguous and flags.aligned and array.dtype.isnative:
        return array
    return np.require(array, array.dtype.newbyteorder("="), ["C", "A"])


def to_value(array: NDArray[Any], name: str) -> ort.OrtValue:
    """A tensor on the array's own memory where numpy has the type, else on a copy."""
    if plain(name):
        return ort.OrtValue.ortvalue_from_numpy(laid(array))
    value = ort.OrtValue.ortvalue_from_shape_and_type(list(array.shape), _KINDS[name])
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if name in _HALF_BYTES:
        flat = _packed(flat)
    if flat.size:
        ctypes.memmove(value.data_ptr(), flat.ctypes.data, flat.nbytes)
    return value


def to_array(value: ort.OrtValue, name: str) -> NDArray[Any]:
    """What a tensor holds, in memory of its own."""
    if plain(name):
        return np.array(value.numpy())
    shape = tuple(value.shape())
    count = value.tensor_size_in_bytes()
    flat = np.frombuffer(bytearray(ctypes.string_at(value.data_ptr(), count) if count else b""), np.uint8)
    if name in _HALF_BYTES:
        flat = _unpacked(flat, int(np.prod(shape)), signed=name == "int4")
    return flat.view(dtype_of(name)).reshape(shape)


def _packed(flat: NDArray[np.uint8]) -> NDArray[np.uint8]:
    halves = np.append(flat & 0xF, np.zeros(len(flat) % 2, np.uint8))
    return np.asarray(halves[0::2] | halves[1::2] << 4, np.uint8)


def _unpacked(packed: NDArray[np.uint8], count: int, *, signed: bool) -> NDArray[np.uint8]:
    """One number a byte, as ml_dtypes keeps them: signed ones with their sign extended."""
    halves = np.stack([packed & 0xF, packed >> 4], axis=1).reshape(-1)[:count]
    return np.asarray((halves ^ 8) - 8 if signed else halves, np.uint8)
