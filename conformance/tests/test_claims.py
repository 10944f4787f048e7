"""What a claim needs to be proven, and what each kind of row does to the claims that it speaks of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from edgecore.contract.manifest import Manifest, parse
from edgecore_conformance.check import all_checks, row_id
from edgecore_conformance.claims import ClaimState, Finding, counted, find_claims
from edgecore_conformance.known import Known
from edgecore_conformance.outcomes import Outcome
from edgecore_conformance.rows import Row
from edgecore_conformance.running import rows_of


def manifest(emulated: bool = False) -> Manifest:
    """Two families in two precisions on two devices, and one tensor claim: nine claims."""
    claims = {"families": ["llama", "phi3"], "formats": ["f"], "precisions": ["f16", "q4"], "devices": ["cpu", "gpu"]}
    tensor = {"families": ["onnx"], "formats": ["t"], "precisions": ["f16"], "devices": ["cpu"]}
    data: dict[str, Any] = {
        "name": "m", "title": "M", "summary": "s", "contract": "1.0", "hooks": "m.hooks", "distribution": "m",
        "runtime": {"distribution": "numpy"},
        "devices": [{"name": "cpu", "emulated": emulated}, {"name": "gpu"}],
        "formats": [{"name": "f", "task": "text"}, {"name": "t", "task": "tensor"}],
        "precisions": [{"name": "f16", "bits": 16}, {"name": "q4", "bits": 4}],
        "claims": [{"task": "text", **claims}, {"task": "tensor", **tensor}],
    }  # fmt: skip
    return parse(data, "test")


EVERY = {
    "manifest.probe": {},
    "text.logits[family=llama]": {"family": "llama"},
    "text.logits[family=phi3]": {"family": "phi3"},
    "text.quality[precision=f16]": {"precision": "f16"},
    "text.quality[precision=q4]": {"precision": "q4"},
    "tensor.values[family=onnx]": {"family": "onnx", "precision": "f16"},
}


def row(identity: str, outcome: Outcome = Outcome.PASSED, **more: Any) -> Row:
    proves: Mapping[str, str] = EVERY[identity]
    return Row(identity, identity.partition("[")[0], dict(proves), outcome, proves=proves, **more)


def found(emulated: bool = False, without: str = "", **outcomes: Outcome) -> dict[tuple[str, str], Finding]:
    """The findings about the CPU, by family and precision; outcomes by the end of a row's id."""
    rows = []
    for identity in EVERY:
        word = identity.rpartition("=")[2].rstrip("]").rpartition(".")[2]
        if word != without:
            rows.append(row(identity, outcomes.get(word, Outcome.PASSED)))
    made = find_claims(manifest(emulated), "cpu", rows, list(EVERY.items()))
    assert len(made) == 9
    return {(f.claim.family, f.claim.precision): f for f in made if f.claim.device == "cpu"}


def states(findings: Mapping[tuple[str, str], Finding]) -> dict[str, str]:
    return {"-".join(claim): finding.state.value for claim, finding in findings.items()}


def test_all_rows_good_prove_every_claim_about_the_device() -> None:
    made = found()
    assert {f.state for f in made.values()} == {ClaimState.PROVEN}
    assert (made["llama", "q4"].good, made["llama", "q4"].rows) == (3, 3)
    assert counted(made.values(), "cpu") == {"claimed": 5, "proven": 5, "emulated": 0, "unproven": 0, "refuted": 0}


def test_on_an_emulator_nothing_is_proven() -> None:
    assert set(states(found(emulated=True)).values()) == {"emulated"}


