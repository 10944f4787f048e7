"""`edgecore chat`: turns through the model's own chat template, computing only what a turn adds."""

from __future__ import annotations

import sys
from typing import Any

import click

from edgecore.cli import options as shared
from edgecore.cli.output import Bars, note


@click.command()
@click.argument("model")
@click.option("--system", metavar="TEXT", help="System message.")
@shared.using
@shared.sampling
def command(model: str, system: str | None, **how: Any) -> None:
    """Talk with MODEL; an empty line or Ctrl-D ends it. Standard input may be a file with one turn a line."""
    from edgecore.cli._models import open_text, prepare
    from edgecore.cli.run import stream

    with Bars() as bars:
        runnable = prepare(model, how, bars)
    messages = [{"role": "system", "content": system}] if system else []
    with open_text(runnable, how) as session:
        if sys.stdin and sys.stdin.isatty():
            note("An empty line or Ctrl-D ends the chat; Ctrl-C ends an answer.")
        while turn := _ask():
            messages.append({"role": "user", "content": turn})
            answer = stream(session, session.encode_chat(messages), how, show=True, chat=True)
            messages.append({"role": "assistant", "content": answer["text"]})


def _ask() -> str:
    if sys.stdin is None:
        return ""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""
