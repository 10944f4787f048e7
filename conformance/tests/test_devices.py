"""A run is about its device: it asks for what is claimed there, as the core would, within what an emulator can do."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mutants import TRUTHFUL, Mutant, write_mutant
from mutants.catching import bench_of

from edgecore import registry
from edgecore.contract.manifest import Claim, Device, Manifest
from edgecore_conformance import tensor_models as models
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import CHECKS, Check, all_checks, row_id
from edgecore_conformance.checks import tensor_operators
from edgecore_conformance.known import EMULATED_CONTEXT, LONG, PATIENCE, SCRIPTED, TRAINED, Known, concerning
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.outcomes import Outcome
from edgecore_conformance.running import inapplicable, judged, rows_of, run_row

NPU = "npu-emulator"


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mutant(TRUTHFUL["emulator"], tmp_path_factory.mktemp("emulator") / "plugin")


@pytest.fixture(scope="module")
def manifest(plugin: Path) -> Manifest:
    return registry.find(plugin).ready_manifest


@pytest.fixture(scope="module")
def bench(plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = bench_of(plugin, tmp_path_factory.mktemp("work"), NPU)
    made.begin(120)
    yield made
    made.close()


def rows(manifest: Manifest, device: str) -> list[str]:
    known = Known(manifest, device)
    return [row_id(c.name(), cell) for c in all_checks().values() for cell in rows_of(c, known)]


def test_what_is_known_of_a_plugin_is_what_it_claims_on_the_device_of_the_run(manifest: Manifest) -> None:
    here, there = (Known(manifest, device).manifest for device in (NPU, "cpu"))
    assert ([f.name for f in here.formats], [p.name for p in here.precisions]) == (["static"], ["f16", "q8_0"])
    assert ([f.name for f in there.formats], [p.name for p in there.precisions]) == (["rounded"], ["f16", "q4_0"])
    assert {c.device for c in here.claims} == {NPU}
    assert Known(manifest, NPU).whole == manifest
    assert here.devices == manifest.devices


def test_what_no_claim_names_concerns_every_device_and_a_device_without_claims_everything(manifest: Manifest) -> None:
    opened = replace(manifest.formats[0], name="blob")
    wider = replace(manifest, formats=(*manifest.formats, opened), devices=(*manifest.devices, Device("gpu")))
    assert [f.name for f in concerning(wider, NPU).formats] == ["static", "blob"]
    assert concerning(wider, "gpu") == wider


def test_rows_ask_for_what_is_claimed_there_and_for_nothing_that_only_another_device_has(manifest: Manifest) -> None:
    here, there = rows(manifest, NPU), rows(manifest, "cpu")
    assert "convert.opens[format=static,precision=f16,source=huggingface]" in here
    assert "quantize.quality[precision=q8_0]" in here
    assert "quantize.quality[precision=q4_0]" in there
    assert [r for r in here if "rounded" in r or ("q4_0" in r and "quantize.unknown" not in r)] == []
    assert "quantize.unknown[asked=q4_0]" in here, "the precision of the other format is asked for in vain"
    assert "quantize.unknown[asked=q8_0]" in there


def test_requests_are_those_of_the_core_in_the_format_of_the_device_and_for_few_tokens(bench: Bench) -> None:
    made, quantized = bench.artifact(TRAINED), bench.artifact(TRAINED, "q8_0")
    assert (made.format, made.precision, made.context_length) == ("static", "f16", EMULATED_CONTEXT)
    assert (quantized.format, quantized.precision) == ("static", "q8_0")
    with bench.text_session(TRAINED, "q8_0") as session:
        assert session.context_length == EMULATED_CONTEXT
        assert session.conditions["device"] == NPU


def test_a_context_is_what_the_model_was_trained_for_unless_the_device_is_emulated(manifest: Manifest) -> None:
    here, there = Known(manifest, NPU), Known(manifest, "cpu")
    assert [(k.emulated, k.max_context, k.context(TRAINED)) for k in (here, there)] == [
        (True, EMULATED_CONTEXT, EMULATED_CONTEXT), (False, None, 512),
    ]  # fmt: skip
    assert (here.patient(10), there.patient(10)) == (10 * PATIENCE, 10)


def _longest(check: Check, known: Known) -> int:
    """The longest text or prompt with its answer that a check asks about in any of its rows."""
    longest = 0
    for cell in rows_of(check, known):
        asked = check.inputs(known, cell)  # type: ignore[attr-defined]
        cases = asked.get("cases", [])
        for case in cases.values() if isinstance(cases, dict) else cases:
            longest = max(longest, len(case["prompt"]) + case.get("max_tokens", 0))
        for text in [*asked.get("texts", ()), *asked.get("others", ())]:
            longest = max(longest, len(text))
        held: dict[int, int] = {}
        for who, call, argument in asked.get("operations", ()):
            held[who] = {"reset": 0, "rewind": held.get(who, 0) - (argument if call == "rewind" else 0)}.get(
                call, held.get(who, 0) + (len(argument) if isinstance(argument, list) else 0)
            )
            assert held[who] >= 0, check.name()
            longest = max(longest, held[who])
    return longest


@pytest.mark.parametrize("seed", range(4))
def test_what_is_asked_of_an_emulated_device_fits_into_its_context(manifest: Manifest, seed: int) -> None:
    claimed = [Claim("text", f, "static", "f16", NPU) for f in ("mistral", "gemma3", "phi3", "qwen3")]
    known = Known(replace(manifest, claims=(*manifest.claims, *claimed)), NPU, seed=seed)
    longest = {
        name: _longest(check, known)
        for name, check in all_checks().items()
        if hasattr(check, "inputs") and inapplicable(check, known) is None
    }
    assert {name: count for name, count in longest.items() if count > EMULATED_CONTEXT} == {}
    assert (longest["text.reset"], longest["text.logits"]) == (EMULATED_CONTEXT - 3, EMULATED_CONTEXT)


def test_what_cannot_be_asked_of_an_emulated_device_is_not_applicable_and_says_why(
    manifest: Manifest, bench: Bench, tmp_path: Path
) -> None:
    row = run_row(CHECKS["text.long"], {}, bench, tmp_path)
    assert row.outcome is Outcome.NOT_APPLICABLE
    assert row.message == "models for npu-emulator, which is emulated, hold 64 tokens in this suite"
    timed = run_row(CHECKS["benchmark.clock"], {}, bench, tmp_path)
    assert (timed.outcome, timed.raw) == (Outcome.NOT_APPLICABLE, {})
    assert "its times are no speed" in timed.message
    assert inapplicable(CHECKS["text.long"], Known(manifest, "cpu")) is None


def test_two_sets_of_rotary_factors_are_one_where_the_context_ends_before_the_second(manifest: Manifest) -> None:
    from edgecore_conformance.checks.text_common import border

    assert border(Known(manifest, "cpu"), "phi3") == 256
    assert border(Known(manifest, NPU), "phi3") == 0


def test_fixtures_hold_more_than_an_emulated_device_is_asked_for(manifest: Manifest) -> None:
    known = Known(manifest, "cpu")
    assert min(known.context(name) for name in (TRAINED, SCRIPTED, LONG)) > EMULATED_CONTEXT


# ---- one recommended precision of a class on each device ----


def test_a_class_may_have_a_recommended_precision_on_each_device_and_not_two_on_one(manifest: Manifest) -> None:
    hooks = ["probe", "convert", "quantize", "run", "weights"]

    def said(manifest: Manifest) -> list[str]:
        verdict = Judgement()
        CHECKS["manifest.hooks"].judge(Observation({"hooks": hooks}), {}, Known(manifest, NPU), verdict)
        return verdict.problems

    f16, q8, q4 = manifest.precisions
    other = replace(q8, name="a16w8")
    claim = next(c for c in manifest.claims if c.precision == "q4_0")
    two = replace(manifest, precisions=(f16, q8, q4, other))
    assert said(replace(two, claims=(*two.claims, replace(claim, precision="a16w8")))) == []
    both = replace(two, claims=(*two.claims, replace(claim, precision="a16w8", format="static", device=NPU)))
    assert said(both) == ["several precisions of a class are recommended for text: medium (q8_0, a16w8)"]


# ---- operators of an accelerator ----

FAMILY = {"family": "onnx-opset-21"}


@pytest.fixture(scope="module")
def accelerated() -> Known:
    """The reference, as if its tensor claims were a 16-bit accelerator's."""
    declared = registry.find("reference").ready_manifest
    claims = (*declared.claims, Claim("tensor", FAMILY["family"], "onnx", "f16", "npu"))
    return Known(replace(declared, devices=(*declared.devices, Device("npu")), claims=claims), "npu")


