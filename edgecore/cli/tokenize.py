"""`edgecore tokenize`."""

from __future__ import annotations

from typing import Any

import click

from edgecore.cli import options as shared
from edgecore.cli.output import Bars, emit_json, standard_input, table


@click.command()
@click.argument("model")
@click.argument("text", required=False)
@click.option("--no-special", is_flag=True, help="Do not add what the model wants at the start (BOS).")
@click.option("--parse-special", is_flag=True, help="Special tokens that stand in the text are special.")
@click.option("--ids", is_flag=True, help="Print the ids alone, on one line.")
@shared.using
@shared.as_json
def command(
    model: str, text: str | None, no_special: bool, parse_special: bool, ids: bool, as_json: bool, **how: Any
) -> None:
    """Show the token ids of TEXT (or of standard input), as MODEL's backend makes them."""
    from edgecore.cli._models import open_text, prepare

    with Bars(quiet=as_json) as bars:
        runnable = prepare(model, how, bars, say=not as_json)
    with open_text(runnable, how) as session:
        tokens = session.tokenize(
            standard_input("text") if text is None else text, add_special=not no_special, parse_special=parse_special
        )
        pieces = [session.token_bytes(t).decode("utf-8", "replace") for t in tokens]
    if as_json:
        emit_json({"tokens": tokens, "pieces": pieces})
    elif ids:
        print(*tokens)
    else:
        print(table(("id", "text"), [(t, repr(p)) for t, p in zip(tokens, pieces, strict=True)], right=(0,)))
