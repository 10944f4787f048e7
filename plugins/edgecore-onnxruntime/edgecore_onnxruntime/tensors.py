"""A tensor model opened: arrays in without a copy where ONNX Runtime takes their memory, arrays out that are the
caller's.

ONNX Runtime checks shapes but not what a dimension's name promises, reads other byte orders as its own, and raises a
dozen kinds of errors; the contract's check comes before, and its errors after.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as native

from edgecore.contract import (
    Artifact,
    BadRequest,
    DoesNotFit,
    EdgecoreError,
    Placement,
    TensorSession,
    UnsupportedModel,
    Value,
    check_feeds,
)
from edgecore_onnxruntime import context, onnx_model, runtime
from edgecore_onnxruntime.chips import DEVICES
from edgecore_onnxruntime.elements import laid, plain, to_array, to_value
from edgecore_onnxruntime.npu_feeds import Guard, guard
from edgecore_onnxruntime.onnx_model import Specs
from edgecore_onnxruntime.placement import placement_of


def open_session(artifact: Artifact, device: str, threads: int | None, options: Mapping[str, Value]) -> TensorSession:
    """Raises as `onnx_model.read`, `onnx_model.open_session` and, elsewhere than on a CPU, `devices.open_on`."""
    path = artifact.model
    graph = onnx_model.read(path, on_npu=device in DEVICES)
    if device not in DEVICES and any(node.operator == f"com.microsoft.{context.OPERATOR}" for node in graph.nodes):
        raise context.elsewhere(path, device)
    guarded: Guard | None = None
    if device == "cpu":
        session = onnx_model.open_session(path, runtime.session_options(threads, options))
    else:
        from edgecore_onnxruntime.devices import check_device, open_on

        check_device(device)
        if device in DEVICES:
            check_fixed(path, graph.inputs, device)
            guarded = guard(path, graph, device)
        session = open_on(path, threads, device, options)
    return OnnxRuntimeSession(session, *onnx_model.specs(graph, session), device, guarded)


def check_fixed(path: Path, inputs: Specs, device: str) -> None:
    """Raises `UnsupportedModel` for the first input that has an open dimension, or one of nothing: QNN divides by it,
    and ends the process."""
    if free := [spec for spec in inputs if any(isinstance(dim, str) for dim in spec.shape)]:
        sizes = (f"--shape {s.name}={','.join('1' if isinstance(d, str) else str(d) for d in s.shape)}" for s in free)
        raise UnsupportedModel(
            f"{path.name}: {device} takes fixed shapes only, and input {free[0].name!r} is {list(free[0].shape)}",
            supported="a conversion with fixed shapes",
            hint=f"edgecore convert MODEL.onnx --backend onnxruntime {' '.join(sizes)}",
        )
    if empty := next((spec for spec in inputs if 0 in spec.shape), None):
        raise UnsupportedModel(
            f"{path.name}: {device} takes no empty inputs, and {empty.name!r} is {list(empty.shape)}",
            supported="inputs of one number or more",
            hint="--device cpu",
        )


class OnnxRuntimeSession(TensorSession):
    """A session that any number of threads may call."""

    def __init__(
        self,
        session: ort.InferenceSession,
        inputs: Specs,
        outputs: Specs,
        device: str,
        guarded: Guard | None = None,
    ) -> None:
        self._session: ort.InferenceSession | None = session
        self._inputs, self._outputs, self._guard = inputs, outputs, guarded
        self._names = [spec.name for spec in outputs]
        self._plain = all(plain(spec.dtype) for spec in (*inputs, *outputs))
        self._placement = placement_of(session, device)
        self._conditions = {"device": device, "threads": str(session.get_session_options().intra_op_num_threads)}

    @property
    def inputs(self) -> Specs:
        return self._inputs

    @property
    def outputs(self) -> Specs:
        return self._outputs

    @property
    def placement(self) -> Placement:
        return self._placement

    @property
    def conditions(self) -> Mapping[str, str]:
        """Device and threads."""
        return self._conditions

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        check_feeds(self._inputs, feeds)
        session = self._session
        if session is None:
            raise BadRequest("the session is closed")
        if self._guard is not None:
            self._guard(feeds)
        try:
            if not self._plain:
                return self._by_values(session, feeds)
            answers = session.run(self._names, {name: laid(feed) for name, feed in feeds.items()})
        except runtime.ERRORS as error:
            raise self._failure(error) from None
        return dict(zip(self._names, answers, strict=True))

    def close(self) -> None:
        self._session = None

    def _by_values(self, session: ort.InferenceSession, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        values = {spec.name: to_value(feeds[spec.name], spec.dtype) for spec in self._inputs}
        answers = session.run_with_ort_values(self._names, values)
        return {spec.name: to_array(value, spec.dtype) for spec, value in zip(self._outputs, answers, strict=True)}

    def _failure(self, error: BaseException) -> EdgecoreError:
        if isinstance(failed := runtime.failed(error), DoesNotFit):
            return DoesNotFit(failed.what, hint="smaller inputs")
        words = runtime.said(error)
        fixed = not any(isinstance(dim, str) for spec in self._inputs for dim in spec.shape)
        if isinstance(error, native.NotImplemented) or (fixed and not _about_values(error)):
            return UnsupportedModel(f"ONNX Runtime does not compute the model: {words}")
        return BadRequest(f"these inputs do not go together: {words}")


def _about_values(error: BaseException) -> bool:
    """Whether an operator complains of numbers that it was fed: an index out of range."""
    return isinstance(error, native.InvalidArgument)