def _answers(known: Known, times: float = 1.0) -> Observation:
    """Every case answered by what is due, with floats off by a factor."""
    seen = Observation({"cases": {}})
    for case in tensor_operators.chosen("quick", FAMILY):
        off = {
            name: (array * np.asarray(times, array.dtype)).astype(array.dtype) if array.dtype.kind == "f" else array
            for name, array in case.outputs.items()
        }
        facts = {"fed": models.digest(case.inputs), "answer": models.keep(off, case.name, seen.arrays)}
        seen.facts["cases"][case.name] = facts
    return seen


def _problems(seen: Observation, known: Known) -> list[str]:
    return judged(CHECKS["tensor.operators"], seen, FAMILY, known).problems


def test_an_accelerator_that_computes_in_16_bits_is_held_to_16_bits(accelerated: Known) -> None:
    assert _problems(_answers(accelerated), accelerated) == []
    assert _problems(_answers(accelerated, 1.01), accelerated) == []
    assert len(_problems(_answers(accelerated, 1.05), accelerated)) > 20
    cpu = Known(registry.find("reference").ready_manifest, "cpu")
    assert len(_problems(_answers(cpu, 1.01), cpu)) > 20


@pytest.mark.parametrize("error", ["UnsupportedModel", "PlacementRefused"])
def test_operators_that_an_accelerator_has_not_are_refusals_until_they_are_nearly_all(
    error: str, accelerated: Known
) -> None:
    seen = _answers(accelerated)
    cases = list(seen.facts["cases"])
    for count, good in ((round(0.8 * len(cases)), True), (round(0.9 * len(cases)), False)):
        changed = Observation(copy.deepcopy(seen.facts), seen.arrays)
        for name in cases[:count]:
            fed = changed.facts["cases"][name]["fed"]
            changed.facts["cases"][name] = {"fed": fed, "error": error, "what": "Loop is not supported"}
        assert (_problems(changed, accelerated) == []) is good


