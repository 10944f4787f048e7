"""The reference of checks in the docs, made from the checks' own docstrings so that it cannot say something else.

python -m edgecore_conformance.pages > docs/checks.md
"""

from __future__ import annotations

import inspect
import sys

from edgecore_conformance.check import GROUPS, Check, all_checks

INTRODUCTION = """\
# What is checked

Every check of the conformance suite: what is done, why it matters, and what a failure usually means. Written from the
checks themselves by `python -m edgecore_conformance.pages`; a test holds the two together.
[How the suite is run, and what its words mean](conformance.md).
"""


def page() -> str:
    """The whole page, groups in their order."""
    checks = list(all_checks().values())
    parts = [INTRODUCTION, _contents(checks)]
    for group, title in GROUPS.items():
        inside = [c for c in checks if c.group() == group]
        parts.append(f"## {title[0].upper()}{title[1:]}\n")
        parts += [_about(c) for c in inside]
    return "\n".join(parts)


def _contents(checks: list[Check]) -> str:
    lines = ["| group | checks |", "|---|---|"]
    for group, title in GROUPS.items():
        links = [f"[{c.name().partition('.')[2]}](#{anchor(c)})" for c in checks if c.group() == group]
        lines.append(f"| {title} ({len(links)}) | {', '.join(links)} |")
    return "\n".join(lines) + "\n"


def anchor(check: Check) -> str:
    """`text.logits` as `text-logits`."""
    return check.name().replace(".", "-").replace("_", "-")


def _about(check: Check) -> str:
    text = inspect.cleandoc(type(check).__doc__ or "")
    body = text.partition("\n")[2].strip()
    summary = check.summary()
    levels = "levels quick and full" if "quick" in check.levels else "level full only"
    told = f"*{levels}; a row may take {check.seconds:g} s*"
    return f"### {check.name()} {{ #{anchor(check)} }}\n\n**{summary[0].upper()}{summary[1:]}**\n\n{body}\n\n{told}\n"


if __name__ == "__main__":
    sys.stdout.write(page())
