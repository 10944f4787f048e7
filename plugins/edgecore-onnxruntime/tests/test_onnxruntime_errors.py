"""Damaged, foreign and too large models are typed errors that name file and field, never an end of the process."""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as native

from edgecore.cli import group
from edgecore.contract import (
    Artifact,
    BadRequest,
    CorruptModel,
    DoesNotFit,
    EdgecoreError,
    ModelNotFound,
    PlacementRefused,
    UnsupportedModel,
)
from edgecore.contract.manifest import Manifest
from edgecore_onnxruntime import layout, model_file, runtime
from edgecore_onnxruntime.network import Network

BYTES = 4 * 4 * 4
Damage = Callable[[onnx.ModelProto], object]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """x @ w, w of `BYTES` in a file beside it."""
    weight = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=(4, 4), data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="w.bin")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight],
    )
    opset = [helper.make_opsetid("", 21)]
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString())
    (tmp_path / "w.bin").write_bytes(np.arange(16, dtype=np.float32).tobytes())
    return tmp_path / "m.onnx"


def opened(path: Path) -> ort.InferenceSession:
    return runtime.open_model(path, runtime.session_options(1, {}))


def changed(path: Path, damage: Damage) -> Path:
    model = onnx.load(path, load_external_data=False)
    damage(model)
    path.write_bytes(model.SerializeToString())
    return path


def located(where: str) -> Damage:
    return lambda m: setattr(m.graph.initializer[0].external_data[0], "value", where)


def told(key: str, value: str) -> Damage:
    return lambda m: m.graph.initializer[0].external_data.add(key=key, value=value)


def test_a_sound_model_is_opened(path: Path) -> None:
    (found,) = opened(path).run(None, {"x": np.ones((1, 4), np.float32)})
    assert found.tolist() == [[24, 28, 32, 36]]


@pytest.mark.parametrize(
    ("damage", "kind", "named"),
    [
        (located("../w.bin"), CorruptModel, r"'\.\./w\.bin', outside its folder"),
        (located("/dev/zero"), CorruptModel, "'/dev/zero', outside its folder"),
        (located("other.bin"), CorruptModel, r"other\.bin, which is not beside it"),
        (located(""), CorruptModel, "not beside it"),
        (told("offset", "8"), CorruptModel, r"w\.bin holds 64 bytes, m\.onnx speaks of 72: it is truncated"),
        (told("offset", "-8"), CorruptModel, "offset is '-8'"),
        (told("length", "9" * 25), CorruptModel, "length is '9999"),
        (told("length", "32"), CorruptModel, "size mismatch"),
        (lambda m: m.graph.initializer[0].dims.append(2**40), CorruptModel, "truncated"),
        (lambda m: setattr(m.graph.node[0], "op_type", "FluxCapacitor"), UnsupportedModel, "FluxCapacitor"),
        (lambda m: setattr(m.graph.node[0], "domain", "ai.acme"), UnsupportedModel, "ai.acme"),
        (
            lambda m: setattr(m.opset_import[0], "version", 99),
            UnsupportedModel,
            "operator set 99, newer than ONNX Runtime",
        ),
        (lambda m: setattr(m, "ir_version", 99), UnsupportedModel, "IR version"),
        (lambda m: m.graph.node[0].input.__setitem__(1, "nowhere"), CorruptModel, "nowhere"),
        (lambda m: m.graph.node[0].input.append("w"), CorruptModel, "input size 3"),
        (lambda m: m.ClearField("graph"), CorruptModel, "no graph"),
        (lambda m: m.graph.node.add(op_type="Relu", input=["y"], output=["x"]), CorruptModel, "x"),
    ],
)
def test_a_damaged_model_is_named_with_what_is_wrong_in_it(
    path: Path, damage: Damage, kind: type[EdgecoreError], named: str
) -> None:
    with pytest.raises(kind, match=named) as caught:
        opened(changed(path, damage))
    assert str(path.parent) in caught.value.what, "the file is named"
    assert "[ONNXRuntimeError]" not in caught.value.what
    assert ".cc:" not in caught.value.what


@pytest.mark.parametrize("content", [b"", b"hello", b"GGUF\0\0", b"\x08\x0a:\xff\xff\xff\xff\x0f"])
def test_what_is_no_onnx_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(CorruptModel, match=r"m\.onnx"):
        opened(path)


def test_a_truncated_model_is_refused_wherever_it_ends(path: Path) -> None:
    sound = path.read_bytes()
    for end in range(len(sound)):
        path.write_bytes(sound[:end])
        with pytest.raises(CorruptModel):
            opened(path)


def test_weights_that_are_missing_or_cut_or_elsewhere_are_refused(path: Path) -> None:
    weights = path.with_name("w.bin")
    weights.write_bytes(bytes(BYTES - 1))
    with pytest.raises(CorruptModel, match=r"w\.bin holds 63 bytes.*truncated"):
        opened(path)
    weights.unlink()
    with pytest.raises(CorruptModel, match=r"w\.bin, which is not beside it"):
        opened(path)
    (path.parent.parent / f"{path.parent.name}.bin").write_bytes(bytes(BYTES))
    os.symlink(f"../{path.parent.name}.bin", weights)
    with pytest.raises(CorruptModel, match="outside its folder"):
        opened(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"absent\.onnx"):
        opened(tmp_path / "absent.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(CorruptModel, match=r"folder\.onnx"):
        opened(tmp_path / "folder.onnx")


def test_a_model_larger_than_free_memory_is_refused_before_it_is_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_file, "usable_memory", lambda: (1 << 30, BYTES))
    with pytest.raises(DoesNotFit, match="memory are free") as caught:
        opened(path)
    assert caught.value.hint


