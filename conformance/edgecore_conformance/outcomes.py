"""What can become of a check: each outcome its own word, never merged with another."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class Outcome(StrEnum):
    """From the best to the worst; an aggregate is the worst of its parts."""

    PASSED = "passed"
    NOT_APPLICABLE = "not_applicable"
    """The plugin has nothing of the kind: a text check for a plugin without text."""
    UNSUPPORTED = "unsupported"
    """Declared absent, and seen to raise the typed error; or a variant of a claimed family that is refused so, or of
    which convert says that it is answered otherwise."""
    XFAIL = "xfail"
    """Failed, as the plugin's own conformance.toml says it would."""
    DISABLED = "disabled"
    """Not run, because the plugin's own conformance.toml says so."""
    UNAVAILABLE = "unavailable"
    """Cannot be run here: no such device, no such file, no network."""
    UNPLACED = "unplaced"
    """The answer was right, and nobody knows where it came from."""
    FELL_BACK = "fell_back"
    """The answer was right, and it ran elsewhere than was asked."""
    XPASS = "xpass"
    """Passed, though conformance.toml says that it fails: the entry is out of date."""
    FAILED = "failed"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    """The worker died."""
    ERROR = "error"
    """The suite itself failed; says nothing of the plugin."""
    MISSING = "missing"
    """Selected, and no row says what became of it."""

    @property
    def good(self) -> bool:
        """Whether a run with this outcome may end with exit code 0."""
        return self in _GOOD

    @property
    def proves(self) -> bool:
        """Whether a claim may lean on it."""
        return self in (Outcome.PASSED, Outcome.NOT_APPLICABLE, Outcome.UNSUPPORTED)


_GOOD = frozenset(list(Outcome)[:6])


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """The worst of them; `MISSING` of none."""
    order = list(Outcome)
    return max(outcomes, key=order.index, default=Outcome.MISSING)
