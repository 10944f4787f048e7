"""Convert writes a folder that ONNX Runtime reads as it is, streams the weights, and says what it could not do."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper
from safetensors.numpy import load_file, save_file

from edgecore.checkpoint import Oracle, RopeScaling, open_checkpoint
from edgecore.contract import Cancelled, ConvertLimits, CorruptModel, DoesNotFit, UnsupportedModel, UnsupportedPrecision
from edgecore_onnxruntime.convert_text import _computed_otherwise
from edgecore_onnxruntime.folder import GENAI, MODEL, WEIGHTS

from support.bare_onnx import Model
from support.divergence import divergence, some_tokens
from support.gguf_files import write_gguf
from support.peak import run_measured
from support.tiny import tiny_llama

TYPES = {"f32": TensorProto.FLOAT, "f16": TensorProto.FLOAT16}


def initializers(folder: Path) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in onnx.load(folder / MODEL, load_external_data=False).graph.initializer}


@pytest.mark.parametrize(("precision", "bits"), [("f32", 32), ("f16", 16)])
def test_every_precision_runs_and_says_what_it_weighs(
    onnxruntime: Any, tiny: Path, tmp_path: Path, precision: str, bits: int
) -> None:
    made = onnxruntime.convert(tiny, tmp_path / "out", precision)
    assert [(file.path, file.role) for file in made.files[:2]] == [(MODEL, "model"), (WEIGHTS, "weights")]
    assert (GENAI, "config") in [(file.path, file.role) for file in made.files]
    assert made.weights.eligible_bits_per_weight == bits
    assert made.weights.bits_per_weight == pytest.approx(bits, rel=0.002)
    with open_checkpoint(tiny) as model:
        assert made.weights.parameters == model.parameters
        tokens = some_tokens(model.decoder, 40)
        wanted = np.concatenate(list(Oracle(model.decoder, model.tensors).score(tokens)))
    assert divergence(wanted, Model(tmp_path / "out" / MODEL).logits(tokens, [40])).mean() < 1e-9


@pytest.mark.parametrize("precision", ["f32", "f16"])
def test_initializers_have_canonical_names_and_a_tied_matrix_is_there_once(
    onnxruntime: Any, tiny: Path, tmp_path: Path, precision: str
) -> None:
    onnxruntime.convert(tiny, tmp_path / "out", precision)
    found = initializers(tmp_path / "out")
    with open_checkpoint(tiny) as model:
        tensors = model.tensors
    for name, tensor in tensors.items():
        matrix = len(tensor.shape) > 1
        # A matrix that is multiplied with has its inputs first, as MatMul wants it; the table is looked up in by rows.
        shape = tensor.shape if name.startswith("model.embed") else tensor.shape[::-1]
        assert tuple(found[name].dims) == shape
        assert found[name].data_type == TYPES[precision if matrix else "f32"]
    assert "lm_head.weight" not in found
    stored = sum(int(entry.value) for t in found.values() for entry in t.external_data if entry.key == "length")
    size = {"f32": 4, "f16": 2}[precision]
    weights = sum((size if len(t.shape) > 1 else 4) * t.elements for t in tensors.values())
    assert stored == weights + 2 * 4 * 512 * 32  # and the cosines and sines of 512 positions
    nodes = {node.name for node in onnx.load(tmp_path / "out" / MODEL, load_external_data=False).graph.node}
    assert {"model.embed_tokens", "lm_head", "model.norm", "model.layers.1.mlp.down_proj"} <= nodes


def test_an_untied_head_is_a_matrix_of_its_own(onnxruntime: Any, tmp_path: Path) -> None:
    onnxruntime.convert(tiny_llama(tmp_path / "hf", tied=False), tmp_path / "out")
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= initializers(tmp_path / "out").keys()


def test_the_same_request_gives_the_same_bytes(onnxruntime: Any, tiny: Path, tmp_path: Path) -> None:
    """In one process, whose counters go on, and in another, whose hashes differ."""
    onnxruntime.convert(tiny, tmp_path / "a")
    onnxruntime.convert(tiny, tmp_path / "b")
    code = (
        "import sys; from pathlib import Path; from edgecore.checkpoint import open_checkpoint\n"
        "from edgecore.contract import ConvertLimits, no_progress\n"
        "from edgecore_onnxruntime.convert_text import convert\n"
        "source, out = map(Path, sys.argv[1:]); out.mkdir()\n"
        "with open_checkpoint(source) as model: convert(model, out, 'f16', {}, ConvertLimits(), no_progress)\n"
    )
    subprocess.run([sys.executable, "-c", code, tiny, tmp_path / "c"], check=True)
    for name in (MODEL, WEIGHTS, GENAI):
        first = (tmp_path / "a" / name).read_bytes()
        assert first == (tmp_path / "b" / name).read_bytes() == (tmp_path / "c" / name).read_bytes(), name


def test_weights_start_on_pages_and_the_model_names_their_file_alone(
    onnxruntime: Any, tiny: Path, tmp_path: Path
) -> None:
    onnxruntime.convert(tiny, tmp_path / "out")
    external = [t for t in initializers(tmp_path / "out").values() if t.external_data]
    infos = [external_data_helper.ExternalDataInfo(tensor) for tensor in external]
    assert {info.location for info in infos} == {WEIGHTS}
    assert all(info.offset % 4096 == 0 for info in infos)
    assert (tmp_path / "out" / WEIGHTS).stat().st_size == max(info.offset + info.length for info in infos)


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="needs Unix, whose way peak memory is read")
    code = (
        "import sys; from pathlib import Path; from edgecore.checkpoint import open_checkpoint\n"
        "from edgecore.contract import no_progress; from edgecore_onnxruntime import graph, onnx_out\n"
        "with open_checkpoint(Path(sys.argv[1])) as model:\n"
        "    before = peak()\n"
        "    file = Path(sys.argv[2])\n"
        "    built = graph.build(model.decoder, 'f32', 512)\n"
        "    onnx_out.write(built, model, file, file.with_suffix('.data'), no_progress)\n"
        "    print(peak() - before)\n"
    )
    sizes, grown = [], []
    for layers in (2, 12):
        source = tiny_llama(tmp_path / f"{layers}", layers=layers, hidden=512, heads=8, intermediate=2048)
        file = tmp_path / f"{layers}.onnx"
        grown.append(int(run_measured(code, source, file)))
        sizes.append(file.with_suffix(".data").stat().st_size)
    assert sizes[1] > 160e6
    assert grown[1] < sizes[1] / 4
    # A layer costs its share of the graph, not its 16 MB.
    assert grown[1] - grown[0] < (sizes[1] - sizes[0]) / 8


def test_progress_counts_bytes_to_the_end_and_can_cancel(onnxruntime: Any, tiny: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    onnxruntime.convert(tiny, tmp_path / "out", progress=lambda done, total, stage="": seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == pytest.approx((tmp_path / "out" / WEIGHTS).stat().st_size, rel=0.05)

    def cancel(done: int, total: int, stage: str = "") -> None:
        if done > total / 2:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        onnxruntime.convert(tiny, tmp_path / "cancelled", progress=cancel)
    assert not list((tmp_path / "cancelled").iterdir())


def test_a_smaller_context_has_smaller_tables(onnxruntime: Any, tiny: Path, tmp_path: Path) -> None:
    onnxruntime.convert(tiny, tmp_path / "out", limits=ConvertLimits(max_context=64))
    assert list(initializers(tmp_path / "out")["cos_cache"].dims) == [64, 32]
    assert '"context_length": 64' in (tmp_path / "out" / GENAI).read_text()


def test_what_cannot_be_done_is_refused(onnxruntime: Any, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(DoesNotFit, match="trained for 512"):
        onnxruntime.convert(tiny, tmp_path / "a", limits=ConvertLimits(max_context=513))
    with pytest.raises(UnsupportedModel, match="gguf"):
        onnxruntime.convert(tiny, tmp_path / "b", format="gguf")
    with pytest.raises(UnsupportedPrecision, match="'bf16'") as caught:
        onnxruntime.convert(tiny, tmp_path / "c", "bf16")
    assert caught.value.supported == "f32, f16"


@pytest.mark.parametrize(("value", "error"), [(1e6, UnsupportedPrecision), (np.nan, CorruptModel)])
def test_numbers_that_the_type_cannot_hold_are_refused_by_name(
    onnxruntime: Any, tmp_path: Path, value: float, error: type[Exception]
) -> None:
    source = tiny_llama(tmp_path / "hf", dtype="F32")
    weights = load_file(source / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3, 5] = value
    save_file(weights, source / "model.safetensors")
    with pytest.raises(error, match=r"model\.layers\.0\.mlp\.up_proj\.weight"):
        onnxruntime.convert(source, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    if error is UnsupportedPrecision:
        assert onnxruntime.convert(source, tmp_path / "wide", "f32").weights


def test_a_full_disk_is_said_and_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="needs Unix, which limits the size of files")
    code = (
        "import resource, signal, sys; from pathlib import Path; from edgecore.checkpoint import open_checkpoint\n"
        "from edgecore.contract import ConvertLimits, DoesNotFit, no_progress\n"
        "from edgecore_onnxruntime.convert_text import convert\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)\n"
        "with open_checkpoint(Path(sys.argv[1])) as model:\n"
        "    try: convert(model, Path(sys.argv[2]), 'f16', {}, ConvertLimits(), no_progress)\n"
        "    except DoesNotFit as error: print(error.what)\n"
    )
    for limit in (1_000_000, 100):
        out = tmp_path / str(limit)
        out.mkdir()
        command = [sys.executable, "-c", code, str(tiny), str(out), str(limit)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert "File too large" in done.stdout, done.stderr
        assert not list(out.iterdir())


def test_what_was_lost_before_is_said(onnxruntime: Any, tiny: Path, tmp_path: Path) -> None:
    with open_checkpoint(tiny) as model:
        source = write_gguf(model, tmp_path / "tiny.gguf", "Q8_0")
    assert onnxruntime.convert(source, tmp_path / "out").notes[0].startswith("dequantized from Q8_0")


def test_what_onnxruntime_genai_computes_otherwise_is_said(tiny: Path) -> None:
    with open_checkpoint(tiny) as model:
        decoder = model.decoder
    assert list(_computed_otherwise(decoder)) == []
    known = replace(decoder, rope=replace(decoder.rope, scaling=RopeScaling.LONGROPE, original_context=4096))
    assert list(_computed_otherwise(known)) == []
    other = replace(known, rope=replace(known.rope, original_context=2048))
    (said,) = _computed_otherwise(other)
    assert "onnxruntime_genai keeps its first 2048 keys" in said
