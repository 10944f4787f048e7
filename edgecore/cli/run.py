"""`edgecore run`: continue a prompt as a stream, or run a tensor model on feeds."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgecore.cli import options as shared
from edgecore.cli.output import Bars, emit_json, note, standard_input
from edgecore.contract.errors import BadRequest

if TYPE_CHECKING:
    from edgecore.contract.sessions import TextSession


@click.command()
@click.argument("model")
@click.option("-p", "--prompt", help="Prompt; `-` or none reads standard input.")
@click.option(
    "--inputs", type=click.Path(path_type=Path), metavar="FEEDS.npz", help="Feeds of a tensor model, by input name."
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="Write the answer (text) or the outputs (.npz) here.",
)
@shared.using
@shared.sampling
@shared.as_json
def command(model: str, prompt: str | None, inputs: Path | None, out: Path | None, as_json: bool, **how: Any) -> None:
    """Continue a prompt with MODEL (a source, a native file, an artifact's path or id), printed as it comes.

    Tensor models take --inputs feeds.npz and --out out.npz.
    """
    from edgecore.cli._models import prepare, tell_share

    with Bars(quiet=as_json) as bars:
        runnable = prepare(model, how, bars, say=not as_json)
    if runnable.artifact.task == "tensor":
        if inputs is None or out is None:
            raise BadRequest(
                f"{model} is a tensor model", hint=f"edgecore run {model} --inputs feeds.npz --out out.npz"
            )
        from edgecore.verbs.tensors import run_feeds

        shapes = run_feeds(
            runnable, inputs, out, threads=how["threads"], deadline=how["deadline"], ran=lambda s: tell_share(s, how)
        )
        emit_json({"out": str(out), "outputs": shapes}) if as_json else note(
            f"{out}: " + ", ".join(f"{n} {s}" for n, s in shapes.items())
        )
        return
    from edgecore.cli._models import open_text

    text = standard_input("prompt") if prompt is None or prompt == "-" else prompt
    with open_text(runnable, how) as session:
        tokens = session.tokenize(text)
        result = stream(session, tokens, how, show=not as_json)
        tell_share(session, how)
    if out:
        out.write_text(result["text"], encoding="utf-8")
    if as_json:
        emit_json(
            {"model": runnable.artifact.id or str(runnable.artifact.path), "prompt_tokens": len(tokens), **result}
        )


def stream(
    session: TextSession, tokens: list[int], how: dict[str, Any], show: bool, chat: bool = False
) -> dict[str, Any]:
    """Generate and print as it comes; the text, the ids, why it ended, and the times as a person felt them.

    In a chat earlier turns are not computed again, and Ctrl-C ends the answer instead of the command.
    """
    from edgecore.cli._models import sampling

    started = time.perf_counter()
    first, finish = None, ""
    text: list[str] = []
    ids: list[int] = []
    limit = None if how["max_tokens"] < 0 else how["max_tokens"]
    pieces = session.generate(tokens, max_tokens=limit, sampling=sampling(how), stop=how["stop"], reuse_cache=chat)
    try:
        for piece in pieces:
            first = first or time.perf_counter() - started
            if piece.token >= 0 and piece.finish != "eos":
                ids.append(piece.token)
            text.append(piece.text)
            finish = piece.finish
            if show and piece.text:
                sys.stdout.write(piece.text)
                sys.stdout.flush()
    except KeyboardInterrupt:
        if not chat:
            raise
        finish = "interrupted"
    if show:
        sys.stdout.write("\n")
        sys.stdout.flush()
    return {
        "text": "".join(text),
        "tokens": ids,
        "finish": finish,
        "time_to_first_token_s": first,
        "seconds": time.perf_counter() - started,
    }
