"""What a file of exported functions says of itself: `mx.import_function` tells nothing of what it read, trusts every
length in the file, and takes another version's file for its own.

The layout is MLX 0.32's (`mlx/export.cpp`; it writes its version and reads it back without a look): a header, and for
each trace its inputs, its outputs and all operators in order, the weights among them. The state that an operator keeps
has no length of its own, so `STATE` must know it; what `STATE` does not know cannot be read past.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import ml_dtypes
import numpy as np

from edgecore.contract import CorruptModel, ModelNotFound, UnsupportedModel

T = TypeVar("T")
VERSION = "0.32.4"
"""Of the MLX whose layout this is."""
DTYPES = (
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64",
    "bfloat16", "complex64",
)  # fmt: skip
"""`mlx::core::Dtype::Val`, in its order."""
DEVICES = ("cpu", "gpu")
"""`mlx::core::Device::DeviceType`."""
MOST, MOST_BYTES = 1 << 20, 1 << 46
"""Members of a list, bytes of an array: beyond is no file that anybody wrote."""
STATE = {
    name: state
    for state, names in {
        "": "Abs Add ArcCos ArcCosh ArcSin ArcSinh ArcTan ArcTan2 ArcTanh Ceil Conjugate Copy Cos Cosh Depends Divide "
        "DivMod Erf ErfInv Exp Expm1 Floor FloorDivide Full Greater GreaterEqual Imag Less LessEqual Log1p LogAddExp "
        "LogSumExp LogicalAnd LogicalNot LogicalOr MaskedScatter Matmul Maximum Minimum Multiply Negative NotEqual "
        "Power QRF Real Remainder Round Select Sigmoid Sign Sin Sinh Square StopGradient Subtract Tan Tanh",
        "?": "Cholesky Eig Equal SVD SearchSorted Softmax Sqrt",
        "??": "GatherMM Inverse",
        "D": "AsType View",
        "I": "Broadcast BroadcastAxes DynamicSliceUpdate ExpandDims Reshape Squeeze Transpose",
        "II": "DynamicSlice Gather",
        "III": "Pad Slice",
        "Ii": "RandomBits Split",
        "I?D": "NumberOfElements",
        "IIIIIi?": "Convolution",
        "ILN": "AsStrided",
        "L???": "FFT",
        "S?": "Eigh",
        "f": "Hadamard LayerNorm LayerNormVJP RMSNorm RMSNormVJP",
        "ff": "AddMM",
        "f????": "ScaledDotProductAttention",
        "ddd": "Arange",
        "i": "ArgSort BitwiseBinary BlockMaskedMM Concatenate GatherAxis Log Sort",
        "ii": "ArgPartition ArgReduce Flatten Partition ScatterAxis",
        "iI": "Reduce Scatter Unflatten",
        "iIII": "SliceUpdate",
        "ii??": "Scan",
        "iii?": "Quantize QuantizedMatmul",
        "iii???": "GatherQMM",
        "i?ff?": "RoPE",
        "SSiiiiiiB?OV?ii": "CustomKernel",
    }.items()
    for name in names.split()
}
"""What `state()` of each operator is made of: bool, int, float, double, size_t (N), Dtype, string, lists of 32 (I) and
64 bits (L), of three bools (B) and of scalars with their kind (V), perhaps a float (O)."""
_SIZES = {name: np.dtype(getattr(ml_dtypes, name, name)).itemsize for name in DTYPES}
_SCALARS = {"?": "<?", "i": "<i", "f": "<f", "d": "<d", "N": "<Q"}
_VARIANTS = ("i", "f", "?")


@dataclass(frozen=True, slots=True)
class Tensor:
    """An array's type, by numpy's or ml_dtypes' name, and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """What one call left: positional inputs, then those by keyword in the keywords' order, and the outputs."""

    keywords: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Operator:
    """What computes: where it was told to, and where in the file that stands."""

    name: str
    device: str
    at: int
    double: bool
    """Whether float64 goes in or out."""


@dataclass(frozen=True, slots=True)
class Functions:
    """A file's account of itself."""

    version: str
    shapeless: bool
    metadata: str
    traces: tuple[Trace, ...]
    operators: tuple[Operator, ...]
    weights: int
    """Bytes of constants."""