@pytest.mark.parametrize("seed", range(4))
def test_bytes_changed_at_random_end_in_a_model_or_in_a_typed_error(path: Path, seed: int) -> None:
    rng, sound, ends = random.Random(seed), path.read_bytes(), Counter[str]()
    for _ in range(100):
        text = bytearray(sound)
        for _ in range(rng.choice((1, 3, 20))):
            text[rng.randrange(len(text))] = rng.randrange(256)
        path.write_bytes(text)
        try:
            session = opened(path)
        except EdgecoreError as error:  # and nothing else: no exception of the runtime's, no end of the process
            ends[type(error).__name__] += 1
            continue
        with suppress(*runtime.ERRORS):
            session.run(None, {"x": np.ones((1, 4), np.float32)})
    assert ends["CorruptModel"] > 30


@pytest.mark.parametrize("seed", range(4))
def test_a_decoder_changed_at_random_answers_or_is_a_typed_error(
    tiny_onnx: Artifact, tmp_path: Path, seed: int
) -> None:
    """Operators, attributes, sizes and types that are others: 3,300 such graphs were tried, of three families."""
    rng = random.Random(seed)
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_onnx.path.iterdir():
        os.link(file, folder / file.name)
    artifact = Artifact(folder, "onnxruntime", "text", "onnx-genai", "f16", ())
    sound = onnx.load(folder / "model.onnx", load_external_data=False)
    for _ in range(20):
        model = onnx.ModelProto()
        model.CopyFrom(sound)
        disturb(model.graph, rng)
        (folder / "model.onnx").unlink()
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        try:
            network = Network(layout.read(artifact), runtime.session_options(1, {}), 16)
            network.append(np.array([1, 2, 3]), 0)
            network.append(np.array([1]), 3)
            network.close()
        except EdgecoreError:
            continue


def disturb(graph: onnx.GraphProto, rng: random.Random) -> None:
    numbers = (0, -1, 1, 3, 2**31, 2**62, -(2**63))
    node, tensor = rng.choice(graph.node), rng.choice(graph.initializer)
    port = rng.choice([*graph.input, *graph.output]).type.tensor_type
    match rng.randrange(6):
        case 0:
            node.op_type = rng.choice(graph.node).op_type
        case 1:
            for attribute in node.attribute:
                attribute.i = rng.choice(numbers)
        case 2 if node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice(graph.node).output[0]
        case 3 if tensor.dims:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(numbers)
        case 4:
            tensor.data_type = rng.randrange(30)
        case _:
            port.shape.dim[rng.randrange(len(port.shape.dim))].dim_value = rng.choice(numbers)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("std::bad_alloc", DoesNotFit),
        ("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 1", DoesNotFit),
        ("Could not find an implementation for FluxCapacitor(1) node with name ''", UnsupportedModel),
        ("nodes have been assigned to CPU while session.disable_cpu_ep_fallback is set", PlacementRefused),
        ("Protobuf parsing failed.", CorruptModel),
    ],
)
def test_what_the_runtime_says_becomes_the_error_of_its_kind(said: str, kind: type[EdgecoreError]) -> None:
    error = native.Fail(f"[ONNXRuntimeError] : 1 : FAIL : Load model from m.onnx failed:{said}")
    found = runtime.unopened(Path("m.onnx"), error)
    assert type(found) is kind
    assert runtime.said(error) == said


def test_a_session_takes_the_threads_that_it_was_given_and_says_so() -> None:
    for threads in (1, 2):
        options: Any = runtime.session_options(threads, {})
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (threads, 1)
    for bad in (0, -1, runtime.MOST_THREADS + 1):
        with pytest.raises(BadRequest, match="threads"):
            runtime.session_options(bad, {})
    quiet = runtime.session_options(1, {"spinning": False})
    assert quiet.get_session_config_entry("session.intra_op.allow_spinning") == "0"


COMMAND = re.compile(r"edgecore ((?:cache |plugin )?[a-z]+)([^\"`]*)")


def test_a_command_in_an_error_is_one_that_the_command_line_has(manifest: Manifest) -> None:
    formats, found = {known.name for known in manifest.formats}, 0
    for file in Path(runtime.__file__).parent.glob("*.py"):
        for line in file.read_text().splitlines():
            if ("hint=" in line or "again =" in line) and (said := COMMAND.search(line)):
                command: Any = group
                for word in said[1].split():
                    command = command.get_command(click.Context(command), word)
                    assert command, f"{file.name}: no command {said[1]}"
                known = {name for option in command.params for name in option.opts}
                for option, given in re.findall(r"(?<= )(--?[\w-]+) ?([\w-]*)", said[2]):
                    assert option in known, f"{file.name}: edgecore {said[1]} has no {option}"
                    assert option != "--to" or given in formats, f"{file.name}: no format {given}"
                found += 1
    assert found > 8
