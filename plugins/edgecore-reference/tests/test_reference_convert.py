"""Convert writes a Hugging Face folder that computes the same, in little memory, the same bytes every time."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file

from edgecore.checkpoint import Checkpoint, Oracle, Rope, open_checkpoint
from edgecore.checkpoint.decoder import RopeScaling
from edgecore.checkpoint.folder_out import decoder_config
from edgecore.checkpoint.tokenizer_out import tokenizer_json
from edgecore.contract import Cancelled, ConvertLimits, DoesNotFit, UnsupportedModel, UnsupportedPrecision

from support.gguf_files import write_gguf
from support.tiny import TEXT, tiny_llama

TOKENS = list(range(3, 40))


def logits(folder: Path) -> np.ndarray:
    with open_checkpoint(folder) as model:
        return np.concatenate(list(Oracle(model.decoder, model.tensors).score(TOKENS)))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_f32_computes_exactly_what_the_source_does(tmp_path: Path, convert: Any, dtype: str) -> None:
    source = tiny_llama(tmp_path / "source", dtype=dtype)
    made = convert(source, tmp_path / "out", "f32")
    assert np.array_equal(logits(tmp_path / "out"), logits(source))
    assert made.weights.bits_per_weight == 32
    assert {file.path for file in made.files} == {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize(("precision", "dtype"), [("f16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_half_precisions_round_matrices_and_keep_vectors_exact(
    tmp_path: Path, convert: Any, precision: str, dtype: Any
) -> None:
    source = tiny_llama(tmp_path / "source", dtype="F32", tied=False)
    made = convert(source, tmp_path / "out", precision)
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        assert tensor.dtype == (dtype if tensor.ndim > 1 else np.float32)
        assert np.array_equal(tensor, before[name].astype(tensor.dtype))
    assert made.weights.eligible_bits_per_weight == 16
    assert 16 < made.weights.bits_per_weight < 16.1
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] in ("float16", "bfloat16")


def test_the_option_vectors_gives_norms_the_same_type(tmp_path: Path, tiny: Path, convert: Any) -> None:
    made = convert(tiny, tmp_path / "out", "f16", vectors="same")
    assert {t.dtype for t in load_file(tmp_path / "out/model.safetensors").values()} == {np.dtype(np.float16)}
    assert made.weights.bits_per_weight == 16


def test_the_same_request_gives_the_same_bytes(tmp_path: Path, tiny: Path, convert: Any) -> None:
    for name in ("a", "b"):
        convert(tiny, tmp_path / name, "bf16")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_tokenizer_and_template_come_along(tmp_path: Path, tiny: Path, convert: Any) -> None:
    convert(tiny, tmp_path / "out")
    with open_checkpoint(tiny) as a, open_checkpoint(tmp_path / "out") as b:
        assert a.tokenizer.encode("Prices: 12.50") == b.tokenizer.encode("Prices: 12.50")
        assert (a.chat_template, a.tokenizer.eos_ids) == (b.chat_template, b.tokenizer.eos_ids)


def test_memory_stays_near_the_largest_tensor(tmp_path: Path, convert: Any) -> None:
    source = tiny_llama(tmp_path / "source", layers=12, hidden=512, intermediate=1024, dtype="F16")
    tracemalloc.start()
    try:
        convert(source, tmp_path / "out", "f32")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    whole = (tmp_path / "out/model.safetensors").stat().st_size
    assert peak < whole / 4


def test_progress_counts_bytes_and_is_where_a_cancelled_conversion_stops(
    tmp_path: Path, tiny: Path, convert: Any
) -> None:
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int, stage: str = "") -> None:
        seen.append((done, total))
        if len(seen) == 5:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        convert(tiny, tmp_path / "out", progress=progress)
    assert seen == sorted(seen)
    assert len({total for _, total in seen}) == 1


def test_a_number_that_float16_cannot_hold_is_refused_by_name(tmp_path: Path, convert: Any) -> None:
    from safetensors.numpy import save_file

    source = tiny_llama(tmp_path / "source", dtype="F32")
    weights = load_file(source / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(weights, source / "model.safetensors")
    with pytest.raises(UnsupportedPrecision, match=r"layers\.0\.mlp\.up_proj"):
        convert(source, tmp_path / "out", "f16")


def test_a_context_beyond_the_training_and_a_foreign_format_are_refused(
    tmp_path: Path, tiny: Path, convert: Any
) -> None:
    with pytest.raises(DoesNotFit):
        convert(tiny, tmp_path / "a", limits=ConvertLimits(max_context=100_000))
    with pytest.raises(UnsupportedModel):
        convert(tiny, tmp_path / "b", format="gguf")


def test_the_source_is_not_touched(tmp_path: Path, convert: Any) -> None:
    source = tiny_llama(tmp_path / "source")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in source.iterdir()}
    convert(source, tmp_path / "out")
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in source.iterdir()}


@pytest.fixture
def opened(tiny: Path) -> Iterator[Checkpoint]:
    with open_checkpoint(tiny) as model:
        yield model


ROPES = {
    "linear": Rope(10000.0, 64, RopeScaling.LINEAR, factor=2.0),
    "llama3": Rope(500000.0, 64, RopeScaling.LLAMA3, factor=32.0, original_context=8192),
}


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_rotary_scaling_survives_the_config(
    tmp_path: Path, opened: Checkpoint, rope: Rope, convert: Callable[..., Any]
) -> None:
    config = decoder_config(replace(opened.decoder, rope=rope))
    convert(opened.path, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with open_checkpoint(tmp_path) as again:
        np.testing.assert_allclose(again.decoder.rope.frequencies(), rope.frequencies())


def test_a_family_without_a_hugging_face_class_is_refused(opened: Checkpoint) -> None:
    with pytest.raises(UnsupportedModel, match="mystery"):
        decoder_config(replace(opened.decoder, family="mystery"))


def test_the_tokenizer_that_is_written_for_a_gguf_source_reads_and_writes_text(opened: Checkpoint) -> None:
    engine = tokenizers.Tokenizer.from_str(tokenizer_json(opened.tokenizer))
    ids = engine.encode("naïve façade 🙂").ids
    assert ids == opened.tokenizer.encode("naïve façade 🙂")
    assert engine.decode(ids) == "naïve façade 🙂"


@pytest.mark.parametrize("storage", ["F16", "Q8_0"])
def test_a_gguf_file_becomes_a_folder_that_computes_and_reads_the_same(
    tmp_path: Path, opened: Checkpoint, convert: Any, run: Any, storage: str
) -> None:
    source = write_gguf(opened, tmp_path / "tiny.gguf", storage)
    made = convert(source, tmp_path / "out", "f32")
    assert np.array_equal(logits(tmp_path / "out"), logits(source))
    assert bool(made.notes) == (storage == "Q8_0"), "what was dequantized is said"
    with run(source) as native, run(tmp_path / "out") as folder:
        for text in (TEXT, "<|im_start|>user"):
            for parse_special in (False, True):
                assert native.tokenize(text, True, parse_special) == folder.tokenize(text, True, parse_special)
        chat = [{"role": "user", "content": "Hello"}]
        assert native.apply_chat(chat) == folder.apply_chat(chat)
        assert native.eos_ids == folder.eos_ids