def test_claims_about_another_device_are_unproven() -> None:
    made = find_claims(manifest(), "cpu", [row(i) for i in EVERY], list(EVERY.items()))
    gpu = [f for f in made if f.claim.device == "gpu"]
    assert {f.state for f in gpu} == {ClaimState.UNPROVEN}
    assert gpu[0].because == ("about gpu, this run is about cpu",)


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.TIMEOUT, Outcome.CRASHED, Outcome.FELL_BACK])
def test_a_bad_row_refutes_the_claims_that_it_speaks_of(outcome: Outcome) -> None:
    made = found(phi3=outcome)
    assert states(made) == {
        "llama-f16": "proven", "llama-q4": "proven", "phi3-f16": "refuted", "phi3-q4": "refuted", "onnx-f16": "proven",
    }  # fmt: skip
    assert made["phi3", "q4"].because == (f"text.logits[family=phi3]: {outcome.value}",)
    assert (made["phi3", "q4"].good, made["phi3", "q4"].rows) == (2, 3)


SILENT = (
    Outcome.UNPLACED, Outcome.UNAVAILABLE, Outcome.DISABLED, Outcome.XFAIL, Outcome.XPASS, Outcome.ERROR,
    Outcome.MISSING,
)  # fmt: skip


@pytest.mark.parametrize("outcome", SILENT)
def test_a_row_that_says_nothing_leaves_its_claims_unproven(outcome: Outcome) -> None:
    made = states(found(q4=outcome))
    assert {claim for claim, state in made.items() if state == "unproven"} == {"llama-q4", "phi3-q4"}
    assert "refuted" not in made.values()


def test_a_row_of_the_tensor_group_says_nothing_of_text() -> None:
    assert [c for c, s in states(found(onnx=Outcome.FAILED)).items() if s == "refuted"] == ["onnx-f16"]


def test_a_row_that_names_no_claim_speaks_of_all() -> None:
    assert set(states(found(probe=Outcome.FAILED)).values()) == {"refuted"}


def test_rows_that_were_not_selected_prove_nothing() -> None:
    made = found(without="phi3")
    assert made["phi3", "f16"].state is ClaimState.UNPROVEN
    assert made["phi3", "f16"].because == ("text.logits[family=phi3]: not selected",)
    assert made["llama", "f16"].state is ClaimState.PROVEN


def test_a_precision_that_nothing_ran_is_unproven() -> None:
    made = found(q4=Outcome.NOT_APPLICABLE)
    assert made["llama", "q4"].because == ("no row ran precision q4",)


def test_a_pass_that_leans_on_an_exception_proves_nothing() -> None:
    rows = [row(i, exception={"kind": "flaky"} if "llama" in i else {}) for i in EVERY]
    made = find_claims(manifest(), "cpu", rows, list(EVERY.items()))
    llama = [f for f in made if f.claim.family == "llama" and f.claim.device == "cpu"]
    assert {f.state for f in llama} == {ClaimState.UNPROVEN}
    assert llama[0].because == ("text.logits[family=llama]: passed (flaky)",)


def test_many_reasons_are_counted_and_not_all_told() -> None:
    many = {f"text.many[precision=f16,n={n}]": {"precision": "f16"} for n in range(9)}
    rows = [Row(i, "text.many", {}, Outcome.FAILED, proves=p) for i, p in many.items()]
    made = find_claims(manifest(), "cpu", rows, list(many.items()))[0]
    assert len(made.because) == 6
    assert made.because[-1] == "and 4 more"


BOTH: dict[str, Any] = {
    "name": "m", "title": "M", "summary": "s", "contract": "1.0", "hooks": "m.hooks", "distribution": "m",
    "runtime": {"distribution": "numpy"}, "sources": ["huggingface", "onnx"], "devices": [{"name": "cpu"}],
    "formats": [{"name": "f", "task": "text"}, {"name": "t", "task": "tensor"}],
    "precisions": [{"name": "f16", "bits": 16, "by": "convert"}, {"name": "q8", "bits": 8, "by": "quantize"}],
    "options": {"run": [{"name": "fast", "type": "bool", "default": True}]},
    "claims": [
        {"task": "text", "families": ["llama"], "formats": ["f"], "precisions": ["f16", "q8"], "devices": ["cpu"]},
        {"task": "tensor", "families": ["onnx-opset-21"], "formats": ["t"], "precisions": ["f16", "q8"],
         "devices": ["cpu"]},
    ],
}  # fmt: skip
"""A plugin whose precisions are claimed for text and for tensors alike."""


