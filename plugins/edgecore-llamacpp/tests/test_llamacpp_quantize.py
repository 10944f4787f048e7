"""Every type that libllama offers is made, weighed and accounted for; what needs an importance matrix says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgecore.checkpoint.gguf_file import read_gguf
from edgecore.contract import Artifact, Cancelled, EdgecoreError, Manifest, UnsupportedPrecision
from edgecore_llamacpp import mixes, weights

from support.tiny import TEXT, tiny_llama


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("calibration") / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


@pytest.mark.parametrize("precision", mixes.BASE)
def test_every_precision_is_made_and_opens(
    llama: Any,
    manifest: Manifest,
    tiny_gguf: Artifact,
    native: Callable[[Path], Artifact],
    text: Path,
    tmp_path: Path,
    precision: str,
) -> None:
    declared = next(p for p in manifest.precisions if p.name == precision)
    made = llama.quantize(tiny_gguf, tmp_path / "out", precision, calibration=text)
    assert made.weights.fallbacks == ()
    assert made.weights.parameters == sum(t.data.nbytes // t.type.size * t.type.block for t in _tensors(tiny_gguf))
    # Two layers are all "first layers", to which mixes give more bits than to the rest.
    assert declared.bits <= made.weights.eligible_bits_per_weight <= 1.5 * (declared.bits + declared.overhead)
    file = tmp_path / "out" / "model.gguf"
    assert mixes.predicted_bytes(weights.read_header(tiny_gguf.model), precision) == pytest.approx(
        file.stat().st_size, rel=0.3
    )
    with llama.run(native(file), 64) as session:
        logits = session.context().prefill(session.tokenize("The lamp went out"))
        assert logits.shape == (session.vocab_size,)
        assert logits.std() > 0


def _tensors(artifact: Artifact) -> list[Any]:
    return list(read_gguf(artifact.model)[0].tensors.values())


@pytest.mark.parametrize("precision", ["iq2_xxs", "iq1_s", "q2_k_s", "iq3_xxs"])
def test_a_type_that_needs_an_importance_matrix_is_refused_without(
    llama: Any, tiny_gguf: Artifact, tmp_path: Path, precision: str
) -> None:
    with pytest.raises(UnsupportedPrecision, match="importance matrix") as refused:
        llama.quantize(tiny_gguf, tmp_path / "out", precision)
    assert "--calibration" in refused.value.hint


def test_the_manifest_requires_calibration_exactly_where_libllama_does(
    llama: Any, manifest: Manifest, tiny_gguf: Artifact, tmp_path: Path
) -> None:
    from edgecore_llamacpp import quantize

    for precision in manifest.precisions:
        if precision.name not in mixes.BASE:
            continue
        out = tmp_path / precision.name
        out.mkdir()
        refused = False
        try:
            quantize._run(tiny_gguf.model, out / "model.gguf", precision.name, {}, 1, {})
        except EdgecoreError:
            refused = True
        assert refused == (precision.calibration == "required"), precision.name


def test_fallbacks_are_listed_with_their_reason(llama: Any, native: Callable[[Path], Artifact], tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "hf", hidden=96, heads=3, kv_heads=1, intermediate=256)
    llama.convert(source, tmp_path / "f16")
    made = llama.quantize(native(tmp_path / "f16" / "model.gguf"), tmp_path / "q4", "q4_k_m")
    got = {fallback.tensor: fallback.got for fallback in made.weights.fallbacks}
    assert got["blk.0.attn_q.weight"] == "Q5_0"
    assert got["token_embd.weight"] == "Q8_0"
    assert "blk.0.ffn_down.weight" not in got
    assert "96" in made.weights.fallbacks[0].reason
    straight = llama.quantize(native(tmp_path / "f16" / "model.gguf"), tmp_path / "q4_0", "q4_0")
    assert {f.tensor for f in straight.weights.fallbacks} == {"token_embd.weight"}


def test_options_change_the_types(llama: Any, tiny_gguf: Artifact, tmp_path: Path) -> None:
    llama.quantize(tiny_gguf, tmp_path / "mix", "q4_k_m")
    llama.quantize(tiny_gguf, tmp_path / "pure", "q4_k_m", pure=True)
    llama.quantize(tiny_gguf, tmp_path / "embedding", "q4_k_m", embedding_type="f16")

    def types(name: str) -> set[str]:
        return {t.type.name for t in read_gguf(tmp_path / name / "model.gguf")[0].tensors.values()}

    assert types("mix") == {"F32", "Q4_K", "Q6_K"}
    assert types("pure") == {"F32", "Q4_K"}
    assert "F16" in types("embedding")


def test_an_importance_matrix_changes_the_weights_and_is_noted(
    llama: Any, tiny_gguf: Artifact, text: Path, tmp_path: Path
) -> None:
    plain = llama.quantize(tiny_gguf, tmp_path / "plain", "q4_k_m")
    guided = llama.quantize(tiny_gguf, tmp_path / "guided", "q4_k_m", calibration=text)
    assert (tmp_path / "plain" / "model.gguf").read_bytes() != (tmp_path / "guided" / "model.gguf").read_bytes()
    assert plain.notes == ()
    assert "importance matrix for 14 tensors" in guided.notes[0]


def test_the_same_request_gives_the_same_bytes(llama: Any, tiny_gguf: Artifact, text: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        llama.quantize(tiny_gguf, tmp_path / name, "iq3_xxs", calibration=text)
    assert (tmp_path / "a" / "model.gguf").read_bytes() == (tmp_path / "b" / "model.gguf").read_bytes()


def test_the_source_is_not_touched_and_progress_reaches_the_end(
    llama: Any, tiny_gguf: Artifact, text: Path, tmp_path: Path
) -> None:
    before = tiny_gguf.model.read_bytes()
    seen: dict[str, list[tuple[int, int]]] = {}
    llama.quantize(
        tiny_gguf,
        tmp_path / "out",
        "q5_k_m",
        calibration=text,
        progress=lambda done, total, stage="": seen.setdefault(stage, []).append((done, total)),
    )
    assert tiny_gguf.model.read_bytes() == before
    assert set(seen) == {"importance matrix", "quantizing"}
    for reports in seen.values():
        assert reports == sorted(reports)
        assert reports[-1][0] == reports[-1][1]


def test_measuring_importance_can_be_cancelled(llama: Any, tiny_gguf: Artifact, text: Path, tmp_path: Path) -> None:
    def cancel(done: int, total: int, stage: str = "") -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        llama.quantize(tiny_gguf, tmp_path / "out", "iq2_xs", calibration=text, progress=cancel)


def test_requantizing_is_noted(
    llama: Any, tiny_gguf: Artifact, native: Callable[[Path], Artifact], tmp_path: Path
) -> None:
    llama.quantize(tiny_gguf, tmp_path / "q8", "q8_0")
    made = llama.quantize(native(tmp_path / "q8" / "model.gguf"), tmp_path / "q4", "q4_0")
    assert "Q8_0" in made.notes[0]


def test_unknown_precisions_and_bad_texts_are_typed_errors(llama: Any, tiny_gguf: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedPrecision, match="q9_z"):
        llama.quantize(tiny_gguf, tmp_path / "a", "q9_z")
    short = tmp_path / "short.txt"
    short.write_text("too short")
    with pytest.raises(EdgecoreError, match="at least 32"):
        llama.quantize(tiny_gguf, tmp_path / "b", "iq2_xs", calibration=short)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EdgecoreError, match="calibration data"):
        llama.quantize(tiny_gguf, tmp_path / "c", "iq2_xs", calibration=tmp_path / "binary")
