"""The KV cache lies in one place and grows there; a model that is closed leaves neither thread nor memory behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgecore.contract import Artifact, UnsupportedModel
from edgecore_onnxruntime import cache, layout, runtime
from edgecore_onnxruntime.network import Network

OPENED_AND_CLOSED = """
import json, os, sys
from pathlib import Path
import psutil
from edgecore.contract import Artifact
from edgecore_onnxruntime import layout, network, runtime

found = layout.read(Artifact(Path(sys.argv[1]), "onnxruntime", "text", "onnx-genai", "", ()))
told = []
for _ in range(8):
    opened = network.Network(found, runtime.session_options(2, {}), 512)
    opened.append(opened.checked([5, 6] * 200), 0)
    opened.close()
    told.append((len(os.listdir("/proc/self/task")), psutil.Process().memory_full_info().uss))
print(json.dumps(told))
"""


@pytest.fixture
def network(tiny_onnx: Artifact, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(cache, "FIRST", 8)
    opened = Network(layout.read(tiny_onnx), runtime.session_options(1, {}), 100)
    yield opened
    opened.close()


def buffers(network: Any) -> list[int]:
    return [value.data_ptr() for value in network._cache._values]


def test_new_keys_are_written_behind_the_past_ones_in_place(network: Any) -> None:
    network.append(np.arange(5), 0)
    first = network._cache._values[0].numpy()
    before, where = first[:, :, :5].copy(), buffers(network)
    network.append(np.array([7]), 5)
    assert buffers(network) == where
    assert np.array_equal(first[:, :, :5], before)
    assert np.abs(first[:, :, 5]).max() > 0


def test_it_doubles_as_it_grows_up_to_the_context_and_keeps_what_it_held(network: Any) -> None:
    sizes, kept = [], None
    for position in range(100):
        network.append(np.array([position % 50]), position)
        sizes.append(network._cache._positions)
        held = network._cache._values[3].numpy()[:, :, :position]
        if kept is not None:
            assert np.array_equal(held, kept)
        kept = network._cache._values[3].numpy()[:, :, : position + 1].copy()
    assert sorted(set(sizes)) == [8, 16, 32, 64, 100]


def test_a_growth_that_is_stopped_is_done_again(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    network.append(np.arange(8), 0)
    wanted = network.append(np.arange(8, 12), 8).copy()
    network.clear()
    network._cache._positions = 8
    network.append(np.arange(8), 0)
    bind, calls = network._binding.bind_ortvalue_output, []

    def stop(*given: Any) -> None:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        bind(*given)

    with monkeypatch.context() as patched:
        patched.setattr(network._binding, "bind_ortvalue_output", stop)
        with pytest.raises(KeyboardInterrupt):
            network.append(np.arange(8, 12), 8)
    assert network.filled == 8
    np.testing.assert_allclose(network.append(np.arange(8, 12), 8), wanted, atol=1e-4)


def test_inputs_are_bound_again_only_when_their_shape_is_another(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    network.append(np.arange(5), 0)
    network.append(np.array([7]), 5)
    bind, bound = network._binding.bind_input, []
    monkeypatch.setattr(
        network._binding, "bind_input", lambda name, *given: (bound.append(name), bind(name, *given))[1]
    )
    network.append(np.array([9]), 6)
    assert bound == ["attention_mask"]


@pytest.mark.skipif(sys.platform != "linux", reason="counts the process' threads where Linux shows them")
def test_a_language_model_that_is_closed_leaves_no_thread_and_no_memory(tiny_onnx: Artifact) -> None:
    command = [sys.executable, "-c", OPENED_AND_CLOSED, str(tiny_onnx.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    threads, held = zip(*json.loads(done.stdout), strict=True)
    assert set(threads) == {threads[0]}
    assert held[-1] < held[2] + (1 << 20)


@pytest.mark.skipif(sys.platform != "linux", reason="counts the process' threads where Linux shows them")
@pytest.mark.parametrize("threads", [1, 3])
def test_a_model_computes_on_as_many_threads_as_were_asked_for(tiny_onnx: Artifact, threads: int) -> None:
    before = len(os.listdir("/proc/self/task"))
    opened = Network(layout.read(tiny_onnx), runtime.session_options(threads, {}), 64)
    assert opened.threads == threads
    assert len(os.listdir("/proc/self/task")) == before + threads - 1, "the caller's computes too"
    opened.close()


def concatenating(folder: Path) -> Artifact:
    """A folder whose graph appends by `Concat`: a position's logits are the sum of the ids so far, on every token."""
    past = [f"past_key_values.0.{kind}" for kind in ("key", "value")]
    present = [f"present.0.{kind}" for kind in ("key", "value")]
    shape = helper.make_tensor("shape", TensorProto.INT64, (4,), [1, 1, -1, 1])
    rows = helper.make_tensor("rows", TensorProto.INT64, (3,), [1, -1, 1])
    axis = helper.make_tensor("axis", TensorProto.INT64, (), [2])
    many = helper.make_tensor("many", TensorProto.INT64, (3,), [1, 1, 6])
    ends = [helper.make_tensor(n, TensorProto.INT64, (1,), [v]) for n, v in (("most", 2**62), ("two", 2))]
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["ids", "shape"], ["new"]),
        *(helper.make_node("Concat", [a, "new"], [b], axis=2) for a, b in zip(past, present, strict=True)),
        helper.make_node("CumSum", [present[0], "axis"], ["sums"]),
        helper.make_node("Shape", ["input_ids"], ["count"], start=1, end=2),
        helper.make_node("Neg", ["count"], ["from"]),
        helper.make_node("Slice", ["sums", "from", "most", "two"], ["last"]),
        helper.make_node("Reshape", ["last", "rows"], ["column"]),
        helper.make_node("Expand", ["column", "many"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, (1, s)) for n, s in
              (("input_ids", "n"), ("attention_mask", "total"))]  # fmt: skip
    inputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 1, "past", 1)) for n in past]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, "n", 6))]
    outputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 1, "total", 1)) for n in present]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [shape, rows, axis, many, *ends])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    folder.mkdir(exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    decoder = {"filename": "model.onnx", "num_hidden_layers": 1, "num_key_value_heads": 1, "head_size": 1}
    (folder / "genai_config.json").write_text(json.dumps({"model": {"decoder": decoder, "context_length": 64}}))
    return Artifact(folder, "onnxruntime", "text", "onnx-genai", "", ())


def test_a_graph_that_concatenates_is_handed_its_own_answers(tmp_path: Path) -> None:
    opened = Network(layout.read(concatenating(tmp_path)), runtime.session_options(1, {}), 64)
    assert not opened.shared
    assert not opened.sliced
    assert opened.append(np.array([1, 2, 3]), 0)[0] == 6
    assert opened.append(np.array([4]), 3).tolist() == [10.0] * 6
    assert opened.append(np.array([5, 5]), 2)[0] == 13
    assert opened.run(np.array([1, 1]), 2, 6)[:, 0].tolist() == [14, 15]
    opened.clear()
    assert opened.append(np.array([2]), 0)[0] == 2
    opened.close()


@pytest.mark.parametrize("change", ["image", "mask"])
def test_a_graph_with_other_inputs_is_unsupported(tmp_path: Path, change: str) -> None:
    artifact = concatenating(tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    if change == "image":
        model.graph.input.append(helper.make_tensor_value_info("pixels", TensorProto.FLOAT, (1, 3)))
    else:
        del model.graph.input[1]
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UnsupportedModel, match="it also takes pixels" if change == "image" else "without attention_m"):
        Network(layout.read(artifact), runtime.session_options(1, {}), 64)
