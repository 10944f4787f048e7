"""What a tensor session costs above OpenVINO's own call: both in this process, on the same model, call by call in turn.

    python benchmarks/openvino_tensor_latency.py                       # a tiny graph, and models from the package index
    python benchmarks/openvino_tensor_latency.py model.onnx --shape x=1,3,224,224
    python benchmarks/openvino_tensor_latency.py --offline             # what is fetched already

*bare* is `compiled_model(feeds)`, compiled with the same threads and hint. Ends with 1 where the session's median is
above 1.03 x bare + 50 microseconds. Symbolic dimensions are fed at size 1 unless --shape says otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import latency
import numpy as np
import openvino as ov
from latency import Feeds
from numpy.typing import NDArray


def bare(path: Path, threads: int) -> Callable[[Feeds], Iterable[NDArray[Any]]]:
    core = ov.Core()
    properties = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(path), "CPU", properties)
    return lambda feeds: compiled(feeds).values()


def tiny(folder: Path) -> Path:
    """`y = relu(x @ w)`, 64 by 64: what is left is the call itself."""
    from openvino import opset13 as ops

    x = ops.parameter([1, 64], np.float32, name="x")
    model = ov.Model([ops.relu(ops.matmul(x, np.eye(64, dtype=np.float32), False, False))], [x], "tiny")
    model.inputs[0].set_names({"x"})
    model.outputs[0].set_names({"y"})
    ov.save_model(model, folder / "tiny.xml")
    return folder / "tiny.xml"


if __name__ == "__main__":
    sys.exit(latency.main(__doc__, "openvino", bare, tiny, inference_precision="f32"))
