"""Functions that MLX exported, opened: arrays in, arrays out that are the caller's.

MLX's streams belong to the thread that made them, and what is imported takes the first of the process; ours are of the
kind that any thread may use, one at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import mlx.core as mx
from numpy.typing import NDArray

from edgecore.contract import (
    Artifact,
    BadRequest,
    CannotDo,
    CorruptModel,
    DoesNotFit,
    EdgecoreError,
    Placement,
    TensorSession,
    UnsupportedModel,
    Value,
    check_feeds,
)
from edgecore_mlx import memory, mlxfn, relocation
from edgecore_mlx.elements import element, laid, shown, to_array
from edgecore_mlx.installation import blas
from edgecore_mlx.placement import Watched
from edgecore_mlx.shapeless import Shapes, specs
from edgecore_mlx.signatures import Signature, Specs, signatures

Function = Callable[..., Sequence[mx.array]]
"""Arrays in the order of the inputs, arrays in the order of the outputs, not computed yet."""
_ERRORS = (ValueError, RuntimeError, TypeError, IndexError, MemoryError, OSError)
"""Everything that MLX raises."""
_LACKS_MEMORY = re.compile(r"allocat|bad_alloc|insufficient memory|out of memory", re.I)
_LOCK = Lock()
"""Held by whoever uses our streams."""


def open_session(artifact: Artifact, device: str, threads: int | None, options: Mapping[str, Value]) -> TensorSession:
    """threads: of the BLAS that computes matrix products, where it has any.

    Raises as `mlxfn.read` and `relocation.moved`, `BadRequest` for a signature that is not there, `DoesNotFit`.
    """
    path = artifact.model
    told = mlxfn.read(path)
    memory.limit(options)
    memory.check_fits(told.weights, device, path.name)
    signature = _chosen(path.name, signatures(told), int(options.get("signature", 1)))
    wanted = relocation.moved(path.name, told, device)
    with _LOCK, relocation.written(path, told, wanted) as placed, _on(device):
        function = _imported(path, placed, signature)
        shapes = _shapes(path.name, function, signature) if told.shapeless else None
        inputs, outputs = signature.specs()
        if shapes is not None:
            inputs, outputs = specs(shapes, signature.names, signature.traces[0])
    conditions = {"device": device, "threads": str(blas().limit(threads) if device == "cpu" else 1)}
    return FunctionSession(function, signature, inputs, outputs, shapes, device, wanted.operators, conditions)


class FunctionSession(TensorSession):
    """A function that any thread may call; one call runs at a time, whatever the session."""

    def __init__(
        self,
        function: Function,
        signature: Signature,
        inputs: Specs,
        outputs: Specs,
        shapes: Shapes | None,
        device: str,
        operators: Sequence[mlxfn.Operator],
        conditions: Mapping[str, str],
    ) -> None:
        self._function: Function | None = function
        self._signature, self._inputs, self._outputs = signature, inputs, outputs
        self._shapes, self._device = shapes, device
        self._operators, self._conditions = operators, conditions
        self._watched = Watched(device)
        # Where there is no other device nothing has to be told apart, and clocks take microseconds.
        self._clocks = self._watched if mx.is_available(mx.gpu) else nullcontext()
        self._elements = [element(spec.dtype) for spec in inputs]
        # On a CPU nothing is shared, and `asarray` copies at half the speed.
        self._take = mx.array if device == "cpu" else mx.asarray

    @property
    def inputs(self) -> Specs:
        return self._inputs

    @property
    def outputs(self) -> Specs:
        return self._outputs

    @property
    def placement(self) -> Placement:
        """By the file's account, operator by operator, where CPU time does not contradict it."""
        return relocation.shared(self._watched.placement(), self._operators)

    @property
    def conditions(self) -> Mapping[str, str]:
        """Device and threads."""
        return self._conditions

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        check_feeds(self._inputs, feeds)
        self._signature.check(feeds)
        given = [laid(feeds[spec.name]) for spec in self._inputs]
        with _LOCK:
            if self._function is None:
                raise BadRequest("the session is closed")
            try:
                with _on(self._device):
                    if self._shapes is not None:
                        self._shapes.infer([array.shape for array in given])
                    taken = [self._take(array, kind) for array, kind in zip(given, self._elements, strict=True)]
                    answers = [shown(answer) for answer in self._function(*taken)]
                    with self._clocks:
                        mx.eval(answers)
                    made = zip(self._outputs, answers, strict=True)
                    return {spec.name: to_array(answer, spec.dtype) for spec, answer in made}
            except _ERRORS as error:
                raise _failure(error) from None

    def close(self) -> None:
        with _LOCK:
            self._function = self._shapes = None


