"""What `edgecore conformance run` collects: every row of the backend that was named, one test each."""

from __future__ import annotations

from typing import Any

from edgecore_conformance.authors import outcome_as_pytest


def test_conformance(conformance_outcome: Any) -> None:
    outcome_as_pytest(conformance_outcome)