def refuted_by(failed: str) -> set[str]:
    """Claims of `BOTH` that are refuted where every row of the suite passed, but those whose id begins so. All others
    must be proven."""
    made = parse(BOTH, "test")
    known = Known(made, "cpu")
    pairs = [(c, cell) for c in all_checks().values() for cell in rows_of(c, known)]
    every = [(row_id(c.name(), cell), c.proves(made, cell)) for c, cell in pairs]
    rows = [
        Row(i, i.partition("[")[0], {}, Outcome.FAILED if i.startswith(failed) else Outcome.PASSED, proves=proves)
        for i, proves in every
    ]
    assert any(r.outcome is Outcome.FAILED for r in rows)
    found = {f"{f.claim.task}-{f.claim.precision}": f.state for f in find_claims(made, "cpu", rows, every)}
    refuted = {claim for claim, state in found.items() if state is ClaimState.REFUTED}
    assert {found[claim] for claim in found if claim not in refuted} <= {ClaimState.PROVEN}
    return refuted


TEXT, TENSOR = {"text-f16", "text-q8"}, {"tensor-f16", "tensor-q8"}


@pytest.mark.parametrize(
    ("failed", "refuted"),
    [
        ("manifest.probe", TEXT | TENSOR),
        ("manifest.options", TEXT),
        ("convert.opens[format=f,precision=f16", {"text-f16"}),
        ("convert.tensors[format=t,precision=f16", {"tensor-f16"}),
        ("convert.cancel", TEXT),
        ("convert.source[source=huggingface", TEXT),
        ("convert.source[source=onnx", TENSOR),
        ("convert.corrupt[fault=truncated,source=onnx", TENSOR),
        ("quantize.size[precision=q8]", {"text-q8"}),
        ("quantize.size[precision=q8,task=tensor", {"tensor-q8"}),
        ("quantize.source[precision=q8,task=tensor", {"tensor-q8"}),
        ("quantize.unknown[asked=q7_nobody,task=tensor", TENSOR),
        ("quantize.quality[precision=q8", {"text-q8"}),
        ("quantize.weights[precision=q8", {"text-q8"}),
        ("quantize.garbage", TEXT),
        ("quantize.killed", TEXT),
        ("text.stop", TEXT),
        ("tensor.values[precision=q8", {"tensor-q8"}),
        ("benchmark.clock", TEXT),
        ("benchmark.tensor", TENSOR),
        ("placement.where[task=tensor", TENSOR),
        ("robustness.rounds", TEXT),
        ("robustness.interrupt", TEXT),
    ],
)
def test_a_row_speaks_of_the_claims_that_it_is_evidence_for_and_of_no_other(failed: str, refuted: set[str]) -> None:
    assert refuted_by(failed) == refuted


@pytest.mark.parametrize("task", ["text", "tensor"])
def test_conversions_of_a_plugin_of_one_task_speak_of_its_claims(task: str) -> None:
    one = parse({**BOTH, **{part: [p for p in BOTH[part] if p["task"] == task] for part in ("formats", "claims")}}, "t")
    check = all_checks()["convert.killed"]
    assert check.applies(one)
    assert check.proves(one, {}) == {"task": task}


def test_tensor_models_of_a_format_that_onnx_does_not_lead_to_are_none_that_the_suite_has() -> None:
    """A plugin that opens functions of its runtime: there is no row about a tensor model, and the rest is as before."""
    formats = [*BOTH["formats"][:1], {"name": "functions", "task": "tensor", "suffixes": [".fn"]}]
    own = parse({**BOTH, "sources": ["huggingface"], "formats": formats, "claims": BOTH["claims"][:1]}, "t")
    known = Known(own, "cpu")
    every = [(c.name(), cell) for c in all_checks().values() if c.applies(own) for cell in rows_of(c, known)]
    assert [(name, cell) for name, cell in every if name.startswith("tensor.") or cell.get("task") == "tensor"] == []
    assert "benchmark.tensor" not in {name for name, _ in every}
    assert {"placement.where", "text.logits"} <= {name for name, _ in every}
