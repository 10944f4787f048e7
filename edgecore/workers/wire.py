"""What travels between the caller and a worker: msgpack, and beyond it only the types that are named here.

Nothing is unpickled, so a worker can not make its caller run anything. Data classes travel by field name, so that two
versions of edgecore, here and in an environment, understand each other where they both know a field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path, PurePath
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from edgecore.contract.artifacts import Artifact, Fallback, Made, PayloadFile, Weights
from edgecore.contract.hookspecs import ConvertLimits, Probe, ProbedDevice
from edgecore.contract.measurement import Repetition, Samples, Workload
from edgecore.contract.placement import Placement, PlacementSource
from edgecore.contract.precisions import Precision, PrecisionClass
from edgecore.contract.sampling import Sampling
from edgecore.contract.sessions import Piece, TensorSpec
from edgecore.workers.arena import ArenaReader, ArenaWriter, Place

PROTOCOL = 1
"""Both sides must have the same."""
_BUFFER = 2048
"""Bytes that a message gets at first: msgpack's 256 KB, taken anew for every nested value, cost more than all else."""
SHARED_FROM = 1 << 16
"""Bytes from which an array goes through shared memory."""

_CLASSES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        Artifact, ConvertLimits, Fallback, Made, PayloadFile, Piece, Placement, Precision, Probe, ProbedDevice,
        Repetition, Samples, Sampling, TensorSpec, Weights, Workload,
    )
}  # fmt: skip
_FIELDS = {kind: tuple(f.name for f in dataclasses.fields(kind)) for kind in _CLASSES.values()}
_ENUMS: dict[str, type[StrEnum]] = {kind.__name__: kind for kind in (PlacementSource, PrecisionClass)}

_TUPLE, _SET, _PATH, _CLASS, _ENUM, _ARRAY, _SHARED, _TEXTS = range(1, 9)


class Codec:
    """Messages to bytes and back, for one direction each. Without arenas every array travels inside its message."""

    def __init__(self, writer: ArenaWriter | None = None, reader: ArenaReader | None = None) -> None:
        self._writer = writer
        self._reader = reader
        self._puts = 0

    def pack(self, message: Any) -> bytes:
        """Raises `TypeError` for a value that cannot travel, `OverflowError` for an integer beyond 64 bits."""
        self._puts = 0
        try:
            return self._pack(message)
        except BaseException:
            if self._writer:
                self._writer.undo(self._puts)
            raise

    def unpack(self, frame: bytes) -> Any:
        """Raises `ValueError` for what is no message."""
        return msgpack.unpackb(frame, ext_hook=self._extension, strict_map_key=False)

    def _pack(self, value: Any) -> bytes:
        packed: bytes = msgpack.packb(value, default=self._default, strict_types=True, buf_size=_BUFFER)
        return packed

    def _default(self, value: Any) -> Any:
        fields = _FIELDS.get(type(value))
        if fields is not None:
            data = {name: getattr(value, name) for name in fields}
            return msgpack.ExtType(_CLASS, self._pack([type(value).__name__, data]))
        for kind, encode in _ENCODERS:
            if isinstance(value, kind):
                return encode(self, value)
        raise TypeError(f"a value of type {type(value).__name__} cannot travel between processes")

    def array(self, array: NDArray[Any]) -> msgpack.ExtType:
        if array.dtype == object:
            texts = array.ravel().tolist()
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("an array of Python objects cannot travel between processes")
            return msgpack.ExtType(_TEXTS, self._pack([list(array.shape), texts]))
        shape = list(array.shape)  # ascontiguousarray makes a scalar's shape (1,).
        data = np.ascontiguousarray(array)
        # ml_dtypes' types have no code of numpy's; their names are unique.
        dtype = array.dtype.name if array.dtype.kind == "V" or array.dtype.isbuiltin == 2 else array.dtype.str
        content = data.reshape(-1).view(np.uint8).data
        place = self._writer.put(content) if self._writer and data.nbytes > SHARED_FROM else None
        if place is None:
            return msgpack.ExtType(_ARRAY, self._pack([dtype, shape, bytes(content)]))
        self._puts += 1
        where = [place.generation, place.path, place.size, place.offset]
        return msgpack.ExtType(_SHARED, self._pack([dtype, shape, where, data.nbytes]))

    def _extension(self, code: int, data: bytes) -> Any:
        value: Any = self.unpack(data) if code != _PATH else data.decode()
        if code == _CLASS:
            kind = _CLASSES[value[0]]
            known = _FIELDS[kind]
            return kind(**{k: v for k, v in value[1].items() if k in known})
        if code == _ARRAY:
            return _restore(value[0], value[1], bytearray(value[2]))
        if code == _SHARED:
            if self._reader is None:
                raise ValueError("shared memory on a connection that has none")
            return _restore(value[0], value[1], self._reader.take(Place(*value[2]), value[3]))
        return _SIMPLE[code](value)


def _restore(dtype: str, shape: list[int], data: bytearray) -> NDArray[Any]:
    try:
        kind = np.dtype(dtype)
    except TypeError:
        import ml_dtypes

        kind = np.dtype(getattr(ml_dtypes, dtype))
    return np.frombuffer(data, dtype=np.uint8).view(kind).reshape(shape)


def _texts(value: Any) -> NDArray[Any]:
    array = np.empty(len(value[1]), dtype=object)
    array[:] = value[1]
    return array.reshape(value[0])


_SIMPLE: dict[int, Callable[[Any], Any]] = {
    _TUPLE: tuple,
    _SET: frozenset,
    _PATH: Path,
    _ENUM: lambda value: _ENUMS[value[0]](value[1]),
    _TEXTS: _texts,
}
_ENCODERS: tuple[tuple[type | tuple[type, ...], Callable[[Codec, Any], Any]], ...] = (
    (tuple, lambda c, v: msgpack.ExtType(_TUPLE, c._pack(list(v)))),
    (np.ndarray, Codec.array),
    (np.generic, lambda c, v: v.item() if v.dtype.isbuiltin == 1 else float(v)),
    (PurePath, lambda c, v: msgpack.ExtType(_PATH, str(v).encode())),
    (tuple(_ENUMS.values()), lambda c, v: msgpack.ExtType(_ENUM, c._pack([type(v).__name__, v.value]))),
    ((set, frozenset), lambda c, v: msgpack.ExtType(_SET, c._pack(sorted(v)))),
    (Mapping, lambda c, v: dict(v)),
    (str, lambda c, v: str.__str__(v)),
    (int, lambda c, v: int(v)),
    (float, lambda c, v: float(v)),
    (list, lambda c, v: list(v)),
)
