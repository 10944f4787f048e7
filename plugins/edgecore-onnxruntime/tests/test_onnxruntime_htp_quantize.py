"""Whole numbers for an NPU: on the emulator the trained model keeps the bounds of its precision, all of it there; what
the file holds, what it says, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgecore.checkpoint import Oracle, open_checkpoint
from edgecore.contract import (
    Artifact,
    BadRequest,
    Cancelled,
    ConvertLimits,
    UnsupportedModel,
    UnsupportedPrecision,
)
from edgecore.quality import evaluation_text
from edgecore.quality.bounds import bounds
from edgecore_conformance import fixtures
from edgecore_onnxruntime import hooks, qnn, quantize_htp
from edgecore_onnxruntime.chips import EMULATOR
from edgecore_onnxruntime.htp_folder import DECODE, PREFILL
from edgecore_onnxruntime.htp_qdq import Encoding
from edgecore_onnxruntime.htp_ranges import Range

from support.divergence import divergence

emulated = pytest.mark.skipif(bool(qnn.missing(EMULATOR)), reason="onnxruntime-qnn is not here")
TEXT = fixtures.calibration_text()
CONTEXT, CHUNK = 64, 32
Quantized = Callable[..., Artifact]


@pytest.fixture(scope="module")
def half(onnxruntime: Any, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The trained model, converted for an NPU in F16."""
    out = tmp_path_factory.mktemp("models") / "f16"
    limits = ConvertLimits(max_context=CONTEXT, prefill_chunk=CHUNK)
    files = onnxruntime.convert(fixtures.language_model(), out, format="onnx-htp", limits=limits).files
    return Artifact(out, "onnxruntime", "text", "onnx-htp", "f16", files, id="trained")


