"""`edgecore logits`: lets anyone compare two backends with tools of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgecore.cli import options as shared
from edgecore.cli.output import Bars, emit_json, note
from edgecore.contract.errors import BadRequest

_path = click.Path(path_type=Path)


@click.command()
@click.argument("model")
@click.option("--tokens", type=_path, metavar="IN.npy", help="Token ids, int64 (T,).")
@click.option("--level", type=click.Choice(["quick", "full"]), help="Instead of --tokens: what `evaluate` scores.")
@click.option("--out", type=_path, required=True, metavar="OUT.npy", help="Logits, float32 (T, vocab).")
@click.option("-t", "--threads", type=click.IntRange(min=1), metavar="N", help="Threads.")
@shared.using
@shared.as_json
def command(model: str, tokens: Path | None, level: str | None, out: Path, as_json: bool, **how: Any) -> None:
    """Write the logits of every position of a token sequence, as MODEL's backend computes them."""
    from edgecore.cli._models import open_text, prepare
    from edgecore.quality import evaluation_text
    from edgecore.verbs.logits import read_tokens, write_logits
    from edgecore.verbs.verifying import scored_tokens

    if (tokens is None) == (level is None):
        raise BadRequest("logits of what?", supported="either --tokens IN.npy or --level quick|full")
    if tokens and out.exists() and out.samefile(tokens):
        raise BadRequest(f"{out} holds the tokens", supported="another name for the logits")
    ids = read_tokens(tokens) if tokens else []
    with Bars(quiet=as_json) as bars:
        runnable = prepare(model, how, bars, say=not as_json)
        with open_text(runnable, how | {"context_length": len(ids) or None}) as session:
            ids = ids or scored_tokens(session, *evaluation_text(level or "full"))
            shape = write_logits(session, ids, out, bars)
    emit_json({"out": str(out), "shape": shape}) if as_json else note(f"{out}: float32 {shape}")
