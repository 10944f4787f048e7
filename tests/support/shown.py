"""What the documentation shows: its pages, their blocks of code, and whether the command line takes a command shown."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click

from edgecore.cli import group

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "conformance/README.md")),
    *sorted(ROOT.glob("plugins/*/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [body for lang, _, body in BLOCK.findall(page.read_text(encoding="utf-8")) if lang == language]


def shown_commands(conformance: bool) -> list[tuple[str, str]]:
    """Page and command of every `$ edgecore ...` line: those of the conformance suite, which not every environment has,
    or all others."""
    lines = [
        (page.relative_to(ROOT).as_posix(), line[2:])
        for page in PAGES
        for body in blocks(page, "console")
        for line in body.splitlines()
        if line.startswith("$ edgecore ")
    ]
    return [(page, line) for page, line in lines if (line.split()[1] == "conformance") is conformance]


def takes(line: str) -> None:
    """Parses a command as the command line would, and does not run it. Raises click's own errors."""
    words = shlex.split(line.split(" | ")[0].split(" > ")[0])[1:]
    if words[0].startswith("-"):
        return
    command = group.get_command(click.Context(group, info_name="edgecore"), words[0])
    assert command is not None, line
    rest = words[1:]
    if isinstance(command, click.Group):
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context(words[0], rest)
