"""A tensor model opened: arrays in without a copy where OpenVINO takes their memory, arrays out that are the caller's.

OpenVINO checks little of what it is fed, keeps 64-bit integers in 32 bits and float64 in float32, and says nothing of
either; what would come out wrong for that is refused here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgecore.contract import (
    Artifact,
    BadRequest,
    CannotDo,
    DoesNotFit,
    EdgecoreError,
    Placement,
    TensorSession,
    TensorSpec,
    UnsupportedModel,
    Value,
    check_feeds,
)
from edgecore_openvino import blob, onnx_model, runtime
from edgecore_openvino.devices import check_device
from edgecore_openvino.elements import to_array, to_tensor
from edgecore_openvino.interface import Specs, from_source, stated
from edgecore_openvino.placement import assignment, placement_of

INTEGERS = ("int64", "uint64", "uint32")
NARROWED = (*INTEGERS, "float64")
"""Types that are computed in 32 bits."""
MOST_SHAPES = 64
"""Shapes of inputs that are remembered."""
LOWEST, HIGHEST = -(1 << 31), (1 << 31) - 1
OVERFLOWN = float(np.finfo(np.float32).max)
"""What infinity becomes when OpenVINO widens it to float64."""


def open_session(artifact: Artifact, device: str, threads: int | None, options: Mapping[str, Value]) -> TensorSession:
    """Reads and compiles. Raises as `runtime.read_model`, `onnx_model.read` and `runtime.compile_model`."""
    path = artifact.model
    rounded = options.get("float64") == "float32"
    if path.suffix == ".blob":
        given = runtime.properties(device, threads, blob.options(options))
        compiled, inputs, outputs = blob.load(artifact, device, given)
        return OpenVinoSession(compiled, inputs, outputs, rounded=rounded)
    model, inputs, outputs = load(path)
    properties = runtime.properties(device, threads, _own(artifact, device, options))
    check_device(device, properties)
    if device == "npu" and (free := next((s for s in inputs if any(isinstance(d, str) for d in s.shape)), None)):
        raise UnsupportedModel(
            f"{path.name}: the NPU takes fixed shapes only, and input {free.name!r} is {list(free.shape)}",
            supported="a conversion with fixed shapes",
            hint=f"edgecore convert MODEL.onnx --backend openvino --shape {free.name}=1,3,224,224",
        )
    compiled = runtime.compile_model(model, device, properties)
    if device == "cpu" and compiled.get_property("LOADED_FROM_CACHE") and rotates(compiled):
        compiled = runtime.compile_model(model, device, {k: v for k, v in properties.items() if k != "CACHE_DIR"})
    placed = assignment(model, properties) if device == "hetero" else None
    return OpenVinoSession(compiled, inputs, outputs, placed, rounded, Shapes(model))


def load(path: Path) -> tuple[ov.Model, Specs, Specs]:
    """An IR or an ONNX file, with what goes in and comes out."""
    if path.suffix.lower() == ".onnx":
        model, graph = onnx_model.read(path)
        inputs, outputs = from_source(model, graph.inputs, graph.outputs)
    else:
        model = runtime.read_model(path)
        inputs, outputs = stated(model)
    onnx_model.check_operators(path.name, model)
    return model, inputs, outputs


def rotates(compiled: ov.CompiledModel) -> bool:
    """Whether there is a fused rotary embedding: OpenVINO 2026.4's cache forgets how ONNX's turns, and answers
    something else."""
    nodes = compiled.get_runtime_model().get_ops()
    return any(node.get_rt_info()["layerType"].astype(str) == "RoPE" for node in nodes)


def _own(artifact: Artifact, device: str, options: Mapping[str, Value]) -> dict[str, Value]:
    """Options of a tensor model: there is no KV cache, and what was made in f32 is computed in it."""
    found = {name: value for name, value in options.items() if name not in ("kv_cache", "float64")}
    if artifact.precision == "f32" and device in ("cpu", "gpu") and found.get("inference_precision") == "device":
        found["inference_precision"] = "f32"
    return found


class Shapes:
    """Which inputs cannot fail: those of shapes that have been computed with, where shapes of inputs decide all others.

    On one thread OpenVINO 2026.4's `infer` loses what fails there, and answers what was before; to start and to wait
    raises, and costs a small model more than it takes, because another thread has to wake up.
    """

    def __init__(self, model: ov.Model | None) -> None:
        """`model` None: nothing is known of its shapes."""
        self._model = model if model is not None and model.is_dynamic() else None
        self._decided = model is not None and not model.is_dynamic()
        self._fixed = self._decided
        self._worked: set[tuple[tuple[int, ...], ...]] = set()

    def known(self, tensors: Sequence[ov.Tensor]) -> bool:
        return self._fixed or (self._decided and _shapes(tensors) in self._worked)

    def worked(self, tensors: Sequence[ov.Tensor]) -> None:
        """Inputs of such shapes were computed with."""
        if self._model is not None:
            self._decided, self._model = _decide(self._model, _shapes(tensors)), None
        if self._decided and len(self._worked) < MOST_SHAPES:
            self._worked.add(_shapes(tensors))


def _shapes(tensors: Sequence[ov.Tensor]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tensor.shape) for tensor in tensors)


def _decide(model: ov.Model, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether no shape is open any more once those of the inputs are given."""
    given = model.clone()
    given.reshape({port: ov.PartialShape(list(s)) for port, s in zip(given.inputs, shapes, strict=True)})
    return not given.is_dynamic()


