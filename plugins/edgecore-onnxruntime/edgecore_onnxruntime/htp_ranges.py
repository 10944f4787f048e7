"""What a calibration text makes of a model: the ranges of what its products take and give, and how they are used.

The folder's own graph is run on the CPU in float32, through the network that sessions use, with what is to be seen as
further outputs: samples go through prefill and KV cache as any text will.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from edgecore.contract import CorruptModel, Progress
from edgecore_onnxruntime import htp_folder, runtime
from edgecore_onnxruntime.htp_network import Network

Floats = NDArray[np.float32]
LOGITS = "logits"


@dataclass
class Range:
    """Smallest and largest value of each channel, the last axis; of heads and positions together."""

    low: Floats
    high: Floats
    squares: NDArray[np.float64]
    """Sums over what was seen, `count` times in each channel."""
    count: int = 0

    @classmethod
    def none(cls, channels: int) -> Range:
        """Of nothing yet."""
        return cls(np.zeros(channels, np.float32), np.zeros(channels, np.float32), np.zeros(channels))

    def of(self, values: Floats) -> None:
        flat = values.reshape(-1, values.shape[-1])
        self.count += len(flat)
        self.squares += np.einsum("ij,ij->j", flat, flat)
        np.minimum(self.low, flat.min(0), out=self.low)
        np.maximum(self.high, flat.max(0), out=self.high)

    def scaled(self, by: Floats) -> Range:
        return Range(self.low * by, self.high * by, self.squares * by**2, self.count)

    @property
    def ends(self) -> tuple[float, float]:
        """Of all channels; zero is always within."""
        return min(0.0, float(self.low.min())), max(0.0, float(self.high.max()))

    def clearness(self, bits: int) -> float:
        """Signal over rounding noise, in dB, where so many bits cover all of it: outliers cost all others dear."""
        low, high = self.ends
        step = max(high - low, 1e-12) / ((1 << bits) - 1)
        return float(10 * np.log10(max(self.squares.mean() / self.count, 1e-30) * 12 / step**2))

    @property
    def level(self) -> float:
        """What the median channel carries over a step of 16 bits, in dB."""
        carried = np.sqrt(max(float(np.median(self.squares)) / max(self.count, 1), 1e-30))
        return float(20 * np.log10(carried * 32767 / max(*np.abs(self.ends), 1e-12)))

    @property
    def largest(self) -> Floats:
        return np.asarray(np.maximum(np.abs(self.low), np.abs(self.high)))


@dataclass
class Seen:
    """Of values by name in the graph."""

    ranges: dict[str, Range] = field(default_factory=dict)
    products: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """Sums of x x^T over the positions, of values that enter a product."""
    positions: int = 0

    def add(self, name: str, values: Floats, product: bool) -> None:
        if name not in self.ranges:
            channels = values.shape[-1]
            self.ranges[name] = Range.none(channels)
            if product:
                self.products[name] = np.zeros((channels, channels), np.float32)
        self.ranges[name].of(values)
        if product:
            self.products[name] += values.T @ values


def watch(
    folder: Path, names: Sequence[str], products: Iterable[str], pieces: Sequence[Sequence[int]], progress: Progress
) -> Seen:
    """Runs the samples. names: values of prefill.onnx to be seen; products: those whose x x^T is wanted too.

    Raises `CorruptModel` for a model whose activations are no numbers.
    """
    seen, squared, watched = Seen(), frozenset(products), _Watched.opened(folder / htp_folder.PREFILL, names)
    network = Network(folder, lambda file: watched if file.name == htp_folder.PREFILL else _opened(file), "cpu")
    chunk = network.description.chunk
    total = sum(map(len, pieces))
    for piece in pieces:
        network.truncate(0)
        for start in range(0, len(piece), chunk):
            progress(seen.positions, total, "calibrating")
            ids = np.asarray(piece[start : start + chunk], np.int64)
            logits = network.run(ids, 1, len(piece))
            if len(ids) == 1 < chunk:  # That was the other graph.
                continue
            for name, values in watched.values():
                own = values[..., : len(ids), :] if values.ndim > 2 else values[: len(ids)]
                if not np.isfinite(own).all():
                    raise CorruptModel(f"{folder}: {name!r} is NaN or infinite on the calibration text")
                seen.add(name, own, name in squared)
            seen.add(LOGITS, logits, False)
            seen.positions += len(ids)
    progress(total, total, "calibrating")
    network.close()
    return seen


@dataclass
class _Watched:
    """A session as `Network` uses it, with further outputs that it does not see."""

    session: Any
    names: Sequence[str]
    _binding: Any = None

    @classmethod
    def opened(cls, file: Path, names: Sequence[str]) -> _Watched:
        return cls(_opened(file, names), names)

    def get_inputs(self) -> Any:
        return self.session.get_inputs()

    def get_outputs(self) -> Any:
        return [value for value in self.session.get_outputs() if value.name not in self.names]

    def io_binding(self) -> Any:
        self._binding = self.session.io_binding()
        for name in self.names:
            self._binding.bind_output(name, "cpu")
        return self._binding

    def run_with_iobinding(self, binding: Any) -> None:
        self.session.run_with_iobinding(binding)

    def values(self) -> Iterator[tuple[str, Floats]]:
        """Of the last run."""
        found = self._binding.get_outputs()[: len(self.names)]
        for name, value in zip(self.names, found, strict=True):
            yield name, value.numpy()


def _opened(file: Path, names: Sequence[str] = ()) -> ort.InferenceSession:
    options = runtime.session_options(None, {})
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.parent))
    made = _widened(onnx.load(file, load_external_data=False), names)
    try:
        return ort.InferenceSession(made.SerializeToString(), options, [runtime.CPU], enable_fallback=0)
    except runtime.ERRORS as error:
        raise runtime.unopened(file, error) from None


def _widened(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """The same in float32: CPUs have few operators in float16, and ranges are to be those of exact arithmetic."""
    graph, casts = model.graph, []
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            plain, tensor.name = tensor.name, tensor.name + "/f16"
            casts.append(helper.make_node("Cast", [tensor.name], [plain], to=TensorProto.FLOAT))
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *kept])
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return model
