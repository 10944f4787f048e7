"""`edgecore inspect`: what a model is and who takes it, from headers alone."""

from __future__ import annotations

from typing import Any

import click

from edgecore.cli import options as shared
from edgecore.cli.output import Bars, emit_json, size, table


@click.command()
@click.argument("source")
@shared.offline
@shared.as_json
def command(source: str, offline: bool, as_json: bool) -> None:
    """Say what SOURCE is: family, sizes, types, tokenizer, and which installed backends take it."""
    from edgecore.verbs.inspecting import inspect

    with Bars(quiet=as_json) as bars:
        found = inspect(source, offline=offline, on_progress=bars)
    if as_json:
        emit_json(found)
        return
    rows = [(key.replace("_", " "), _shown(key, value)) for key, value in found.items() if key != "backends"]
    click.echo("\n".join(f"{key:<18}{value}" for key, value in rows if value != ""))
    if found["backends"]:
        click.echo()
        click.echo(
            table(("backend", "takes it", "how"), [(b["name"], b["takes"], b["how"]) for b in found["backends"]])
        )


def _shown(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key == "bytes":
        return f"{value:,} ({size(value)})"
    if isinstance(value, dict):
        return ", ".join(f"{k} {size(v) if key == 'storage' else v}" for k, v in value.items())
    if isinstance(value, int) and not isinstance(value, bool) and key == "parameters":
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