class OpenVinoSession(TensorSession):
    """A compiled model with one request. `assigned` is what `placement.assignment` answered; `rounded` takes float64
    and computes it in float32."""

    def __init__(
        self,
        compiled: ov.CompiledModel,
        inputs: Specs,
        outputs: Specs,
        assigned: Mapping[str, str] | None = None,
        rounded: bool = False,
        shapes: Shapes | None = None,
    ) -> None:
        self._compiled: ov.CompiledModel | None = compiled
        self._request = compiled.create_infer_request()
        self._stateful = bool(self._request.query_state())
        self._inputs, self._outputs, self._assigned = inputs, outputs, assigned
        self._placement = Placement()
        self._narrowed = INTEGERS if rounded else NARROWED
        self._shapes = shapes or Shapes(None)
        self._lock = Lock()

    @property
    def inputs(self) -> Specs:
        return self._inputs

    @property
    def outputs(self) -> Specs:
        return self._outputs

    @property
    def placement(self) -> Placement:
        with self._lock:
            if self._compiled is not None:
                self._placement = placement_of(self._compiled, self._request, self._assigned)
            return self._placement

    @property
    def conditions(self) -> Mapping[str, str]:
        """Device, threads and inference precision, as the compiled model says."""
        if self._compiled is None:
            raise BadRequest("the session is closed")
        return runtime.stated(self._compiled)

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        check_feeds(self._inputs, feeds)
        # Kept until the request has run: it holds no reference to the memory.
        tensors = [self._tensor(spec, feeds[spec.name]) for spec in self._inputs]
        with self._lock:
            if self._compiled is None:
                raise BadRequest("the session is closed")
            request = self._request
            try:
                for number, tensor in enumerate(tensors):
                    request.set_input_tensor(number, tensor)
                if self._stateful:
                    request.reset_state()
                if self._shapes.known(tensors):
                    request.infer()
                else:
                    request.start_async()
                    request.wait()
                    self._shapes.worked(tensors)
                answers = [request.get_output_tensor(number) for number in range(len(self._outputs))]
            except (RuntimeError, ValueError, MemoryError) as error:
                self._request = self._compiled.create_infer_request()
                raise self._failure(error) from None
            return {spec.name: _array(spec, answer) for spec, answer in zip(self._outputs, answers, strict=True)}

    def close(self) -> None:
        with self._lock:
            self._compiled = self._request = None

    def _tensor(self, spec: TensorSpec, feed: NDArray[Any]) -> ov.Tensor:
        if spec.dtype in self._narrowed and feed.size:
            _check_narrowed(spec, feed)
        return to_tensor(feed, spec.dtype)

    def _failure(self, error: BaseException) -> EdgecoreError:
        if isinstance(error, MemoryError) or "bad_alloc" in str(error):
            return DoesNotFit(f"the model ran out of memory: {runtime.last_line(error)}", hint="smaller inputs")
        if any(isinstance(dim, str) for spec in self._inputs for dim in spec.shape):
            return BadRequest(f"these inputs do not go together: {runtime.last_line(error)}")
        return UnsupportedModel(f"OpenVINO does not compute the model: {runtime.last_line(error)}")


def _check_narrowed(spec: TensorSpec, feed: NDArray[Any]) -> None:
    """Raises `CannotDo` for a number that 32 bits do not hold: it would become another one."""
    if spec.dtype != "float64":
        low, high = int(feed.min()), int(feed.max())
        if low < LOWEST or high > HIGHEST:
            raise CannotDo(
                f"input {spec.name!r} holds {low if low < LOWEST else high}, "
                f"and OpenVINO computes {spec.dtype} in 32 bits",
                supported=f"{LOWEST} to {HIGHEST}",
            )
        return
    with np.errstate(over="ignore"):
        held = (feed.astype(np.float32) == feed) & np.isfinite(feed) | np.isnan(feed)
    if not held.all():
        raise CannotDo(
            f"input {spec.name!r} holds {float(feed[~held].flat[0])!r}, and OpenVINO computes float64 in float32",
            supported="numbers that float32 holds, a model in float32, or -O float64=float32, which rounds",
        )


def _array(spec: TensorSpec, answer: ov.Tensor) -> NDArray[Any]:
    array = to_array(answer, spec.dtype)
    if spec.dtype == "float64" and bool((np.abs(array) >= OVERFLOWN).any()):
        raise CannotDo(
            f"output {spec.name!r} is infinite or beyond float32, in which OpenVINO computes float64",
            supported="a model in float32",
        )
    return array
