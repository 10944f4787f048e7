"""The tensor fixtures: a classifier whose accuracy is known, and operator cases that onnx's own reference passes."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from edgecore_conformance import fixtures

ACCURACY = 352 / 360
QUICK = fixtures.operator_cases("quick")


def test_the_classifier_hits_what_it_was_published_to_hit_in_any_batch() -> None:
    found = fixtures.classifier()
    assert found.images.shape == (360, 1, 8, 8)
    assert found.labels.shape == (360,)
    evaluator = ReferenceEvaluator(onnx.load(found.model))
    batches = [evaluator.run(None, {"image": found.images[a:b]})[0] for a, b in ((0, 1), (1, 8), (8, 360))]
    logits = np.concatenate(batches)
    print(f"accuracy {found.accuracy(logits):.4f}")
    assert logits.shape == (360, 10)
    assert found.accuracy(logits) == pytest.approx(ACCURACY, abs=1e-9)


def test_the_classifiers_batch_is_a_symbol_and_its_files_are_small() -> None:
    found = fixtures.classifier()
    onnx.checker.check_model(onnx.load(found.model), full_check=True)
    dims = onnx.load(found.model).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["batch", 1, 8, 8]
    assert all(file.stat().st_size < 200_000 for file in found.model.parent.iterdir())


def test_calibration_images_are_a_folder_of_feeds_and_none_of_those_that_are_scored(tmp_path: Path) -> None:
    found = fixtures.classifier()
    files = sorted(found.calibration_folder(tmp_path / "feeds").iterdir())
    feeds = np.concatenate([np.load(file)["image"] for file in files])
    assert np.array_equal(feeds, found.calibration)
    assert not {i.tobytes() for i in feeds} & {i.tobytes() for i in found.images}


def test_quick_is_a_hundred_cases_over_a_hundred_operators_in_the_committed_order() -> None:
    names = (Path(fixtures.operators.FROZEN).parent / "operators-quick.txt").read_text().split()
    assert [case.name for case in QUICK] == [name.removeprefix("test_") for name in names]
    assert (len(QUICK), len({case.operator for case in QUICK})) == (100, 100)
    assert {case.opset for case in QUICK} == {11, 21}


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_onnxs_reference_passes_the_case(case: fixtures.OperatorCase) -> None:
    answers = ReferenceEvaluator(onnx.load_from_string(case.model)).run(None, dict(case.inputs))
    for answer, expected in zip(answers, case.outputs.values(), strict=True):
        assert np.asarray(answer).dtype == expected.dtype
        np.testing.assert_allclose(answer, expected, case.rtol, case.atol)


def test_a_case_is_fed_by_the_names_of_its_model() -> None:
    for case in QUICK:
        graph = onnx.load_from_string(case.model).graph
        assert list(case.inputs) == [value.name for value in graph.input], case.name
        assert list(case.outputs) == [value.name for value in graph.output], case.name
        assert not [i for i in (*case.inputs.values(), *case.outputs.values()) if i.dtype == object], case.name


@pytest.mark.slow
def test_full_has_every_case_of_tensors_and_says_why_it_leaves_out_the_others() -> None:
    state = np.random.get_state()[1].tolist()
    cases, excluded = fixtures.operator_cases("full"), fixtures.excluded_cases()
    assert np.random.get_state()[1].tolist() == state, "the cases seed the old generator; ours is not theirs"
    reasons = {reason: sum(1 for r in excluded.values() if r == reason) for reason in excluded.values()}
    print(len(cases), "cases,", len({c.operator for c in cases}), "operators; left out:", reasons)
    assert tuple(cases[:100]) == tuple(QUICK)
    assert len({case.name for case in cases}) == len(cases) > 1500
    assert not {case.name for case in cases} & set(excluded)
    assert {"identity_sequence", "equal_string", "bernoulli", "adam"} <= set(excluded)
    types = {np.dtype(array.dtype) for case in cases for array in (*case.inputs.values(), *case.outputs.values())}
    assert {np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.int4)} <= types
    expanded = next(case for case in cases if case.name.startswith("softplus_expanded"))
    assert (expanded.operator, expanded.expanded) == ("Softplus", True)
