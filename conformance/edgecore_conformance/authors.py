"""The authors' door: one class with one line, in the tests of a plugin.

from edgecore_conformance import BackendConformance

class TestMine(BackendConformance):
    backend = "mine"  # or the path of the plugin's folder
"""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from edgecore_conformance.outcomes import Outcome
from edgecore_conformance.rows import Row


class BackendConformance:
    """Subclass it with the name of a backend; every check becomes a test."""

    backend: ClassVar[str] = ""
    """Name of an installed backend, or path of a plugin under development."""
    device: ClassVar[str] = ""
    """A device of it; its first by default."""
    level: ClassVar[str] = "quick"

    def test_conformance(self, conformance_outcome: Any) -> None:
        outcome_as_pytest(conformance_outcome)


def outcome_as_pytest(row: Row) -> None:
    """A row as pytest knows it. The row itself, with its own word, is what the evidence keeps."""
    if row.outcome in (Outcome.PASSED, Outcome.UNSUPPORTED):
        return
    words = f"{row.outcome.value}: {row.message}" if row.message else row.outcome.value
    if row.outcome is Outcome.XFAIL:
        pytest.xfail(words)
    if row.outcome.good:
        pytest.skip(words)
    pytest.fail(words, pytrace=False)
