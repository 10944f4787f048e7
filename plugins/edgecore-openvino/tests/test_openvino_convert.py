"""Convert writes a folder that OpenVINO reads as it is, streams the weights, and says what it could not do."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from safetensors.numpy import load_file, save_file

from edgecore.checkpoint import Oracle, open_checkpoint
from edgecore.contract import (
    Cancelled,
    ConvertLimits,
    CorruptModel,
    DoesNotFit,
    UnsupportedModel,
    UnsupportedPrecision,
)
from edgecore_openvino.convert_text import _computed_otherwise
from edgecore_openvino.folder import MODEL, WEIGHTS

from support.bare_ir import Model, divergence, some_tokens
from support.gguf_files import write_gguf
from support.peak import run_measured
from support.tiny import tiny_llama


def constants(graph: ov.Model) -> dict[str, Any]:
    nodes = graph.get_ordered_ops()
    return {node.get_friendly_name(): node for node in nodes if node.get_type_name() == "Constant"}


def read(folder: Path) -> ov.Model:
    return ov.Core().read_model(folder / MODEL)


@pytest.mark.parametrize(("precision", "bits", "bound"), [("f32", 32, 1e-9), ("f16", 16, 1e-9), ("bf16", 16, 1e-3)])
def test_every_precision_runs_and_says_what_it_weighs(
    openvino: Any, tiny: Path, tmp_path: Path, precision: str, bits: int, bound: float
) -> None:
    made = openvino.convert(tiny, tmp_path / "out", precision)
    assert [(file.path, file.role) for file in made.files[:2]] == [(MODEL, "model"), (WEIGHTS, "weights")]
    assert made.weights.eligible_bits_per_weight == bits
    assert made.weights.bits_per_weight == pytest.approx(bits, rel=0.002)
    with open_checkpoint(tiny) as model:
        assert made.weights.parameters == model.parameters
        tokens = some_tokens(model.decoder, 40)
        wanted = np.concatenate(list(Oracle(model.decoder, model.tensors).score(tokens)))
    assert divergence(wanted, Model(tmp_path / "out" / MODEL).logits(tokens, [40])).mean() < bound


def test_bf16_weights_are_rounded_to_the_nearest_even(openvino: Any, tmp_path: Path) -> None:
    import ml_dtypes

    source = tiny_llama(tmp_path / "hf", dtype="F32")
    openvino.convert(source, tmp_path / "out", "bf16")
    name = "model.layers.0.mlp.up_proj.weight"
    stored = constants(read(tmp_path / "out"))[name].get_data(dtype=np.float32)
    wanted = load_file(source / "model.safetensors")[name].astype(ml_dtypes.bfloat16).astype(np.float32)
    assert np.array_equal(stored, wanted)


def test_constants_have_canonical_names_and_a_tied_matrix_is_there_once(
    openvino: Any, tiny: Path, tmp_path: Path
) -> None:
    openvino.convert(tiny, tmp_path / "out")
    graph = read(tmp_path / "out")
    found = constants(graph)
    with open_checkpoint(tiny) as model:
        types = {name: found[name].get_element_type().get_type_name() for name in model.tensors}
        assert types == {name: "f16" if len(t.shape) > 1 else "f32" for name, t in model.tensors.items()}
        stored = sum(2 * t.elements if len(t.shape) > 1 else 4 * t.elements for t in model.tensors.values())
    assert (tmp_path / "out" / WEIGHTS).stat().st_size == pytest.approx(stored, abs=8192)
    table = found["model.embed_tokens.weight"].output(0).get_target_inputs()
    users = [user.get_node() for widened in table for user in widened.get_node().output(0).get_target_inputs()]
    assert sorted(node.get_type_name() for node in users) == ["Gather", "MatMul"]


def test_an_untied_head_is_a_matrix_of_its_own(openvino: Any, tmp_path: Path) -> None:
    openvino.convert(tiny_llama(tmp_path / "hf", tied=False), tmp_path / "out")
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= constants(read(tmp_path / "out")).keys()


def test_the_same_request_gives_the_same_bytes(openvino: Any, tiny: Path, tmp_path: Path) -> None:
    """In one process, whose counters go on, and in another, whose hashes differ."""
    openvino.convert(tiny, tmp_path / "a")
    openvino.convert(tiny, tmp_path / "b")
    code = (
        "import sys; from pathlib import Path; from edgecore.checkpoint import open_checkpoint\n"
        "from edgecore.contract import ConvertLimits, no_progress; from edgecore_openvino.convert_text import convert\n"
        "source, out = map(Path, sys.argv[1:]); out.mkdir()\n"
        "with open_checkpoint(source) as model: convert(model, out, 'f16', {}, ConvertLimits(), no_progress)\n"
    )
    subprocess.run([sys.executable, "-c", code, tiny, tmp_path / "c"], check=True)
    for name in (MODEL, WEIGHTS):
        first = (tmp_path / "a" / name).read_bytes()
        assert first == (tmp_path / "b" / name).read_bytes() == (tmp_path / "c" / name).read_bytes(), name


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="needs Unix, whose way peak memory is read")
    code = (
        "import sys; from pathlib import Path; from edgecore.checkpoint import open_checkpoint\n"
        "from edgecore.contract import no_progress; from edgecore_openvino import graph, ir_file\n"
        "with open_checkpoint(Path(sys.argv[1])) as model:\n"
        "    before = peak()\n"
        "    ir_file.write(graph.build(model.decoder, 'f32'), model, Path(sys.argv[2]), no_progress)\n"
        "    print(peak() - before)\n"
    )
    sizes, grown = [], []
    for layers in (2, 12):
        source = tiny_llama(tmp_path / f"{layers}", layers=layers, hidden=512, heads=8, intermediate=2048)
        xml = tmp_path / f"{layers}.xml"
        grown.append(int(run_measured(code, source, xml)))
        sizes.append(xml.with_suffix(".bin").stat().st_size)
    assert sizes[1] > 160e6
    assert grown[1] < sizes[1] / 4
    # A layer costs its .xml and its share of the graph, not its 16 MB.
    assert grown[1] - grown[0] < (sizes[1] - sizes[0]) / 8


def test_progress_counts_bytes_to_the_end_and_can_cancel(openvino: Any, tiny: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    openvino.convert(tiny, tmp_path / "out", progress=lambda done, total, stage="": seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == pytest.approx((tmp_path / "out" / WEIGHTS).stat().st_size, rel=0.01)

    def cancel(done: int, total: int, stage: str = "") -> None:
        if done > total / 2:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        openvino.convert(tiny, tmp_path / "cancelled", progress=cancel)
    assert not list((tmp_path / "cancelled").iterdir())


def test_what_cannot_be_done_is_refused(openvino: Any, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(DoesNotFit, match="trained for 512"):
        openvino.convert(tiny, tmp_path / "a", limits=ConvertLimits(max_context=513))
    with pytest.raises(UnsupportedModel, match="onnx"):
        openvino.convert(tiny, tmp_path / "b", format="onnx")
    with pytest.raises(UnsupportedPrecision, match="'q3'") as caught:
        openvino.convert(tiny, tmp_path / "c", "q3")
    assert caught.value.supported == "f32, f16, bf16"


@pytest.mark.parametrize(("value", "error"), [(1e6, UnsupportedPrecision), (np.nan, CorruptModel)])
def test_numbers_that_the_type_cannot_hold_are_refused_by_name(
    openvino: Any, tmp_path: Path, value: float, error: type[Exception]
) -> None:
    source = tiny_llama(tmp_path / "hf", dtype="F32")
    weights = load_file(source / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3, 5] = value
    save_file(weights, source / "model.safetensors")
    with pytest.raises(error, match=r"model\.layers\.0\.mlp\.up_proj\.weight"):
        openvino.convert(source, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    if error is UnsupportedPrecision:
        assert openvino.convert(source, tmp_path / "wide", "bf16").weights


def test_a_full_disk_is_said_and_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="needs Unix, which limits the size of files")
    code = (
        "import resource, signal, sys; from pathlib import Path; from edgecore.checkpoint import open_checkpoint\n"
        "from edgecore.contract import ConvertLimits, DoesNotFit, no_progress\n"
        "from edgecore_openvino.convert_text import convert\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)\n"
        "with open_checkpoint(Path(sys.argv[1])) as model:\n"
        "    try: convert(model, Path(sys.argv[2]), 'f16', {}, ConvertLimits(), no_progress)\n"
        "    except DoesNotFit as error: print(error.what)\n"
    )
    for limit in (1_000_000, 50_000, 100):  # while weights are written, in the .xml, in the first constants
        out = tmp_path / str(limit)
        out.mkdir()
        command = [sys.executable, "-c", code, str(tiny), str(out), str(limit)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert "File too large" in done.stdout, done.stderr
        assert not list(out.iterdir())


def test_what_was_lost_before_is_said(openvino: Any, tiny: Path, tmp_path: Path) -> None:
    with open_checkpoint(tiny) as model:
        source = write_gguf(model, tmp_path / "tiny.gguf", "Q8_0")
    assert openvino.convert(source, tmp_path / "out").notes[0].startswith("dequantized from Q8_0")


def test_what_openvino_computes_otherwise_is_said(tiny: Path) -> None:
    with open_checkpoint(tiny) as model:
        assert list(_computed_otherwise(model.decoder)) == []
        (said,) = _computed_otherwise(replace(model.decoder, attention_softcap=50.0))
    assert "ATTENTION_BACKEND=SDPA" in said


def test_the_runs_options_that_optimum_writes_are_there(tiny_ir: Any) -> None:
    model = read(tiny_ir.path)
    assert model.get_rt_info(["runtime_options", "KV_CACHE_PRECISION"]).astype(str) == "f16"
    assert model.get_rt_info(["runtime_options", "ACTIVATIONS_SCALE_FACTOR"]).astype(str) == "8.0"
