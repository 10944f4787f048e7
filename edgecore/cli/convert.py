"""`edgecore convert`."""

from __future__ import annotations

from typing import Any

import click

from edgecore.cli import options as shared


@click.command()
@click.argument("source")
@click.option(
    "--to",
    "format",
    metavar="FORMAT",
    help="gguf, hf (a Hugging Face folder), ...: the backend that makes it is found.",
)
@shared.making
def command(source: str, **how: Any) -> None:
    """Turn SOURCE into a backend's format, compared with the source before it is kept.

    Prints the artifact's id on standard output; where it lies and what it is on standard error.
    """
    from edgecore.cli._making import make
    from edgecore.verbs.making import convert

    make(convert, source, how)
