"""`edgecore plugin`: plugins and exporters in interpreters of their own, so that their dependencies never meet."""

from __future__ import annotations

import click

from edgecore.cli import options as shared
from edgecore.cli.output import emit_json, note, table


@click.group()
def command() -> None:
    """Install, list and remove plugins in environments of their own."""


@command.command()
@click.argument("name")
@click.option("--export", is_flag=True, help="The plugin's exporter (usually with torch) instead of the plugin.")
def install(name: str, export: bool) -> None:
    """Install NAME (a plugin's name, a distribution, a wheel or a folder) into an environment of its own."""
    from edgecore import environments

    environment = environments.install(name, export=export, on_line=note)
    note(f"{environment.name} is installed in {environment.path}")


@command.command("list")
@shared.as_json
def list_(as_json: bool) -> None:
    """List the environments and what was pinned in them."""
    from edgecore import environments

    found = environments.list_environments()
    if as_json:
        emit_json([e.to_dict() for e in found])
    elif not found:
        note("no environments; `edgecore plugin install NAME` makes one")
    else:
        rows = [(e.name, "exporter" if e.export else "plugin", e.requirement, e.path) for e in found]
        click.echo(table(("name", "kind", "installed from", "folder"), rows))


@command.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove an environment."""
    from edgecore import environments

    environments.remove(name)
    note(f"removed {name}")
