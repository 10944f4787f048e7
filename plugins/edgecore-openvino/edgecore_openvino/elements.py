"""Arrays in and out of OpenVINO's tensors. Its Python binding knows numpy's types only, and takes no read-only memory;
what `ml_dtypes` adds goes through as bytes, four-bit numbers two a byte with the first in the lower half."""

from __future__ import annotations

from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgecore.contract import TensorSpec, UnsupportedModel

_NAMES = {
    "boolean": "bool", "i4": "int4", "i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64", "u4": "uint4",
    "u8": "uint8", "u16": "uint16", "u32": "uint32", "u64": "uint64", "bf16": "bfloat16", "f16": "float16",
    "f32": "float32", "f64": "float64", "f8e4m3": "float8_e4m3fn", "f8e5m2": "float8_e5m2",
    "f8e8m0": "float8_e8m0fnu", "f4e2m1": "float4_e2m1fn",
}  # fmt: skip
"""OpenVINO's types by numpy's and ml_dtypes' names."""
_TYPES = {numpy: getattr(ov.Type, name) for name, numpy in _NAMES.items()}


def dtype_name(type: ov.Type, what: str) -> str:
    """numpy's or ml_dtypes' name. Raises `UnsupportedModel` naming `what` for text and the like."""
    name = _NAMES.get(type.get_type_name())
    if name is None:
        raise UnsupportedModel(f"{what} has type {type.get_type_name()}", supported=", ".join(_NAMES.values()))
    return name


def type_of(spec: TensorSpec) -> ov.Type:
    """OpenVINO's type of an input. Raises `UnsupportedModel` for one that it has not."""
    if spec.dtype not in _TYPES:
        raise UnsupportedModel(f"{spec.name!r} has type {spec.dtype}", supported=", ".join(_TYPES))
    return _TYPES[spec.dtype]


@cache
def dtype_of(name: str) -> np.dtype[Any]:
    """numpy's dtype by its or ml_dtypes' name."""
    return np.dtype(getattr(ml_dtypes, name, name))


@cache
def plain(name: str) -> bool:
    """Whether numpy itself has the type, and OpenVINO's tensors are views of such arrays."""
    return dtype_of(name).isbuiltin == 1


def to_tensor(array: NDArray[Any], name: str) -> ov.Tensor:
    """A tensor on the array's own memory where OpenVINO takes that: aligned, C-contiguous, writable; else on a copy.

    Keep it until the request has run: the request does not keep the memory.
    """
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if plain(name):
        flags = array.flags
        return ov.Tensor(array, shared_memory=flags.c_contiguous and flags.writeable and flags.aligned)
    kind = _TYPES[name]
    flat = np.ascontiguousarray(array).reshape(-1)
    if kind.bitwidth < 8:
        flat = _packed(flat)
    flat = flat.view(np.float16 if kind.bitwidth == 16 else np.int8 if name == "int4" else np.uint8)
    tensor = ov.Tensor(kind, ov.Shape(list(array.shape)))
    tensor.data.reshape(-1)[:] = flat
    return tensor


def to_array(tensor: ov.Tensor, name: str) -> NDArray[Any]:
    """What a tensor holds, in memory of its own."""
    data = tensor.data
    if plain(name):
        return np.array(data)
    dtype = dtype_of(name)
    flat = np.array(data).reshape(-1).view(np.uint8)
    shape = tuple(tensor.shape)
    if tensor.element_type.bitwidth < 8:
        flat = _unpacked(flat, int(np.prod(shape)), signed=name == "int4")
    return flat.view(dtype).reshape(shape)


def _packed(flat: NDArray[Any]) -> NDArray[np.uint8]:
    halves = flat.view(np.uint8) & 0xF
    halves = np.append(halves, np.zeros(len(halves) % 2, np.uint8))
    return np.asarray(halves[0::2] | halves[1::2] << 4, np.uint8)


def _unpacked(packed: NDArray[np.uint8], count: int, *, signed: bool) -> NDArray[np.uint8]:
    """One number a byte, as ml_dtypes keeps them: signed ones with their sign extended."""
    halves = np.stack([packed & 0xF, packed >> 4], axis=1).reshape(-1)[:count]
    return np.asarray((halves ^ 8) - 8 if signed else halves, np.uint8)
