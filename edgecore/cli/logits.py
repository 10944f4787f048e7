"""`edgecore logits`: lets anyone compare two backends with tools of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgecore.cli import options as shared
from edgecore.cli.output import Bars, emit_json, note


@click.command()
@click.argument("model")
@click.option(
    "--tokens", type=click.Path(path_type=Path), required=True, metavar="IN.npy", help="Token ids, int64 (T,)."
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="OUT.npy", help="Logits, float32 (T, vocab)."
)
@click.option("-t", "--threads", type=click.IntRange(min=1), metavar="N", help="Threads.")
@shared.using
@shared.as_json
def command(model: str, tokens: Path, out: Path, as_json: bool, **how: Any) -> None:
    """Write the logits of every position of a token sequence, as MODEL's backend computes them."""
    from edgecore.cli._models import open_text, prepare
    from edgecore.verbs.logits import read_tokens, write_logits

    ids = read_tokens(tokens)
    with Bars(quiet=as_json) as bars:
        runnable = prepare(model, how, bars, say=not as_json)
        with open_text(runnable, how | {"context_length": len(ids)}) as session:
            shape = write_logits(session, ids, out, bars)
    emit_json({"out": str(out), "shape": shape}) if as_json else note(f"{out}: float32 {shape}")