def test_on_a_processor_a_model_that_would_run_elsewhere_is_no_missing_operator() -> None:
    cpu = Known(registry.find("reference").ready_manifest, "cpu")
    seen = _answers(cpu)
    name = next(iter(seen.facts["cases"]))
    fed = seen.facts["cases"][name]["fed"]
    seen.facts["cases"][name] = {"fed": fed, "error": "PlacementRefused", "what": "on a gpu"}
    assert ["PlacementRefused: on a gpu" in p for p in _problems(seen, cpu)] == [True]


# ---- devices that take fixed shapes only ----

FIXED_ONLY = Mutant(
    "fixed_only",
    "none: an npu that says of open shapes that it has none",
    ("tensor.values",),
    """
@hookimpl
def edgecore_probe():
    found = truthful.edgecore_probe()
    return replace(found, devices=(*found.devices, ProbedDevice("npu", True, "an npu")))

@hookimpl
def edgecore_run(artifact, device, context_length, threads, options):
    session = truthful.edgecore_run(artifact, "cpu", context_length, threads, options)
    if device == "npu" and any(isinstance(n, str) for s in session.inputs for n in s.shape):
        session.close()
        raise UnsupportedModel("open shapes on an npu", supported="a conversion with fixed shapes")
    return session
""",
    manifest=(
        ('help = "numpy, through the BLAS that it was built with"', '[[devices]]\nname = "npu"'),
        ('precisions = ["f32"]\ndevices = ["cpu"]', 'precisions = ["f32"]\ndevices = ["cpu", "npu"]'),
    ),
)


@pytest.mark.parametrize(
    ("check", "cell", "outcome"),
    [
        ("tensor.values", {"precision": "f32"}, Outcome.PASSED),
        ("tensor.accuracy", {"precision": "f32"}, Outcome.PASSED),
        ("tensor.specs", {}, Outcome.PASSED),
        ("tensor.dynamic_shapes", {}, Outcome.UNSUPPORTED),
        ("convert.tensors", {"format": "onnx", "precision": "f32"}, Outcome.PASSED),
    ],
)
def test_tensor_models_have_fixed_shapes_for_a_device_that_takes_no_others(
    check: str, cell: dict[str, str], outcome: Outcome, tmp_path: Path
) -> None:
    bench = bench_of(write_mutant(FIXED_ONLY, tmp_path / "plugin"), tmp_path / "work", "npu")
    try:
        row = run_row(all_checks()[check], cell, bench, tmp_path / "bundle")
        assert (row.outcome, row.message) == (outcome, "")
        assert bench.fixed_shapes
    finally:
        bench.close()


def test_open_shapes_are_what_gets_a_size_and_a_damaged_file_has_none(tmp_path: Path, manifest: Manifest) -> None:
    known = Known(manifest, "cpu")
    drawn = models.graph(known, "x").write(tmp_path / "drawn.onnx")
    assert models.fixed(drawn) == {"zeta": (4, models.WIDE), "alpha": (4, models.NARROW)}
    name = models.input_name(models.classifier_feeds(1)[0])
    assert models.fixed(models.classifier_feeds(1)[0])[name][0] == 1
    (tmp_path / "half.onnx").write_bytes(drawn.read_bytes()[:40])
    assert models.fixed(tmp_path / "half.onnx") == {}
