"""`edgecore evaluate`: how far a model is from its reference, every figure beside its bound."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgecore.cli import options as shared
from edgecore.cli.output import Bars, emit_json, note, table

if TYPE_CHECKING:
    from edgecore.quality import Assessment


@click.command()
@click.argument("model")
@click.option(
    "--level", type=click.Choice(["quick", "full"]), default="full", show_default=True, help="Length of text."
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="LOGITS.npy",
    help="The reference's logits, made elsewhere by `edgecore logits SOURCE --backend reference --level LEVEL`.",
)
@shared.using
@shared.as_json
def command(model: str, level: str, against: Path | None, as_json: bool, **how: Any) -> int:
    """Compare MODEL with the source it was made from: KL divergence, top-1 agreement, perplexity.

    Exit code 1 when a figure is outside its bound or nothing could be compared. The result is kept as evidence.
    """
    from edgecore.cli._models import making
    from edgecore.verbs.evaluating import evaluate

    with Bars(quiet=as_json) as bars:
        found = evaluate(model, making(how), level=level, device=how["device"], against=against, on_progress=bars)
    if as_json:
        emit_json({"model": found.runnable.artifact.id or model, **found.assessment.to_dict()})
    else:
        show(found.assessment)
    return 0 if found.assessment.verdict.value == "accepted" else 1


def show(assessment: Assessment) -> None:
    """Divergences as a table, then each check with its bound and where the bound comes from."""
    about = {
        "total": "the backend from the source",
        "file": "the file's weights from the source's",
        "kernels": "the backend from the oracle on the same weights",
        "baseline": "round-to-nearest of equal bits from the source",
    }
    rows = []
    for name, text in about.items():
        if figures := getattr(assessment, name):
            rows.append(
                (
                    name,
                    f"{figures.kl_mean:.3g}",
                    f"{figures.kl_p99:.3g}",
                    f"{figures.top1:.1%}",
                    f"{figures.perplexity:.4g}",
                    f"{figures.perplexity_ratio:.4f}",
                    text,
                )
            )
    if rows:
        headers = ("what", "KL mean", "KL p99", "top-1", "perplexity", "ratio", "how far is")
        click.echo(table(headers, rows, right=(1, 2, 3, 4, 5)))
    for check in assessment.checks:
        click.echo(f"{'pass' if check.passed else 'FAIL'}  {check}")
    for line in assessment.notes:
        note(f"note: {line}")
    accepted = assessment.verdict.value == "accepted"
    click.echo("accepted" if accepted else f"{assessment.verdict.value}: {'; '.join(assessment.reasons)}")
