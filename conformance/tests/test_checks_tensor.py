"""Tensor checks on the reference plugin: each passes, and each fails when one thing in what was seen is changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from edgecore import registry
from edgecore_conformance import tensor_models as models
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import CHECKS
from edgecore_conformance.checks import tensor, tensor_operators
from edgecore_conformance.checks.tensor_memory import laid_out
from edgecore_conformance.known import Known
from edgecore_conformance.observation import Observation
from edgecore_conformance.outcomes import Outcome
from edgecore_conformance.running import judged

assert tensor
NAMES = ("values", "specs", "dynamic_shapes", "wrong_feeds", "feeds_layout", "outputs_kept", "history", "fixed_shapes")
FAMILY = {"family": "onnx-opset-21"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    entry = registry.find("reference")
    made = Bench(entry, Known(entry.ready_manifest, "cpu"), tmp_path_factory.mktemp("work"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def seen(bench: Bench) -> dict[str, Observation]:
    found: dict[str, Observation] = {}
    for name in NAMES:
        bench.begin(60)
        found[name] = CHECKS[f"tensor.{name}"].observe(bench, cell_of(name))
    return found


def cell_of(name: str) -> dict[str, str]:
    return {"precision": "f32"} if name == "values" else {}


def problems(name: str, observation: Observation, known: Known, cell: dict[str, str] | None = None) -> list[str]:
    return judged(CHECKS[f"tensor.{name}"], observation, cell_of(name) if cell is None else cell, known).problems


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_passes(name: str, seen: dict[str, Observation], bench: Bench) -> None:
    assert problems(name, seen[name], bench.known) == []


@pytest.mark.parametrize("name", NAMES)
def test_what_was_seen_survives_the_bundle(
    name: str, seen: dict[str, Observation], bench: Bench, tmp_path: Path
) -> None:
    seen[name].save(tmp_path / "row")
    assert problems(name, Observation.load(tmp_path / "row"), bench.known) == []


@pytest.mark.parametrize("name", NAMES)
def test_another_seed_s_answers_are_found(name: str, seen: dict[str, Observation], bench: Bench) -> None:
    other = Known(bench.manifest, "cpu", seed=7)
    assert problems(name, seen[name], other)


def _value(o: Observation) -> None:
    name = next(iter(o.arrays))
    o.arrays[name] = o.arrays[name].copy()
    o.arrays[name].flat[-1] += 0.01


def _not_finite(o: Observation) -> None:
    name = next(iter(o.arrays))
    o.arrays[name] = np.full_like(o.arrays[name], np.nan)


def _output_missing(o: Observation) -> None:
    next(iter(o.facts["calls"].values()))["answer"].popitem()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", [_value, _not_finite, _output_missing])
def test_one_wrong_value_or_missing_output_fails_every_check(
    name: str, change: Callable[[Observation], None], seen: dict[str, Observation], bench: Bench
) -> None:
    changed = copy.deepcopy(seen[name])
    change(changed)
    assert problems(name, changed, bench.known)


def _facts(name: str, **change: Any) -> Callable[[Observation], None]:
    def apply(o: Observation) -> None:
        target = o.facts
        *path, last = name.split("/")
        for part in path:
            target = target[int(part)] if isinstance(target, list) else target[part]
        target[int(last) if isinstance(target, list) else last] = change["to"]

    return apply


ANSWERED = {"answered": ["gate", "total"]}


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("specs", _facts("inputs/0/0", to="alpha"), "inputs"),
        ("specs", _facts("outputs/0/1", to="float64"), "stated as float64"),
        ("specs", _facts("inputs/0/2", to=["batch", 3]), "stated as ['batch', 3]"),
        (
            "dynamic_shapes",
            _facts("refused", to={"batch 3": {"error": "BadRequest", "what": "x"}}),
            "batch 3: BadRequest",
        ),
        ("wrong_feeds", _facts("said/missing zeta", to=ANSWERED), "missing zeta: BadRequest was due, came an answer"),
        ("wrong_feeds", _facts("said/width", to={"error": "PluginFault", "what": "boom"}), "came PluginFault boom"),
        ("wrong_feeds", _facts("said/float64", to={"error": "BadRequest", "what": "no"}), "does not name zeta"),
        ("feeds_layout", _facts("untouched/strided", to=False), "the caller's feeds were changed"),
        ("outputs_kept", _facts("writable/first", to=False), "read-only"),
        ("fixed_shapes", _facts("other", to=ANSWERED), "other shape"),
        ("fixed_shapes", _facts("inputs/0/1", to=["batch", 24]), "inputs are stated"),
    ],
)
def test_what_is_wrong_is_named(
    name: str, change: Callable[[Observation], None], words: str, seen: dict[str, Observation], bench: Bench
) -> None:
    changed = copy.deepcopy(seen[name])
    change(changed)
    assert words in "\n".join(problems(name, changed, bench.known))


def test_a_session_of_fixed_shape_is_unsupported_and_not_wrong(seen: dict[str, Observation], bench: Bench) -> None:
    fixed = copy.deepcopy(seen["dynamic_shapes"])
    for spec in fixed.facts["inputs"]:
        spec[2][0] = 3
    said = {"error": "BadRequest", "what": "input 'zeta' has shape"}
    fixed.facts["refused"] = {"batch 1": said, "batch 7": said}
    for label in ("batch 1", "batch 7", "again"):
        fixed.facts["calls"].pop(label)
    verdict = judged(CHECKS["tensor.dynamic_shapes"], fixed, {}, bench.known)
    assert verdict.outcome is Outcome.UNSUPPORTED


@pytest.fixture(scope="module")
def operators(bench: Bench) -> Observation:
    bench.begin(300)
    return CHECKS["tensor.operators"].observe(bench, FAMILY)


def test_the_operator_tier_is_counted_and_listed_by_operator(operators: Observation, bench: Bench) -> None:
    verdict = judged(CHECKS["tensor.operators"], operators, FAMILY, bench.known)
    assert verdict.problems == []
    figures = {f.name: f for f in verdict.figures}
    by_operator = [f for name, f in figures.items() if name.startswith("operator ")]
    cases = len(tensor_operators.chosen("quick", FAMILY))
    refused = figures["cases refused by a typed error"].value or 0
    assert sum(f.bound or 0 for f in by_operator) + refused == cases
    assert all(f.value == f.bound for f in by_operator)
    assert figures["cases right"].value == sum(f.value or 0 for f in by_operator)


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ({"error": "PluginFault", "what": "a fault\nlong"}, "PluginFault: a fault"),
        ({"error": "WorkerCrashed", "what": "signal 11"}, "WorkerCrashed: signal 11"),
        (None, "it was not run"),
        ({"fed": "other"}, "other inputs were fed"),
    ],
)
def test_a_case_that_fails_is_named_with_its_operator(
    to: dict[str, str] | None, words: str, operators: Observation, bench: Bench
) -> None:
    changed = Observation(copy.deepcopy(operators.facts), operators.arrays)
    case = tensor_operators.chosen("quick", FAMILY)[5]
    if to is None:
        del changed.facts["cases"][case.name]
    else:
        changed.facts["cases"][case.name] |= to
    found = problems("operators", changed, bench.known, FAMILY)
    assert len(found) == 1
    assert found[0].startswith(f"{case.name} ({case.operator}): {words}")


def test_refusals_are_no_failures_until_they_are_most(operators: Observation, bench: Bench) -> None:
    changed = Observation(copy.deepcopy(operators.facts), operators.arrays)
    cases = tensor_operators.chosen("quick", FAMILY)
    refusal = {"error": "UnsupportedModel", "what": "no such operator"}
    for case in cases[: len(cases) // 3]:
        changed.facts["cases"][case.name] |= refusal
    assert problems("operators", changed, bench.known, FAMILY) == []
    for case in cases:
        changed.facts["cases"][case.name] |= refusal
    assert "cases right 0 misses" in problems("operators", changed, bench.known, FAMILY)[0]


def test_a_claim_on_an_older_operator_set_leaves_newer_cases_out() -> None:
    older, newer = (tensor_operators.chosen("quick", {"family": f"onnx-opset-{n}"}) for n in (13, 21))
    assert 0 < len(older) < len(newer)
    assert max(case.opset for case in older) <= 13


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int64).reshape(2, 3),
        np.array(True),
        np.zeros((0, 3), np.float16),
        np.array([1.5, -2], ml_dtypes.bfloat16),
        np.array([[1, -2], [3, 7]], ml_dtypes.int4),
        np.array([1 + 2j], np.complex64),
        np.array(["a", "ü"], dtype=object),
    ],
)
def test_every_type_of_a_tensor_session_is_kept(array: np.ndarray[Any, Any], tmp_path: Path) -> None:
    made = Observation()
    made.facts["answer"] = models.keep({"out/1": array}, "case", made.arrays)
    made.save(tmp_path / "row")
    back = Observation.load(tmp_path / "row")
    found = models.kept(back.facts["answer"], "case", back.arrays)["out/1"]
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.tolist() == array.tolist()


def test_layouts_differ_in_memory_and_not_in_value() -> None:
    plain = np.arange(12, dtype=np.float32).reshape(3, 4)
    flags = {label: laid_out(plain, label) for label in ("read-only", "strided", "transposed", "reversed")}
    assert all(np.array_equal(array, plain) for array in flags.values())
    assert not flags["read-only"].flags.writeable
    assert not any(flags[label].flags.c_contiguous for label in ("strided", "transposed", "reversed"))


def test_accuracy_is_judged_against_what_it_was(bench: Bench) -> None:
    check, cell = CHECKS["tensor.accuracy"], {"precision": "f32"}
    bench.begin(120)
    seen = check.observe(bench, cell)
    assert judged(check, seen, cell, bench.known).problems == []
    worse = Observation(dict(seen.facts), {"answers": np.roll(seen.arrays["answers"], 1, axis=1)})
    found = "\n".join(judged(check, worse, cell, bench.known).problems)
    assert "accuracy after" in found
    assert "same answer as before" in found
    others = Observation({**seen.facts, "fed": "x"}, seen.arrays)
    assert judged(check, others, cell, bench.known).problems == ["other images were fed than are published"]


def test_every_check_of_the_group_has_a_page() -> None:
    mine = [c for c in CHECKS.values() if c.group() == "tensor"]
    assert len(mine) == 12
    assert all(len((check.__doc__ or "").split("\n\n")) >= 2 for check in mine)
