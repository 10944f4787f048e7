"""Small real model files for tests that need a file of a kind, not a model that answers."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import onnx
from onnx import TensorProto, helper


def write_gguf(path: Path, file_type: int | None = gguf.LlamaFileType.MOSTLY_Q8_0, seed: int = 0) -> Path:
    """A GGUF file of the llama architecture with one random tensor of 256 KB, so that nothing compresses."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(2048)
    if file_type is not None:
        writer.add_file_type(file_type)
    writer.add_token_list(["a", "b"])
    writer.add_tensor("token_embd.weight", np.random.default_rng(seed).standard_normal((1024, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_onnx(path: Path, external: bool = False) -> Path:
    """`y = x @ w` in float16; with `external`, the weights lie in `w.data` beside it."""
    weight = helper.make_tensor("w", TensorProto.FLOAT16, (64, 64), np.ones((64, 64), np.float16).tobytes(), raw=True)
    count = helper.make_tensor("n", TensorProto.INT64, (2,), [1, 2])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, (1, 64))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, (1, 64))],
        [weight, count],
    )
    onnx.save(helper.make_model(graph), path, save_as_external_data=external, location="w.data", size_threshold=1000)
    return path
