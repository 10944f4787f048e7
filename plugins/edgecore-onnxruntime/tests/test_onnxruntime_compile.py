"""Ahead of time for a profile's chip: what is compiled answers on the emulator as what was not, says what it requires,
and runs nowhere else; what is damaged, missing or outside its folder is an error, and never a crash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import edgecore
from edgecore.contract import (
    Artifact,
    BadRequest,
    CannotDo,
    CorruptModel,
    DeviceUnavailable,
    EdgecoreError,
    Made,
    ModelNotFound,
    PayloadFile,
    QualityRefused,
    UnsupportedModel,
    no_progress,
)
from edgecore.contract.options import resolve
from edgecore.machine import profile
from edgecore_onnxruntime import compiling, context, qnn
from edgecore_onnxruntime.chips import EMULATED, EMULATOR, NPU

from support.onnx_graphs import INT64, sealed, value, write

pytestmark = pytest.mark.skipif(bool(qnn.missing(EMULATOR)), reason=f"onnxruntime-qnn is not here: {qnn.INSTALL}")
IMAGE = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
XELITE = {"soc_model": "SC8380XP", "htp_arch": 73, "vtcm_mb": 8}
QUICK = {**XELITE, "htp_graph_finalization_optimization_mode": 1}


def convolution(path: Path, last: str = "Relu", **attributes: Any) -> Path:
    weight = np.random.default_rng(1).standard_normal((4, 3, 3, 3)).astype(np.float32) / 4
    nodes = [helper.make_node("Conv", ["image", "w"], ["c"]), helper.make_node(last, ["c"], ["y"], **attributes)]
    return write(path, nodes, [value("image", [1, 3, 8, 8])], [value("y", None)], {"w": weight})


def artifact_of(path: Path) -> Artifact:
    return Artifact(path, "onnxruntime", "tensor", "onnx", "f32", (PayloadFile(path.name, "model"),))


def compiled(onnxruntime: Any, base: Artifact, out: Path, device: str = NPU, **given: Any) -> Made:
    out.mkdir(exist_ok=True)
    made: Made = onnxruntime.hook.edgecore_compile(
        artifact=base,
        out=out,
        profile={},
        device=device,
        options=resolve(onnxruntime.manifest.options_of("compile"), given, "compile", "onnxruntime", base.task),
        progress=no_progress,
    )
    return made


def answer(onnxruntime: Any, artifact: Artifact, **given: Any) -> bytes:
    with onnxruntime.run(artifact, device=EMULATOR, **given) as session:
        assert session.placement.operators == {EMULATOR: 1.0}
        found: bytes = session({"image": IMAGE})["y"].tobytes()
        return found


@pytest.fixture(scope="module")
def made(onnxruntime: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model compiled for a laptop's chip, what was compiled beside it."""
    out = tmp_path_factory.mktemp("compiled")
    compiled(onnxruntime, artifact_of(convolution(out / "source.onnx")), out, **XELITE)
    return out


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """A native copy of it, to damage."""
    for name in ("model.onnx", "model_qnn.bin"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    return tmp_path / "model.onnx"


def test_a_compiled_model_says_what_it_requires_and_answers_bit_for_bit(onnxruntime: Any, tmp_path: Path) -> None:
    source = artifact_of(convolution(tmp_path / "source.onnx"))
    made = compiled(onnxruntime, source, tmp_path / "out", **XELITE)
    assert made.format == "onnx-context"
    assert [file.path for file in made.files] == ["model.onnx", "model_qnn.bin"]
    needs = {name: made.requires[name] for name in ("device", "soc", "hexagon", "vtcm_mb")}
    assert needs == {"device": "npu", "soc": "SC8380XP", "hexagon": "v73", "vtcm_mb": "8"}
    assert made.requires["qnn"].startswith(qnn.versions()["qnn"])
    assert made.requires["onnxruntime-qnn"]
    assert "bit for bit" in made.notes[0]
    artifact = sealed(tmp_path / "out", made, backend="onnxruntime", format=made.format)
    assert answer(onnxruntime, artifact) == answer(onnxruntime, source, soc_model="SC8380XP")


def test_it_can_be_one_file(onnxruntime: Any, tmp_path: Path) -> None:
    made = compiled(onnxruntime, artifact_of(convolution(tmp_path / "m.onnx")), tmp_path / "out", embed=True, **XELITE)
    assert [file.path for file in made.files] == ["model.onnx"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.onnx"]
    answer(onnxruntime, sealed(tmp_path / "out", made, backend="onnxruntime", format=made.format))


def test_a_profile_names_what_the_compiler_then_says(onnxruntime: Any, tmp_path: Path) -> None:
    source = artifact_of(convolution(tmp_path / "m.onnx"))
    for name in ("snapdragon-8-gen-2", "snapdragon-8-elite", "snapdragon-x2-elite"):
        options = profile(name).suited[0].options
        made = compiled(onnxruntime, source, tmp_path / name, **options)
        assert made.requires["soc"] == options["soc_model"]
        assert made.requires["hexagon"] == f"v{options['htp_arch']}"


@pytest.mark.parametrize(
    ("given", "said"),
    [({"soc_model": "SC8380XP", "htp_arch": 79}, "hexagon 73 for 79"), ({"vtcm_mb": 64}, "vtcm_mb 16 for 64")],
)
def test_figures_that_contradict_the_chip_are_refused(
    onnxruntime: Any, tmp_path: Path, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        compiled(onnxruntime, artifact_of(convolution(tmp_path / "m.onnx")), tmp_path / "out", **given)


def test_what_is_not_compiled_is_refused(onnxruntime: Any, tmp_path: Path, made: Path) -> None:
    source = artifact_of(convolution(tmp_path / "m.onnx"))
    again = Artifact(made, "onnxruntime", "tensor", "onnx-context", "f32", (PayloadFile("model.onnx", "model"),))
    text = Artifact(made, "onnxruntime", "text", "onnx-genai", "f16", (PayloadFile("model.onnx", "model"),))
    operator = artifact_of(convolution(tmp_path / "acosh.onnx", "Acosh"))
    pool = artifact_of(convolution(tmp_path / "p.onnx", "AveragePool", kernel_shape=[2, 2], auto_pad="SAME_UPPER"))
    weight = {"w": np.ones((3, 4), np.float32)}
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    open_ = artifact_of(write(tmp_path / "n.onnx", [node], [value("x", ["n", 3])], [value("y", ["n", 4])], weight))
    for base, device, error in (
        (again, NPU, "compiled already"), (text, NPU, "is for a CPU"), (source, "cpu", "ahead of time for cpu"),
        (operator, NPU, "does not take these operators: Acosh"), (pool, NPU, "ends the process"),
        (open_, NPU, r"fixed shapes only, and input 'x' is \['n', 3\]"),
    ):  # fmt: skip
        with pytest.raises(UnsupportedModel, match=error):
            compiled(onnxruntime, base, tmp_path / "out", device=device)
    with pytest.raises(BadRequest, match="no chip"):
        compiled(onnxruntime, source, tmp_path / "out", soc_model="SM1")


def test_indices_and_single_numbers_are_compared_too(onnxruntime: Any, tmp_path: Path) -> None:
    nodes = [helper.make_node("Gather", ["w", "i"], ["g"]), helper.make_node("Mul", ["g", "x"], ["y"])]
    path = write(tmp_path / "m.onnx", nodes, [value("i", [4], INT64), value("x", [])], [value("y", [4, 3])], {
        "w": np.ones((2, 3), np.float32)})  # fmt: skip
    made = compiled(onnxruntime, artifact_of(path), tmp_path / "out", **QUICK)
    assert any("bit for bit" in note for note in made.notes)


def test_what_compiles_and_does_not_compute_is_refused(onnxruntime: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", [helper.make_node("RandomNormalLike", ["image"], ["y"])], [
        value("image", [1, 3, 8, 8])], [value("y", None)])  # fmt: skip
    with pytest.raises(UnsupportedModel, match="QNN compiles the model and does not compute it"):
        compiled(onnxruntime, artifact_of(path), tmp_path / "out", **QUICK)


def test_without_the_compiler_it_says_how_to_get_it(
    onnxruntime: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qnn, "missing_package", lambda: "the package onnxruntime-qnn is not installed")
    with pytest.raises(DeviceUnavailable, match="QNN's compiler is not here") as caught:
        compiled(onnxruntime, artifact_of(convolution(tmp_path / "m.onnx")), tmp_path / "out")
    assert caught.value.hint == qnn.INSTALL


def test_another_answer_than_before_is_refused(tmp_path: Path, made: Path) -> None:
    other = convolution(tmp_path / "other.onnx", "Sigmoid")
    with pytest.raises(QualityRefused, match="output 'y' differs"):
        compiling._compare(other, made / "model.onnx", "SC8380XP")


def test_a_model_for_another_chip_is_refused_where_the_emulator_would_run_it(onnxruntime: Any, copied: Path) -> None:
    with pytest.raises(DeviceUnavailable, match=r"compiled for SC8380XP, Hexagon v73, QNN 2\..*, and this is SM8750"):
        answer(onnxruntime, artifact_of(copied), soc_model=EMULATED)
    answer(onnxruntime, artifact_of(copied))


def test_a_model_of_a_newer_qnn_is_refused_and_of_an_older_one_not(onnxruntime: Any, copied: Path) -> None:
    def by(version: bytes) -> None:
        model = onnx.load(copied)
        next(a for a in model.graph.node[0].attribute if a.name == "ep_sdk_version").s = version
        onnx.save(model, copied)

    by(b"v2.99.0.1")
    with pytest.raises(DeviceUnavailable, match=r"compiled by QNN 2\.99\.0, and QNN 2\..* is here"):
        answer(onnxruntime, artifact_of(copied))
    by(b"v2.40.0")
    answer(onnxruntime, artifact_of(copied))


def test_the_chip_that_is_here_decides_on_an_npu(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made / "model.onnx"
    found = qnn.check_graph(path)
    assert found is not None
    monkeypatch.setattr(context, "chip_here", lambda: "SM8750")
    with pytest.raises(DeviceUnavailable, match="and this is SM8750"):
        context.check(found, path, NPU, "", "2.51.0")
    monkeypatch.setattr(context, "chip_here", lambda: "SC8380XP")
    context.check(found, path, NPU, "", "2.51.0")


def test_on_a_cpu_it_says_that_it_is_for_an_npu(onnxruntime: Any, copied: Path) -> None:
    with pytest.raises(DeviceUnavailable, match="compiled for an NPU, and cpu was asked for") as caught:
        onnxruntime.run(artifact_of(copied))
    assert caught.value.hint == "--device npu"


def renamed(name: str) -> Callable[[Path], None]:
    def rename(path: Path) -> None:
        model = onnx.load(path)
        next(a for a in model.graph.node[0].attribute if a.name == "ep_cache_context").s = name.encode()
        onnx.save(model, path)

    return rename


def linked(path: Path) -> None:
    path.with_name("model_qnn.bin").rename(path.parents[1] / "elsewhere.bin")
    path.with_name("model_qnn.bin").symlink_to(path.parents[1] / "elsewhere.bin")


def binary(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def write_binary(path: Path) -> None:
        file = path.with_name("model_qnn.bin")
        file.write_bytes(change(file.read_bytes()))

    return write_binary


def unsigned(path: Path) -> None:
    """As another tool's: no digest of ours, and half of it."""
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)
    binary(lambda data: data[: len(data) // 2])(path)


@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [
        (binary(lambda data: data[:-1]), CorruptModel, "is damaged"),
        (binary(lambda data: data[:0x8000] + bytes([data[0x8000] ^ 1]) + data[0x8001:]), CorruptModel, "is damaged"),
        (binary(lambda data: b""), CorruptModel, "holds no compiled model"),
        (unsigned, CorruptModel, "model.onnx"),
        (lambda path: path.with_name("model_qnn.bin").unlink(), ModelNotFound, "model_qnn.bin does not exist"),
        (renamed("../model_qnn.bin"), CorruptModel, "outside its folder"),
        (renamed("/etc/hostname"), CorruptModel, "outside its folder"),
        (renamed(""), CorruptModel, "outside its folder"),
        (renamed("a" * 5000), CorruptModel, "outside its folder"),
        (linked, CorruptModel, "outside its folder"),
        (lambda path: path.write_bytes(path.read_bytes()[:300]), CorruptModel, "truncated or damaged"),
    ],
    ids=[
        "truncated",
        "flipped",
        "empty",
        "unsigned",
        "missing",
        "above",
        "absolute",
        "nameless",
        "long",
        "link",
        "onnx",
    ],
)
def test_a_damaged_model_is_an_error(
    onnxruntime: Any, copied: Path, damage: Callable[[Path], None], error: type[EdgecoreError], said: str
) -> None:
    damage(copied)
    with pytest.raises(error, match=said):
        answer(onnxruntime, artifact_of(copied))


def test_a_damaged_model_that_nobody_signed_leaves_the_caller_alive(copied: Path) -> None:
    unsigned(copied)
    with pytest.raises(CorruptModel, match=r"model\.onnx"):
        edgecore.open(copied, backend="onnxruntime", device=EMULATOR)


@pytest.fixture(scope="module")
def text(onnxruntime: Any, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    from edgecore.contract import ConvertLimits

    out = tmp_path_factory.mktemp("models") / "htp"
    limits = ConvertLimits(max_context=32, prefill_chunk=8)
    files = onnxruntime.convert(tiny, out, format="onnx-htp", limits=limits).files
    return Artifact(out, "onnxruntime", "text", "onnx-htp", "f16", files)


@pytest.fixture(scope="module")
def apart(onnxruntime: Any, text: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The language model compiled, each graph with weights of its own."""
    out = tmp_path_factory.mktemp("models") / "apart"
    made = compiled(onnxruntime, text, out, **QUICK)
    assert made.format == "onnx-htp-context"
    assert all((out / file.path).is_file() for file in made.files)
    return Artifact(out, "onnxruntime", "text", made.format, "f16", made.files, id="apart", requires=made.requires)


def test_a_compiled_language_model_answers_bit_for_bit(onnxruntime: Any, text: Artifact, apart: Artifact) -> None:
    roles = {file.path: file.role for file in apart.files}
    assert (roles["prefill.onnx"], roles["prefill_qnn.bin"]) == ("model", "weights")
    assert roles["tokenizer.json"] == "tokenizer"
    assert "weights.data" not in roles, "what is compiled holds them"
    rows = []
    for opened in (text, apart):
        with onnxruntime.run(opened, device=EMULATOR) as session:
            tokens = session.tokenize("In the beginning was the word, and the word was")
            found = session.context()
            rows.append(found.prefill(tokens).tobytes() + found.step(tokens[0]).tobytes())
            assert session.placement.share(EMULATOR) == 1.0
    assert rows[0] == rows[1]


def test_weights_that_graphs_share_are_half_and_the_emulator_is_not_asked_to_load_them(
    onnxruntime: Any, text: Artifact, apart: Artifact, tmp_path: Path
) -> None:
    shared = compiled(onnxruntime, text, tmp_path, share_weights=True, **QUICK)
    assert "nobody has seen them run" in shared.notes[0]
    assert [file.path for file in shared.files if file.path.endswith(".bin")] == ["prefill_qnn.bin"]
    both = sum((apart.path / file.path).stat().st_size for file in apart.files if file.path.endswith(".bin"))
    assert (tmp_path / "prefill_qnn.bin").stat().st_size < 0.6 * both
    artifact = Artifact(tmp_path, "onnxruntime", "text", shared.format, "f16", shared.files, id="shared")
    with pytest.raises(DeviceUnavailable, match="weights that 2 graphs share, which the emulator cannot load"):
        onnxruntime.run(artifact, device=EMULATOR)


def test_weights_of_what_was_compiled_are_qnns_alone(onnxruntime: Any, apart: Artifact) -> None:
    with pytest.raises(CannotDo):
        onnxruntime.hook.edgecore_weights(artifact=apart)
