"""Convert writes what libllama computes the same answers from as the oracle, and says what it could not keep."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecore.checkpoint import Oracle, open_checkpoint
from edgecore.checkpoint.gguf_file import GgufArray, read_gguf
from edgecore.contract import (
    Artifact,
    Cancelled,
    ConvertLimits,
    CorruptModel,
    DoesNotFit,
    UnsupportedModel,
    UnsupportedPrecision,
    no_progress,
)
from edgecore_llamacpp.convert import write_gguf
from edgecore_llamacpp.header import Metadata
from edgecore_llamacpp.tokenizer_metadata import describe_tokenizer

from support import gguf_files
from support.converted import GOLDENS, TOKENIZER_OF, account, folder_of
from support.tiny import TEXT, tiny_llama

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def divergence(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Mean KL, nats."""

    def logs(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64) - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    p, q = logs(reference), logs(candidate)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def both(llama: Any, source: Path, artifact: Artifact, count: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the oracle on the source and of libllama on the artifact, in float32 throughout."""
    with open_checkpoint(source) as model, llama.run(artifact, 128, kv_cache="f32", flash_attention="off") as session:
        tokens = model.tokenizer.encode(TEXT)[:count]
        assert session.tokenize(TEXT)[:count] == tokens
        oracle = np.concatenate(list(Oracle(model.decoder, model.tensors).score(tokens)))
        return oracle, np.concatenate(list(session.score(tokens)))


@pytest.mark.parametrize(
    ("precision", "bound", "bits"), [("f32", 1e-8, 32), ("f16", 1e-4, 16), ("bf16", 0.005, 16), ("q8_0", 0.05, 8.5)]
)
def test_each_precision_gives_the_oracles_answers(
    llama: Any,
    tiny: Path,
    native: Callable[[Path], Artifact],
    tmp_path: Path,
    precision: str,
    bound: float,
    bits: float,
) -> None:
    made = llama.convert(tiny, tmp_path / "out", precision)
    assert [(f.path, f.role) for f in made.files] == [("model.gguf", "model")]
    assert made.weights.eligible_bits_per_weight == bits
    assert made.weights.bits_per_weight == pytest.approx(bits, rel=0.01)
    assert divergence(*both(llama, tiny, native(tmp_path / "out" / "model.gguf"))) < bound


@pytest.mark.parametrize(
    "shape",
    [
        {"tied": False, "rope": LLAMA3, "head_dim": 128},
        {"rope": {"rope_type": "linear", "factor": 2.0}},
        {"heads": 8, "kv_heads": 8, "dtype": "BF16", "shards": 2},
    ],
    ids=["llama3-rope untied wide-heads", "linear-rope", "multi-head sharded"],
)
def test_every_shape_of_the_family_survives(
    llama: Any, native: Callable[[Path], Artifact], tmp_path: Path, shape: dict[str, Any]
) -> None:
    source = tiny_llama(tmp_path / "hf", **shape)
    llama.convert(source, tmp_path / "out", "f32")
    assert divergence(*both(llama, source, native(tmp_path / "out" / "model.gguf"))) < 1e-8


def test_a_gguf_source_keeps_its_metadata(llama: Any, tiny_gguf: Artifact, tmp_path: Path) -> None:
    llama.convert(tiny_gguf.model, tmp_path / "out", "q8_0")

    def metadata(path: Path) -> dict[str, Any]:
        values = read_gguf(path)[0].metadata
        return {k: v.read() if isinstance(v, GgufArray) else v for k, v in values.items()}

    before, after = metadata(tiny_gguf.model), metadata(tmp_path / "out" / "model.gguf")
    assert {k for k in before if before[k] != after[k]} == {"general.file_type"}
    assert after.keys() == before.keys()


@pytest.mark.parametrize("golden", TOKENIZER_OF)
def test_a_file_of_any_family_written_again_is_the_same_file(golden: str, tmp_path: Path) -> None:
    tokenizer = Path(__file__).parent / "converted" / "tokenizers" / TOKENIZER_OF[golden]
    first, again = tmp_path / "first.gguf", tmp_path / "again.gguf"
    with open_checkpoint(folder_of(golden, tokenizer, tmp_path / "in")) as model:
        write_gguf(model, first, "f32", no_progress)
    with open_checkpoint(first) as model:
        write_gguf(model, again, "f32", no_progress)
    before, after = account(first), account(again)
    assert after["metadata"] == before["metadata"]
    assert after["tensors"] == before["tensors"]


@pytest.mark.parametrize("golden", ["qwen3-tied", "gemma3-old-style", "phi3-longrope-partial", "bitnet-plain-silu"])
def test_another_writers_file_keeps_its_metadata(golden: str, tmp_path: Path) -> None:
    with open_checkpoint(GOLDENS / golden) as model:
        theirs = gguf_files.write_gguf(model, tmp_path / "theirs.gguf", tokenizer=False)
    with open_checkpoint(theirs) as model:
        write_gguf(model, tmp_path / "ours.gguf", "q8_0", no_progress)
        expected = {name: tensor.read() for name, tensor in model.tensors.items()}
    before, after = account(theirs)["metadata"], account(tmp_path / "ours.gguf")["metadata"]
    assert {k: v for k, v in after.items() if k in before} == before
    assert after.keys() - before.keys() == {"general.file_type", "general.quantization_version"}
    with open_checkpoint(tmp_path / "ours.gguf") as model:
        for name, tensor in model.tensors.items():
            assert np.allclose(tensor.read(), expected[name], atol=np.abs(expected[name]).max() / 127)


def test_code_llamas_end_of_turn_is_declared(tiny: Path) -> None:
    """As the converter does, which knows it by the size of its vocabulary: no file of the folder says so."""
    with open_checkpoint(tiny) as model:
        for size, declared in ((model.decoder.vocab_size, None), (32016, struct.pack("<II", 4, 32010))):
            model.decoder = replace(model.decoder, vocab_size=size)
            metadata = Metadata("llama")
            describe_tokenizer(metadata, model)
            assert metadata.values.get("tokenizer.ggml.eot_token_id") == declared


def test_tokens_that_stand_twice_are_refused(llama: Any, tmp_path: Path) -> None:
    """libllama ends the process at them."""
    tokenizer = Path(__file__).parent / "converted" / "tokenizers" / "spm"
    source = folder_of("rope-linear", tokenizer, tmp_path / "in")
    (source / "added_tokens.json").write_text('{"<s>": 285}')
    with pytest.raises((UnsupportedModel, CorruptModel), match="<s>"):
        llama.convert(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "a"}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"5": {"content": "\\ud800"}}}'),
        ("added_tokens.json", '{"a": null}'),
        ("tokenizer.json", '{"post_processor": {"type": "Sequence", "processors": 7}, "added_tokens": 3}'),
        ("generation_config.json", '{"temperature": "warm", "top_k": [], "sequence": 5}'),
        ("README.md", "---\n[unclosed\n---\n"),
    ],
)
def test_files_beside_the_weights_may_hold_anything(llama: Any, tmp_path: Path, file: str, text: str) -> None:
    """A typed error, or a file that leaves it out: never a traceback."""
    source = folder_of("rope-linear", Path(__file__).parent / "converted" / "tokenizers" / "spm", tmp_path / "in")
    (source / file).write_text(text)
    said = ""
    try:
        llama.convert(source, tmp_path / "out")
    except (CorruptModel, UnsupportedModel) as error:
        said = str(error)
    assert said == "" or str(source) in said
    assert bool(said) == (not list((tmp_path / "out").iterdir()))


def test_a_model_card_gives_its_facts(llama: Any, tiny: Path, tmp_path: Path) -> None:
    source = tmp_path / "Lighthouse-2B-chat"
    shutil.copytree(tiny, source)
    (source / "README.md").write_text("---\nlicense: mit\nlanguage: [en, de]\ntags: [sea]\n---\n# Lighthouse\n")
    (source / "generation_config.json").write_text('{"temperature": 0.5, "top_k": 40, "repetition_penalty": 1.25}')
    llama.convert(source, tmp_path / "out")
    metadata = account(tmp_path / "out" / "model.gguf")["metadata"]
    wanted = {
        "general.name": "Lighthouse 2B Chat", "general.license": "mit", "general.sampling.temp": 0.5,
        "general.sampling.top_k": 40, "general.sampling.penalty_repeat": 1.25, "general.basename": "Lighthouse",
    }  # fmt: skip
    assert {key: metadata[key][1] for key in wanted} == wanted
    assert metadata["general.languages"][1:3] == [8, 2]


def test_nothing_but_the_result_is_written(llama: Any, tiny: Path, tmp_path: Path) -> None:
    before = sorted(tiny.iterdir())
    llama.convert(tiny, tmp_path / "out", "q8_0")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["model.gguf"]
    assert sorted(tiny.iterdir()) == before


def test_what_was_lost_before_is_said(llama: Any, tiny_gguf: Artifact, tmp_path: Path) -> None:
    llama.convert(tiny_gguf.model, tmp_path / "q8", "q8_0")
    made = llama.convert(tmp_path / "q8" / "model.gguf", tmp_path / "out", "f16")
    assert "Q8_0" in made.notes[0]


EVERY_PART = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]


@pytest.mark.parametrize("published", ["first part alone", "every part"])
def test_a_space_that_llama_cpp_puts_behind_special_tokens_is_said_where_the_source_has_none(
    llama: Any, native: Callable[[Path], Artifact], tmp_path: Path, published: str
) -> None:
    source = folder_of("rope-linear", Path(__file__).parent / "converted" / "tokenizers" / "spm-fast", tmp_path / "in")
    if published == "every part":  # as Llama 2's and the first Mistral's tokenizer.json
        spec = json.loads((source / "tokenizer.json").read_text())
        legacy = {"normalizer": {"type": "Sequence", "normalizers": EVERY_PART}, "pre_tokenizer": None}
        (source / "tokenizer.json").write_text(json.dumps(spec | legacy))
    made = llama.convert(source, tmp_path / "out", "f32")
    said = [note for note in made.notes if "special token" in note]
    with open_checkpoint(source) as model, llama.run(native(tmp_path / "out" / "model.gguf")) as session:
        for text in ("b a", "</s>b", "a</s> b</s></s>c"):
            same = session.tokenize(text, False, True) == model.tokenizer.encode(text, False, True)
            assert same == (published == "every part" or "</s>" not in text), text
    assert len(said) == (published == "first part alone")


def test_rows_that_do_not_divide_fall_back_and_are_listed(llama: Any, tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "hf", hidden=48, heads=3, kv_heads=1, intermediate=64)
    made = llama.convert(source, tmp_path / "out", "q8_0")
    named = {fallback.tensor: fallback.got for fallback in made.weights.fallbacks}
    assert named["token_embd.weight"] == named["blk.0.attn_q.weight"] == "F16"
    assert "blk.0.ffn_down.weight" not in named


def test_progress_counts_bytes_to_the_end_and_can_cancel(llama: Any, tiny: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    llama.convert(tiny, tmp_path / "out", progress=lambda done, total, stage="": seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    assert seen[-1][1] == pytest.approx((tmp_path / "out" / "model.gguf").stat().st_size, rel=0.05)

    def cancel(done: int, total: int, stage: str = "") -> None:
        if done > total / 2:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        llama.convert(tiny, tmp_path / "cancelled", progress=cancel)
    assert not list((tmp_path / "cancelled").iterdir())


def test_what_cannot_be_done_is_refused(llama: Any, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(DoesNotFit, match="trained for 512"):
        llama.convert(tiny, tmp_path / "a", limits=ConvertLimits(max_context=513))
    with pytest.raises(UnsupportedModel, match="onnx"):
        llama.convert(tiny, tmp_path / "b", format="onnx")
    with pytest.raises(UnsupportedPrecision, match="'q3'") as caught:
        llama.convert(tiny, tmp_path / "c", "q3")
    assert caught.value.supported == "f32, f16, q8_0, bf16"


def test_numbers_that_float16_cannot_hold_are_refused(llama: Any, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    source = tiny_llama(tmp_path / "hf", dtype="F32")
    weights = load_file(source / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3, 5] = 1e6
    save_file(weights, source / "model.safetensors")
    with pytest.raises(UnsupportedPrecision, match=r"ffn_up.*1e\+06"):
        llama.convert(source, tmp_path / "out")
    assert llama.convert(source, tmp_path / "wide", "f32").weights
