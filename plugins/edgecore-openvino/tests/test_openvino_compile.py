"""Ahead of time: a blob for a CPU like this one, whole, from an IR to an answer; for an NPU, what is missing here."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

import edgecore
from edgecore.contract import (
    Artifact,
    BadRequest,
    CorruptModel,
    DeviceUnavailable,
    Made,
    PayloadFile,
    PlacementSource,
    QualityRefused,
    TensorSession,
    TensorSpec,
    UnsupportedModel,
    no_progress,
)
from edgecore.contract.options import resolve
from edgecore.machine import match, profile
from edgecore.store import Store
from edgecore_openvino import blob, compiling, runtime
from edgecore_openvino.interface import state

HERE = {"name": "here", "match": {}}
NPU = tomllib.loads('[match]\n[[suited]]\nbackend = "openvino"\ndevice = "npu"\n')
IMAGE = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)


def write_ir(folder: Path, batch: int = -1) -> Path:
    """A convolution whose batch has a name, as convert writes it."""
    rng = np.random.default_rng(1)
    x = op.parameter([batch, 3, 8, 8], np.float32, name="image")
    w = op.constant(rng.standard_normal((4, 3, 3, 3)).astype(np.float32))
    model = ov.Model([op.relu(op.convolution(x, w, [1, 1], [1, 1], [1, 1], [1, 1]))], [x], "small")
    model.outputs[0].get_tensor().set_names({"features"})
    size: int | str = "batch" if batch < 0 else batch
    inputs = (TensorSpec("image", "float32", (size, 3, 8, 8)),)
    state(model, inputs, (TensorSpec("features", "float32", (size, 4, 8, 8)),))
    folder.mkdir(parents=True, exist_ok=True)
    ov.save_model(model, folder / "model.xml", compress_to_fp16=False)
    return folder / "model.xml"


def artifact_of(xml: Path) -> Artifact:
    return Artifact(xml, "openvino", "tensor", "openvino-ir", "f32", (PayloadFile(xml.name, "model"),))


def compiled(
    openvino: Any, base: Artifact, out: Path, described: Any = HERE, device: str = "cpu", **given: Any
) -> Made:
    out.mkdir(exist_ok=True)
    made: Made = openvino.hook.edgecore_compile(
        artifact=base,
        out=out,
        profile=described,
        device=device,
        options=resolve(openvino.manifest.options_of("compile"), given, "compile", "openvino"),
        progress=no_progress,
    )
    return made


def blob_artifact(made: Made, out: Path) -> Artifact:
    return Artifact(out, "openvino", "tensor", made.format, "f32", made.files, id="blob", requires=made.requires)


@pytest.fixture
def made(openvino: Any, tmp_path: Path) -> Artifact:
    out = tmp_path / "out"
    return blob_artifact(compiled(openvino, artifact_of(write_ir(tmp_path / "ir")), out), out)


def test_a_blob_answers_bit_for_bit_what_the_ir_answers(openvino: Any, made: Artifact, tmp_path: Path) -> None:
    base = artifact_of(tmp_path / "ir" / "model.xml")
    with openvino.run(base) as a, openvino.run(made) as b:
        assert isinstance(b, TensorSession)
        assert (b.inputs, b.outputs) == (a.inputs, a.outputs), "names and symbols survive"
        assert b.inputs[0].shape == ("batch", 3, 8, 8)
        np.testing.assert_array_equal(a({"image": IMAGE})["features"], b({"image": IMAGE})["features"])
        assert b.placement.operators == {"cpu": 1.0}


def test_a_blob_can_be_timed_and_computes_in_what_it_was_compiled_for(openvino: Any, made: Artifact) -> None:
    with openvino.run(made, perf_count=True) as session:
        session({"image": IMAGE})
        assert session.placement.source is PlacementSource.RUNTIME_PROFILE
    for name, value in (("inference_precision", "bf16"), ("dynamic_quantization_group_size", 32)):
        with pytest.raises(BadRequest, match=f"{name}={value}: a blob computes in what it was compiled for"):
            openvino.run(made, **{name: value})


def test_it_says_what_it_requires(made: Artifact) -> None:
    assert made.format == "openvino-blob"
    assert made.requires["device"] == "cpu"
    assert made.requires["openvino"] == runtime.VERSION
    assert made.requires["isa"]


@pytest.mark.parametrize("device", ["gpu", "npu", "auto"])
def test_another_device_than_its_own_is_refused(openvino: Any, made: Artifact, device: str) -> None:
    with pytest.raises(DeviceUnavailable, match=f"compiled for cpu, and {device} was asked for") as caught:
        openvino.run(made, device=device)
    assert caught.value.hint == "--device cpu"


@pytest.mark.parametrize(("theirs", "ours"), [(runtime.VERSION.encode(), b"2025.3.7"), (b"isa=Intel", b"isa=Other")])
def test_another_processor_or_version_is_refused_naming_both(
    openvino: Any, made: Artifact, theirs: bytes, ours: bytes
) -> None:
    content = made.model.read_bytes()
    if theirs not in content or len(theirs) != len(ours):
        pytest.skip("this processor or version is named otherwise")
    made.model.write_bytes(content.replace(theirs, ours, 1))
    with pytest.raises(DeviceUnavailable, match="it wants ") as caught:
        openvino.run(made)
    assert "; this is " in caught.value.what
    assert ours.decode() in caught.value.what
    assert theirs.decode() in caught.value.what
    assert "edgecore build" in caught.value.hint


@pytest.mark.parametrize("damage", [b"", b"not a blob" * 100, None])
def test_a_damaged_blob_is_named(openvino: Any, made: Artifact, damage: bytes | None) -> None:
    content = made.model.read_bytes()
    made.model.write_bytes(content[: len(content) // 2] if damage is None else damage)
    with pytest.raises(CorruptModel, match=r"model\.blob"):
        openvino.run(made)


def test_an_interface_of_another_model_is_named(openvino: Any, made: Artifact) -> None:
    (made.path / blob.INTERFACE).write_text('{"inputs": [], "outputs": []}')
    with pytest.raises(CorruptModel, match=r"interface\.json"):
        openvino.run(made)


def test_a_profile_of_another_processor_is_refused(openvino: Any, tmp_path: Path, made: Artifact) -> None:
    """OpenVINO compiles for the CPU that it runs on, whatever the profile says."""
    other = ["avx2"] if "512" in made.requires["isa"] else ["avx2", "avx512f"]
    older = ["popcnt", "sse4_1", "sse4_2"]
    base = artifact_of(tmp_path / "ir" / "model.xml")
    for conditions in ({"features": other}, {"features": older}, {"machines": ["riscv64"]}):
        with pytest.raises(DeviceUnavailable, match="compiles for the CPU that it runs on"):
            compiled(openvino, base, tmp_path / "other", {"name": "other", "match": conditions})


def test_an_npu_takes_fixed_shapes_only(openvino: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"'image' is \['batch', 3, 8, 8\]") as caught:
        compiled(openvino, artifact_of(write_ir(tmp_path)), tmp_path / "out", NPU, "npu")
    assert "--shape image=1,3,8,8" in caught.value.hint


@pytest.mark.parametrize("platform", ["3720", "4000", "5010"])
def test_without_the_npus_compiler_its_two_libraries_are_named(openvino: Any, tmp_path: Path, platform: str) -> None:
    if compiling.compiler():
        pytest.skip("the compiler is here")
    base = artifact_of(write_ir(tmp_path, batch=1))
    with pytest.raises(DeviceUnavailable, match="no compiler for the NPU is here") as caught:
        compiled(openvino, base, tmp_path / "out", NPU, "npu", platform=platform)
    for name in compiling.COMPILER:
        assert name in caught.value.what
    assert str(compiling.libraries()) in caught.value.supported
    assert not any((tmp_path / "out").iterdir())


def test_a_blob_for_an_npu_says_here_what_it_requires(openvino: Any, tmp_path: Path) -> None:
    (tmp_path / blob.MODEL).write_bytes(b"compiled elsewhere")
    requires = {"device": "npu", "platform": "4000", "openvino": runtime.VERSION}
    made = Artifact(tmp_path, "openvino", "tensor", blob.FORMAT, "f16", blob.FILES[:1], id="n", requires=requires)
    with pytest.raises(DeviceUnavailable, match="requires device npu, platform 4000"):
        openvino.run(made, device="npu")


def test_language_models_are_not_compiled_ahead_of_time(openvino: Any, tmp_path: Path) -> None:
    text = Artifact(tmp_path, "openvino", "text", "openvino-genai", "f16", ())
    with pytest.raises(UnsupportedModel, match="OpenVINO compiles them when they are opened"):
        compiled(openvino, text, tmp_path / "out")


def test_a_blob_that_would_answer_something_else_is_not_made(openvino: Any, tmp_path: Path) -> None:
    """OpenVINO 2026.4 writes a fused rotary embedding without how it turns."""
    onnx = pytest.importorskip("onnx", reason="needs onnx to write the operator")
    shapes = {"x": [1, 2, 3, 8], "cos": [9, 4], "sin": [9, 4], "at": [1, 3]}
    inputs = [onnx.helper.make_tensor_value_info(n, 7 if n == "at" else 1, s) for n, s in shapes.items()]
    outputs = [onnx.helper.make_tensor_value_info("y", 1, shapes["x"])]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("RotaryEmbedding", list(shapes), ["y"])], "g", inputs, outputs
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, tmp_path / "rotary.onnx")
    with pytest.raises(UnsupportedModel, match="how a rotary embedding turns"):
        compiled(openvino, artifact_of(tmp_path / "rotary.onnx"), tmp_path / "out")


def test_what_is_compiled_is_not_compiled_again(openvino: Any, made: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="compiled already"):
        compiled(openvino, made, tmp_path / "again")


def test_build_seals_it_and_a_copy_runs_elsewhere(tmp_path: Path) -> None:
    """Through the verb, for the profile of this very machine."""
    named = [found.name for found in match() if any(row.backend == "openvino" for row in found.suited)]
    if not named:
        pytest.skip("no profile of this machine suits OpenVINO")
    xml = write_ir(tmp_path / "ir")
    how: dict[str, Any] = {"backend": "openvino", "profile": named[0]}
    with pytest.raises(QualityRefused, match="could not be compared"):
        edgecore.build(xml, **how)
    artifact = edgecore.build(xml, **how, allow_unverified=True)
    assert artifact.requires["isa"]
    assert artifact.chain[-1]["profile"] == profile(named[0]).name
    assert edgecore.build(xml, **how, allow_unverified=True).id == artifact.id
    copy = Store().export(artifact, tmp_path / "copy")
    xml.unlink()
    with edgecore.open(copy.path, allow_unverified=True) as session:
        assert isinstance(session, TensorSession)
        assert session({"image": IMAGE})["features"].shape == (2, 4, 8, 8)
