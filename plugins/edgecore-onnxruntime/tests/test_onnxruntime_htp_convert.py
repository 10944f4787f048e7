"""Convert writes an NPU's folder: sizes that were asked for or that fit, weights once, and nothing where it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecore.checkpoint import open_checkpoint
from edgecore.contract import (
    Artifact,
    BadRequest,
    Cancelled,
    ConvertLimits,
    DoesNotFit,
    UnsupportedPrecision,
)
from edgecore_onnxruntime import hooks
from edgecore_onnxruntime.convert_htp import CHUNK, CONTEXT, sizes
from edgecore_onnxruntime.htp_folder import DECODE, DESCRIPTION, EMBEDDING, PREFILL, WEIGHTS

from support.gguf_files import write_gguf
from support.tiny import tiny_llama

SMALL = ConvertLimits(max_context=32, prefill_chunk=8)


def converted(onnxruntime: Any, source: Path, out: Path, **given: Any) -> Any:
    return onnxruntime.convert(source, out, format="onnx-htp", **{"limits": SMALL, **given})


def test_a_folder_says_what_it_holds_and_for_how_much_it_was_made(onnxruntime: Any, tiny: Path, tmp_path: Path) -> None:
    made = converted(onnxruntime, tiny, tmp_path / "out")
    roles = {file.path: file.role for file in made.files}
    own = {PREFILL: "model", DECODE: "other", WEIGHTS: "weights", EMBEDDING: "weights", DESCRIPTION: "config"}
    assert own.items() <= roles.items()
    assert sorted(roles) == sorted(path.name for path in (tmp_path / "out").iterdir())
    said = json.loads((tmp_path / "out" / DESCRIPTION).read_text())
    assert (said["context"], said["chunk"]) == (32, 8)
    assert made.notes[0] == "fixed shapes: a context of 32 tokens, a prefill of 8 at once"
    assert made.weights.bits_per_weight == made.weights.eligible_bits_per_weight == 16
    with open_checkpoint(tiny) as model:
        assert made.weights.parameters == model.parameters
        stored = sum((tmp_path / "out" / name).stat().st_size for name in (WEIGHTS, EMBEDDING))
        assert stored == pytest.approx(2 * model.parameters, abs=4096 * len(model.tensors))


@pytest.mark.parametrize("tied", [True, False])
def test_weights_come_back_as_the_sources(onnxruntime: Any, tmp_path: Path, tied: bool) -> None:
    source = tiny_llama(tmp_path / "hf", tied=tied)
    made = converted(onnxruntime, source, tmp_path / "out")
    artifact = Artifact(tmp_path / "out", "onnxruntime", "text", "onnx-htp", "f16", made.files, id="tiny")
    found = hooks.edgecore_weights(artifact)
    assert found is not None
    with open_checkpoint(source) as model:
        assert set(found) == set(model.tensors)
        for name, tensor in model.tensors.items():
            assert np.array_equal(found[name], tensor.read())


def test_the_same_source_gives_the_same_bytes(onnxruntime: Any, tiny: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        converted(onnxruntime, tiny, tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_sizes_are_what_was_asked_for_or_what_fits() -> None:
    assert sizes(ConvertLimits(), 8192) == (CONTEXT, CHUNK)
    assert sizes(ConvertLimits(), 16) == (16, 16)
    assert sizes(ConvertLimits(max_context=64), 8192) == (64, CHUNK)
    assert sizes(ConvertLimits(max_context=4096, prefill_chunk=128), 8192) == (4096, 128)
    with pytest.raises(DoesNotFit, match="trained for 512"):
        sizes(ConvertLimits(max_context=513), 512)
    with pytest.raises(BadRequest, match="a prefill of 65 tokens at once in a context of 64"):
        sizes(ConvertLimits(max_context=64, prefill_chunk=65), 512)


def test_another_precision_is_refused(onnxruntime: Any, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedPrecision, match="f32"):
        converted(onnxruntime, tiny, tmp_path / "out", precision="f32")


def test_weights_that_float16_cannot_hold_are_refused(onnxruntime: Any, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    source = tiny_llama(tmp_path / "hf", dtype="F32")
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"][3] = 1e5
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(UnsupportedPrecision, match=r"'model\.norm\.weight' holds 100000"):
        converted(onnxruntime, source, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_cancelled_conversion_leaves_nothing(onnxruntime: Any, tiny: Path, tmp_path: Path) -> None:
    def progress(done: int, total: int, what: str) -> None:
        if done > total // 2:
            raise Cancelled("asked to stop")

    with pytest.raises(Cancelled):
        converted(onnxruntime, tiny, tmp_path / "out", progress=progress)
    assert not list((tmp_path / "out").iterdir())


def test_a_quantized_source_says_that_its_loss_stays(onnxruntime: Any, tiny: Path, tmp_path: Path) -> None:
    with open_checkpoint(tiny) as model:
        source = write_gguf(model, tmp_path / "tiny.gguf", "Q8_0")
    made = converted(onnxruntime, source, tmp_path / "out")
    assert made.notes[0] == "dequantized from Q8_0: what had been lost before is not restored"
