"""The suite is tested by plugins that are wrong: each mutant must be caught by every check that is named beside it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet
from mutants import MUTANTS, Mutant
from mutants.catching import Converted, rows_of_mutant

from edgecore_conformance.check import GROUPS, all_checks

TIMED = ("benchmark", "placement")
"""Groups whose checks measure time and the processor: a neighbour would be measured as well."""


def _parameter(mutant: Mutant) -> ParameterSet:
    survives = pytest.mark.xfail(reason=mutant.missing, strict=True, raises=AssertionError)
    marks = [survives] if mutant.missing else []
    return pytest.param(mutant.name, marks=[*marks, *([pytest.mark.alone] if mutant.group in TIMED else [])])


@pytest.mark.parametrize("name", [_parameter(mutant) for mutant in MUTANTS.values()])
def test_a_mutant_is_caught_by_the_checks_that_name_its_fault(
    name: str, tmp_path: Path, converted: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant = MUTANTS[name]
    for variable in ("HOME", "TMPDIR"):  # mutants write where they should not
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    rows = rows_of_mutant(mutant, tmp_path, converted)
    for check in mutant.caught_by:
        mine = [row for row in rows if row.check == check]
        seen = "\n".join(f"{row.row}: {row.outcome.value}: {row.message}" for row in mine)
        assert any(row.outcome in mutant.outcomes for row in mine), f"{mutant.fault}\n{seen or 'no row'}"


def test_every_group_of_checks_has_mutants() -> None:
    groups = Counter(mutant.group for mutant in MUTANTS.values())
    assert set(groups) == set(GROUPS)
    assert sum(groups.values()) >= 40


def test_every_mutant_names_checks_that_there_are() -> None:
    named = {check: mutant.name for mutant in MUTANTS.values() for check in mutant.caught_by}
    assert {check: name for check, name in named.items() if check not in all_checks()} == {}


def test_a_mutant_says_its_fault_in_words_of_its_own() -> None:
    faults = Counter(mutant.fault for mutant in MUTANTS.values())
    assert [fault for fault, times in faults.items() if times > 1] == []


def test_no_check_knows_a_mutant() -> None:
    sources = [file.read_text() for file in _suite().rglob("*.py")]
    assert not [name for name in MUTANTS if any(name in source for source in sources)]


def test_a_fault_that_the_manifest_cannot_hold_is_an_error_not_a_plugin_without_fault(tmp_path: Path) -> None:
    from mutants import write_mutant

    with pytest.raises(ValueError, match="has no 'devices = gpu'"):
        write_mutant(Mutant("x", "x", ("x.x",), manifest=(("devices = gpu", ""),)), tmp_path)


def _suite() -> Path:
    import edgecore_conformance

    return Path(edgecore_conformance.__file__).parent