def read(path: Path) -> Functions:
    """Walks the whole file and touches no weight.

    Raises `ModelNotFound`, `CorruptModel` naming the place, and `UnsupportedModel` for another version's layout and for
    operators that this MLX does not read.
    """
    if not path.exists():
        raise ModelNotFound(f"{path} does not exist")
    if not path.is_file():
        raise CorruptModel(f"{path} is no file")
    if not path.stat().st_size:
        raise CorruptModel(f"{path} is empty", supported="what mx.export_function writes")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Walk(path, data).file()
    except OSError as error:
        raise ModelNotFound(f"{path}: {error.strerror or error}", supported="a file that may be read") from None


class _Walk:
    """A place in the file, moved by reading."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0
        self.version = ""
        self.constants: dict[int, Tensor] = {}
        self.weights = 0
        self.operators: list[Operator] = []

    def file(self) -> Functions:
        version = self.string("version", most=64)
        if not re.fullmatch(r"\d+\.\d+\.\d+\S*", version):
            raise self.wrong("version", "is none")
        self.version = version
        count, shapeless = self.whole("number of traces"), self.flag("shapeless")
        metadata = self.string("metadata", most=len(self.data))
        if not 0 < count <= MOST:
            raise self.wrong("number of traces", f"is {count}")
        traces = tuple(self.trace() for _ in range(count))
        if self.at != len(self.data):
            raise self.wrong("end", f"is followed by {len(self.data) - self.at} bytes more")
        return Functions(self.version, shapeless, metadata, traces, tuple(self.operators), self.weights)

    def trace(self) -> Trace:
        keywords = tuple(self.many("keywords", lambda: self.string("keyword")))
        ids, inputs = self.many("inputs", self.id, 8), self.many("inputs", self.tensor)
        wanted = self.many("outputs", self.id, 8)
        if len(ids) != len(inputs) or len(keywords) > len(inputs) or list(keywords) != sorted(set(keywords)):
            raise self.wrong("inputs", f"are {len(ids)}, {len(inputs)} and {len(keywords)} by keyword")
        known = dict(zip(ids, inputs, strict=True))
        for _ in range(self.count("operators", 10)):
            self.step(known)
        if not wanted or not all(id in known for id in wanted):
            raise self.wrong("outputs", "are not all computed")
        return Trace(keywords, tuple(inputs), tuple(known[id] for id in wanted))

    def step(self, known: dict[int, Tensor]) -> None:
        """One array in order: an operator's, a constant, or an input that is there already."""
        id = self.id()
        if self.flag("operator"):
            self.operator(id, known)
        elif not self.flag("constant"):
            if id not in known:
                raise self.wrong("input", "is unknown")
        else:
            if id not in self.constants:
                self.constants[id] = self.constant()
            known[id] = self.constants[id]

    def operator(self, id: int, known: dict[int, Tensor]) -> None:
        ids = self.many("an operator's inputs", self.id, 8)
        if not all(one in known for one in ids):
            raise self.wrong("an operator's inputs", "are not all computed before")
        self.take(4, "stream")
        at = self.at
        device = self.whole("device")
        if not 0 <= device < len(DEVICES):
            raise self.wrong("device", f"is {device}")
        self.take(4, "device")
        name = self.string("operator")
        if name not in STATE:
            if name.isidentifier():
                raise UnsupportedModel(
                    f"{self.path.name}: has the operator {name}, which MLX {VERSION} does not read from files"
                )
            raise self.wrong("operator", "has no name")
        for kind in STATE[name]:
            self.state(kind, f"state of {name}")
        made = self.outputs(id)
        known.update(made)
        tensors = (*(known[one] for one in ids), *made.values())
        self.operators.append(Operator(name, DEVICES[device], at, any(t.dtype == "float64" for t in tensors)))

    def outputs(self, id: int) -> dict[int, Tensor]:
        siblings = self.count("siblings", 8)
        if not siblings:
            return {id: self.tensor()}
        ids = self.many("siblings", self.id, 8)
        shapes, dtypes = self.many("shapes", self.shape), self.many("types", self.dtype, 5)
        if not len(ids) == len(shapes) == len(dtypes) == siblings + 1 or id not in ids:
            raise self.wrong("siblings", f"are {len(ids)}, of {len(shapes)} shapes and {len(dtypes)} types")
        return {one: self.sized(Tensor(d, s)) for one, s, d in zip(ids, shapes, dtypes, strict=True)}

    def constant(self) -> Tensor:
        tensor = self.tensor()
        size = math.prod(tensor.shape) * _SIZES[tensor.dtype]
        self.skip(size, "constant")
        self.weights += size
        return tensor

    def tensor(self) -> Tensor:
        shape = self.shape()
        return self.sized(Tensor(self.dtype(), shape))

    def sized(self, tensor: Tensor) -> Tensor:
        if min(tensor.shape, default=0) < 0 or math.prod(tensor.shape) * _SIZES[tensor.dtype] > MOST_BYTES:
            raise self.wrong("shape", f"is {list(tensor.shape)}")
        return tensor

    def shape(self) -> tuple[int, ...]:
        count = self.count("shape", 4)
        return struct.unpack(f"<{count}i", self.take(4 * count, "shape"))

    def dtype(self) -> str:
        value, size = struct.unpack("<iB", self.take(5, "type"))
        if not 0 <= value < len(DTYPES) or _SIZES[DTYPES[value]] != size:
            raise self.wrong("type", f"is number {value} of {size} bytes")
        return DTYPES[value]

    def state(self, kind: str, what: str) -> None:
        if kind in _SCALARS:
            self.flag(what) if kind == "?" else self.take(struct.calcsize(_SCALARS[kind]), what)
        elif kind == "D":
            self.dtype()
        elif kind == "S":
            self.string(what, most=len(self.data))
        elif kind == "O":
            if self.flag(what):
                self.take(4, what)
        elif kind == "V":
            for _ in range(self.count(what, 5)):
                variant = self.whole(what)
                if not 0 <= variant < len(_VARIANTS):
                    raise self.wrong(what, f"has a scalar of kind {variant}")
                self.state(_VARIANTS[variant], what)
        else:
            size = {"I": 4, "L": 8, "B": 3}[kind]
            self.take(size * self.count(what, size), what)

    def many(self, what: str, read: Callable[[], T], least: int = 8) -> list[T]:
        return [read() for _ in range(self.count(what, least))]

    def count(self, what: str, least: int) -> int:
        """How many follow, of `least` bytes or more each."""
        (count,) = struct.unpack("<Q", self.take(8, what))
        if count > min(MOST, (len(self.data) - self.at) // least):
            raise self.wrong(what, f"are {count}, more than the rest of the file holds")
        return int(count)

    def string(self, what: str, most: int = 4096) -> str:
        (size,) = struct.unpack("<Q", self.take(8, what))
        if size > most:
            raise self.wrong(what, f"has {size} bytes")
        try:
            return self.take(size, what).decode()
        except UnicodeDecodeError:
            raise self.wrong(what, "is no text") from None

    def id(self) -> int:
        return int(struct.unpack("<Q", self.take(8, "id"))[0])

    def whole(self, what: str) -> int:
        return int(struct.unpack("<i", self.take(4, what))[0])

    def flag(self, what: str) -> bool:
        (byte,) = self.take(1, what)
        if byte > 1:
            raise self.wrong(what, f"is {byte}, neither yes nor no")
        return bool(byte)

    def take(self, size: int, what: str) -> bytes:
        self.skip(size, what)
        return self.data[self.at - size : self.at]

    def skip(self, size: int, what: str) -> None:
        if size > len(self.data) - self.at:
            raise self.wrong(what, f"has {size} bytes, and {len(self.data) - self.at} are left")
        self.at += size

    def wrong(self, field: str, what: str) -> CorruptModel | UnsupportedModel:
        """What is wrong, or another version's way of saying it."""
        if self.version not in ("", VERSION):
            return UnsupportedModel(
                f"{self.path.name}: MLX {self.version} exported it, and MLX {VERSION} reads such files in another way: "
                f"byte {self.at}: field {field!r}: {what}",
                supported=f"functions that MLX {VERSION} exported",
                hint=f"export it once more: pip install mlx=={VERSION}",
            )
        return CorruptModel(
            f"{self.path}: byte {self.at}: field {field!r}: {what}", supported="what mx.export_function writes"
        )
