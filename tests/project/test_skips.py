"""A test that does not run says what is missing and, where it can be had, how to get it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = [
    path
    for folder in (ROOT / "tests", ROOT / "conformance" / "tests", *ROOT.glob("plugins/*/tests"))
    for path in sorted(folder.rglob("test_*.py"))
]


def reasons(path: Path) -> Iterator[tuple[int, str | None]]:
    """Line and reason of each call that skips; None for one without a reason."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if node.func.attr not in ("skip", "skipif", "importorskip") or "pytest" not in ast.unparse(node.func):
            continue
        named = [k.value for k in node.keywords if k.arg == "reason"]
        said = named or (node.args if node.func.attr == "skip" else [])
        yield node.lineno, ast.unparse(said[0]).strip("f'\"") if said else None


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_skip_says_why(path: Path) -> None:
    for line, reason in reasons(path):
        assert reason is not None, f"{path}:{line}: a skip without a reason"
        assert len(reason.split()) > 2, f"{path}:{line}: {reason!r} tells nobody what to do"
