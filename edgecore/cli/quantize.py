"""`edgecore quantize`."""

from __future__ import annotations

from typing import Any

import click

from edgecore.cli import options as shared


@click.command()
@click.argument("model")
@shared.making
def command(model: str, **how: Any) -> None:
    """Turn MODEL, an artifact or a native file, into a smaller precision, compared with its source.

    Prints the artifact's id on standard output; where it lies and what it is on standard error.
    """
    from edgecore.cli._making import make
    from edgecore.verbs.making import quantize

    make(quantize, model, how)
