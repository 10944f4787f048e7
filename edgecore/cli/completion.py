"""`edgecore completion`: click knows how to complete; this prints the script that tells the shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script for SHELL.

    bash and zsh: put `eval "$(edgecore completion bash)"` into ~/.bashrc or ~/.zshrc (with zsh for bash).
    fish: `edgecore completion fish | source`.
    """
    from edgecore.cli import group

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(group, {}, "edgecore", "_EDGECORE_COMPLETE").source())
