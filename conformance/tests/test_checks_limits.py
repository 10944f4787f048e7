"""`text.context`, where a plugin is wrong: what it refuses is seen and judged, it does not end the observation."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutants import MUTANTS
from mutants.catching import Converted, rows_of_mutant

from edgecore_conformance.outcomes import Outcome


@pytest.mark.parametrize(
    ("mutant", "said"),
    [
        ("prompt_cut_in_silence", "prompt of one too many: it raises nothing, not DoesNotFit"),
        ("failed_prefill_leaves_tokens", "prefill of one too many: the cache held 0 tokens, and is not as before"),
    ],
)
def test_a_refusal_of_what_fits_is_judged_beside_all_else(
    mutant: str, said: str, tmp_path: Path, converted: Converted
) -> None:
    (row,) = rows_of_mutant(MUTANTS[mutant], tmp_path, converted)
    assert (row.outcome, row.stage) == (Outcome.FAILED, "judge")
    assert "after a refusal: it fits, and raises DoesNotFit" in row.message
    assert said in row.message
