"""`edgecore build`."""

from __future__ import annotations

from typing import Any

import click

from edgecore.cli import options as shared


@click.command()
@click.argument("source")
@shared.making
def command(source: str, **how: Any) -> None:
    """Convert SOURCE and quantize it in one step, compared with the source before it is kept.

    With --profile, then compile it ahead of time for that machine.

    Prints the artifact's id on standard output; where it lies and what it is on standard error.
    """
    from edgecore.cli._making import make
    from edgecore.verbs.compiling import build

    make(build, source, how)
