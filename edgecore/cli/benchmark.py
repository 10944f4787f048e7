"""`edgecore benchmark`: one method for every backend, arms interleaved, quality beside speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgecore.cli import options as shared
from edgecore.cli.output import Bars, emit_json, note


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--prompt-tokens", type=click.IntRange(0), default=128, show_default=True, help="Length of the prompt.")
@click.option("-n", "decode_tokens", type=click.IntRange(0), default=64, show_default=True, help="Tokens to decode.")
@click.option("-c", "--ctx-size", "context_length", type=click.IntRange(1), metavar="TOKENS", help="Context.")
@click.option("-t", "--threads", type=click.IntRange(1), metavar="N", help="Threads; default: what may be used.")
@click.option("--pairs", type=click.IntRange(1), default=10, show_default=True, help="Interleaved rounds.")
@click.option(
    "--mode",
    type=click.Choice(["bare", "greedy"]),
    default="bare",
    show_default=True,
    help="bare: decoding alone, as llama-bench measures it. greedy: choosing each token, as a user gets it.",
)
@click.option(
    "--inputs",
    type=click.Path(path_type=Path),
    metavar="FEEDS.npz",
    help="Feeds of a tensor model, by input name; default: made up.",
)
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE.html", help="Write a self-contained page.")
@shared.using
@shared.as_json
def command(models: tuple[str, ...], report: Path | None, as_json: bool, **how: Any) -> int:
    """Measure MODELS against the first of them: prefill, decode, first token, memory, with the quality of each.

    Exit code 1 when the figures are void or not comparable.
    """
    from edgecore.cli._models import making
    from edgecore.cli._speed import speed_table
    from edgecore.verbs.benchmarking import Load, benchmark
    from edgecore.verbs.remarks import remarks

    load = Load(**{name: how[name] for name in Load.__slots__})
    with Bars(quiet=as_json) as bars:
        measured = benchmark(
            models,
            making(how),
            load=load,
            device=how["device"],
            on_progress=bars,
            say=(lambda line: None) if as_json else note,
        )
    comparison = measured.comparison
    rows = measured.rows()
    if report:
        from edgecore.report import render
        from edgecore.verbs.reporting import conditions

        page = render(f"{', '.join(row.label for row in rows)}", rows, conditions(measured), remarks(comparison))
        report.write_text(page, encoding="utf-8")
    if as_json:
        qualities = [quality.to_dict() for quality in measured.qualities]
        emit_json({**comparison.to_dict(), "qualities": qualities})
    else:
        click.echo(speed_table(rows))
        for line in remarks(comparison):
            click.echo(line)
        if report:
            note(f"report: {report}")
    return 1 if comparison.not_comparable or any(arm.void for arm in comparison.arms) else 0