def _chosen(name: str, found: Sequence[Signature], number: int) -> Signature:
    if not 1 <= number <= len(found):
        raise BadRequest(
            f"{name} has no signature {number}",
            supported="; ".join(f"{n}: {signature}" for n, signature in enumerate(found, 1)),
            hint="-O signature=1",
        )
    return found[number - 1]


def _imported(path: Path, placed: Path, signature: Signature) -> Function:
    """Raises `CorruptModel` for what MLX does not take and our own reading found no fault with."""
    try:
        imported = mx.import_function(str(placed))
    except _ERRORS as error:
        if isinstance(failed := _failure(error), DoesNotFit):
            raise failed from None
        raise CorruptModel(f"{path}: MLX does not read it: {_said(error)}") from None
    called: Function = imported if callable(imported) else imported[0]
    positional, keywords = signature.positional, signature.keywords
    if not keywords:
        return called

    def call(*arrays: mx.array) -> Sequence[mx.array]:
        return called(*arrays[:positional], **dict(zip(keywords, arrays[positional:], strict=True)))

    return call


def _shapes(name: str, function: Function, signature: Signature) -> Shapes:
    """What a shapeless function makes of shapes. Computes once, with zeros of the shapes that it was traced with: that
    reads its constants, without which MLX does not walk it."""
    trace = signature.traces[0]
    try:
        mx.eval(function(*(mx.zeros(tensor.shape, element(tensor.dtype)) for tensor in trace.inputs)))
    except _ERRORS as error:
        if isinstance(failed := _failure(error), DoesNotFit):
            raise failed from None
        raise UnsupportedModel(
            f"{name}: was exported with shapeless=True, and MLX cannot call it: {_said(error)}",
            supported="operators whose shapes MLX can infer, or mx.exporter, with a trace for each shape",
        ) from None
    return Shapes(function, trace.inputs)


@cache
def _stream(device: str) -> mx.Stream:
    """The first of the process, on which what is imported is: ours, else perhaps this thread's. On another one it would
    compute too, and every call would wait for a thread more."""
    kind = mx.gpu if device == "gpu" else mx.cpu
    made, own = mx.new_thread_unsafe_stream(kind), mx.default_stream(kind)
    return min(made, own, key=_number)


def _number(stream: mx.Stream) -> int:
    """Streams are counted as they are made."""
    found = re.search(r"(\d+)\)$", str(stream))
    return int(found[1]) if found else 0


@contextmanager
def _on(device: str) -> Iterator[None]:
    """Our stream of the device, and within it the CPU's, on which constants are read."""
    with mx.stream(_stream("cpu")):
        if device == "cpu":
            yield
        else:
            with mx.stream(_stream(device)):
                yield


def _failure(error: BaseException) -> EdgecoreError:
    """What stopped a computation, typed."""
    words = _said(error)
    if isinstance(error, MemoryError) or _LACKS_MEMORY.search(words):
        return DoesNotFit(f"MLX ran out of memory: {words}", hint="smaller inputs")
    if "no Stream" in words:
        return CannotDo(
            "MLX was in use in this process before, and then all that it imports belongs to the thread that was first",
            supported="calls from that thread, or a session in a process of its own",
            hint="edgecore.open(MODEL, isolated=True)",
        )
    return UnsupportedModel(f"MLX does not compute the function: {words}")


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:600] or type(error).__name__