@pytest.fixture(scope="module")
def quantized(onnxruntime: Any, half: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    def call(precision: str, **given: Any) -> Artifact:
        out = tmp_path_factory.mktemp("models") / precision
        given = {"calibration": TEXT, "calibration_samples": 8, **given}
        made = onnxruntime.quantize(half, out, precision, **given)
        return Artifact(
            out, "onnxruntime", "text", "onnx-htp", precision, made.files, id=precision, weights=made.weights
        )

    return call


@emulated
@pytest.mark.parametrize(("precision", "bits"), [("a16w8", 8.06), ("a8w8", 8.06), ("a16w4", 4.07)])
def test_the_trained_model_is_within_its_bounds_on_the_emulator(
    onnxruntime: Any, quantized: Quantized, precision: str, bits: float
) -> None:
    made = quantized(precision)
    assert made.weights.eligible_bits_per_weight == pytest.approx(bits, abs=0.03)
    with onnxruntime.run(made, device=EMULATOR, compile_cache=False) as session:
        tokens = session.tokenize(evaluation_text()[0])[:CONTEXT]
        found = np.concatenate(list(session.score(tokens)))
        context = session.context()
        context.prefill(tokens[:40])
        stepped = np.stack([context.step(token) for token in tokens[40:44]])
        assert session.placement.operators == {EMULATOR: 1.0}
        assert session.conditions["kv_cache"] == ("u8" if precision == "a8w8" else "f16")
    weights = hooks.edgecore_weights(made)
    assert weights is not None
    with open_checkpoint(fixtures.language_model()) as model:
        given = {name: _Given(name, weights[name]) for name in model.tensors}
        wanted = np.concatenate(list(Oracle(model.decoder, given).score(tokens)))  # type: ignore[arg-type]
    most = {"a16w8": 1e-5, "a8w8": 2e-3, "a16w4": 1e-4}[precision]
    assert divergence(wanted, found).mean() < most < bounds().kernel("int8")
    assert divergence(wanted[40:44], stepped).mean() < most


class _Given:
    """A weight as the oracle reads it."""

    def __init__(self, name: str, values: Any) -> None:
        self.name, self.values, self.shape = name, values, values.shape

    def read(self) -> Any:
        return self.values

    def rows(self, start: int, stop: int) -> Any:
        return self.values[start:stop]


def test_prefill_and_decode_share_weights_and_encodings(quantized: Quantized) -> None:
    made = quantized("a8w8")
    graphs = [onnx.load(made.path / name, load_external_data=False).graph for name in (PREFILL, DECODE)]
    shared = [
        {t.name: [(e.key, e.value) for e in t.external_data] for t in graph.initializer if t.external_data}
        for graph in graphs
    ]
    assert shared[0] == shared[1]
    assert len({entry for entries in shared[0].values() for entry in map(tuple, entries)}) > 2 * 36
    encodings = [
        {
            node.output[0]: list(node.input[1:])
            for node in graph.node
            if node.op_type == "QuantizeLinear" and node.output[0].startswith("present.")
        }
        for graph in graphs
    ]
    assert encodings[0] == encodings[1]
    assert len(encodings[0]) == 10


def test_the_same_request_gives_the_same_bytes(quantized: Quantized) -> None:
    first, second = quantized("a16w8"), quantized("a16w8")
    for file in first.path.iterdir():
        assert file.read_bytes() == (second.path / file.name).read_bytes()


def test_smoothing_changes_nothing_but_how_it_rounds_and_is_taken_back_where_weights_are_read(
    quantized: Quantized,
) -> None:
    made = [quantized("a8w8", smoothing=share) for share in (0.0, 0.7)]
    norm, matrix = "model.layers.0.input_layernorm.weight", "model.layers.0.self_attn.q_proj.weight"
    stored = [
        next(numpy_helper.to_array(t, str(one.path)) for t in graph.graph.initializer if t.name == norm)
        for one in made
        for graph in [onnx.load(one.path / PREFILL, load_external_data=False)]
    ]
    assert not np.allclose(*stored, rtol=0.05)
    plain, smooth = map(hooks.edgecore_weights, made)
    assert plain is not None
    assert smooth is not None
    assert np.allclose(plain[norm], smooth[norm], rtol=2e-3)
    assert np.allclose(plain[matrix], smooth[matrix], atol=0.02 * np.abs(plain[matrix]).max())


def test_products_in_which_8_bits_show_too_little_get_16(quantized: Quantized) -> None:
    def narrow(made: Artifact) -> int:
        nodes = onnx.load(made.path / PREFILL, load_external_data=False).graph.node
        return sum(node.op_type == "QuantizeLinear" and node.output[0].endswith("/levels8") for node in nodes)

    assert narrow(quantized("a16w8")) == 0
    assert narrow(quantized("a8w8", clearness=99.0)) == 0
    assert narrow(quantized("a8w8")) > 20


def test_ranges_of_8_bits_are_as_they_were_seen_and_of_16_symmetric_and_wider() -> None:
    narrow, wide = Encoding.over(-1.0, 3.0, 8), Encoding.over(-1.0, 3.0, 16, margin=1.1)
    assert narrow.zero == 64
    assert 4 <= narrow.scale * 255 < 4.01
    assert wide.zero == 32768
    assert 3.3 <= wide.scale * 32767 < 3.31


def test_outliers_leave_the_others_little() -> None:
    def seen(outlier: float) -> Range:
        found = Range.none(64)
        values = np.where(np.arange(64 * 64).reshape(64, 64) % 2, 1, -1).astype(np.float32)
        values[0, 0] = outlier
        found.of(values)
        return found

    assert seen(1).clearness(8) == pytest.approx(20 * np.log10(255 / 2 * 12**0.5), abs=0.01)
    assert seen(30).clearness(8) < seen(1).clearness(8) - 20
    assert seen(1).level - seen(1000).level == pytest.approx(60, abs=0.1)


def test_a_product_of_nothing_but_outliers_stays_in_float16(
    onnxruntime: Any, half: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize_htp, "LEAST_LEVEL", 55.0)
    monkeypatch.setattr(quantize_htp, "LEVEL_OF_4_BITS", 72.0)
    given = {"calibration": TEXT, "calibration_samples": 2, "algorithm": "rtn"}
    made = onnxruntime.quantize(half, tmp_path / "out", "a16w4", **given)
    kinds = {fallback.got for fallback in made.weights.fallbacks}
    assert kinds == {"f16", "int8"}
    left = [node for node in onnx.load(tmp_path / "out" / PREFILL, load_external_data=False).graph.node
            if node.op_type == "Gemm" and node.input[1].endswith(".weight")]  # fmt: skip
    assert {node.input[1] for node in left} == {f.tensor for f in made.weights.fallbacks if f.got == "f16"}


def test_no_text_no_ranges(onnxruntime: Any, half: Artifact, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="no text was given") as caught:
        onnxruntime.quantize(half, tmp_path / "out", "a16w8")
    assert "--calibration" in str(caught.value)


@pytest.mark.parametrize(
    ("precision", "option"),
    [("a16w8", {"smoothing": 0.5}), ("a16w4", {"clearness": 20.0}), ("a8w8", {"block_size": 32}),
     ("a16w4", {"algorithm": "k_quant"})],
)  # fmt: skip
def test_options_that_a_precision_has_not_are_refused(
    onnxruntime: Any, half: Artifact, tmp_path: Path, precision: str, option: dict[str, Any]
) -> None:
    with pytest.raises(BadRequest, match=next(iter(option))):
        onnxruntime.quantize(half, tmp_path / "out", precision, calibration=TEXT, **option)


def test_what_is_quantized_already_and_precisions_of_a_cpu_are_refused(
    onnxruntime: Any, quantized: Quantized, half: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModel, match="quantized or compiled already"):
        onnxruntime.quantize(quantized("a16w8"), tmp_path / "a", "a16w4", calibration=TEXT)
    with pytest.raises(UnsupportedPrecision, match="int4"):
        onnxruntime.quantize(half, tmp_path / "b", "int4", calibration=TEXT)


def test_a_cancelled_quantization_leaves_nothing(onnxruntime: Any, half: Artifact, tmp_path: Path) -> None:
    def progress(done: int, total: int, what: str) -> None:
        if what == "rounding" and done > total // 2:
            raise Cancelled("asked to stop")

    with pytest.raises(Cancelled):
        onnxruntime.quantize(half, tmp_path / "out", "a16w8", calibration=TEXT, progress=progress)
    assert not list((tmp_path / "out").iterdir())
    shutil.rmtree(tmp_path / "out")
