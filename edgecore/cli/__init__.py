"""The command line: one file a command, imported when it is called, so that help costs what click costs.

This module and what it imports at its top must stay free of numpy, pluggy and importlib.metadata; a test measures it.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from edgecore import __version__
from edgecore.contract.errors import BadRequest, Cancelled, DoesNotFit, EdgecoreError, PluginFault

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "quickstart": "The whole way once, on a real small model: fetch, convert, quantize, run, measure, report.",
    "doctor": "Probe this machine and every plugin afresh, and say what to install.",
    "backends": "List backends with their last recorded probe, or one backend in full.",
    "inspect": "Say what a model is and which backends take it, from its headers.",
    "convert": "Turn a source into a backend's format.",
    "quantize": "Turn an artifact into a smaller precision.",
    "build": "Convert and quantize in one step, checked against the source.",
    "run": "Continue a prompt, or run a tensor model on feeds.",
    "chat": "Talk with a model through its own chat template.",
    "tokenize": "Show the token ids of a text.",
    "logits": "Write the logits of every position of a token sequence.",
    "benchmark": "Measure speed and memory, interleaved, with the quality beside it.",
    "evaluate": "Compare an artifact with its reference: KL divergence, top-1, perplexity.",
    "cache": "List, remove and verify what is stored.",
    "plugin": "Install, list and remove plugins in environments of their own.",
    "completion": "Print the completion script for a shell.",
}
"""Name and help in the order of `edgecore --help`; each lives in the module `edgecore.cli.NAME`, as `command`."""


class _ReaderLeft(Exception):
    """The reader of our output (head, less) went away. No `OSError`: click would end the process with 1."""


class Commands(click.Group):
    """Imports a command when it is asked for. Distributions add theirs by the entry point group `edgecore.commands`."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderLeft from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *sorted(set(_added()) - set(COMMANDS))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            command: click.Command = import_module(f"edgecore.cli.{cmd_name}").command
            return command
        if cmd_name in (added := _added()):
            module, _, attribute = added[cmd_name].partition(":")
            loaded: click.Command = getattr(import_module(module), attribute)
            return loaded
        if cmd_name == "conformance":
            from edgecore.environments import install_command

            raise click.UsageError(
                f"the conformance suite is not installed; install it with: {install_command('conformance')}"
            )
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Help without importing any command."""
        rows = [*COMMANDS.items(), *((name, f"({target})") for name, target in _added().items())]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            near = get_close_matches(args[0], self.list_commands(ctx), 1)
            if not near:
                raise
            raise click.UsageError(f"{error.message} Did you mean {near[0]!r}?", ctx) from None


def _added() -> dict[str, str]:
    from edgecore import registry

    return dict(registry.discover().commands)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="SOURCE is a path, pypi:DIST, or hf:ORG/NAME[@REV][:QUANT|/FILE]. `edgecore COMMAND --help` tells the rest.",
)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(__version__, prog_name="edgecore")
def group(debug: bool) -> None:
    """Take one model to many kinds of edge hardware, with evidence for each."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script.

    Exit codes: 0 good, 1 a check failed, 2 bad request or input, 3 not available on this machine, 4 the worker crashed
    or ran out of time, 130 interrupted.
    """
    sys.exit(_run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: list[str]) -> int:
    debug = "--debug" in arguments
    as_json = "--json" in arguments
    # --debug is taken anywhere on the line, because people add it at the end of what just failed.
    arguments = [a for a in arguments if a != "--debug"]
    try:
        result = group.main(arguments, prog_name="edgecore", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except EdgecoreError as error:
        if debug:
            raise
        _show_error(error, as_json)
        return error.exit_code
    except click.ClickException as error:
        if as_json:
            asked = getattr(error, "ctx", None)
            command = asked.command_path if asked else "edgecore"
            _show_error(BadRequest(error.format_message(), hint=f"{command} --help"), as_json)
        else:
            error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        if debug:
            raise
        if as_json:
            _show_error(Cancelled("interrupted"), as_json)
        else:
            click.echo("interrupted", err=True)
        return 130
    except _ReaderLeft:
        # Its right, and no failed check.
        _drop_output()
        return 0
    except Exception as error:
        if debug:
            raise
        typed = _typed(error)
        full = isinstance(typed, DoesNotFit)
        if full:
            _drop_output()
        _show_error(typed, as_json and not full)
        return typed.exit_code


def _drop_output() -> None:
    """What is still buffered for standard output must not complain at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _typed(error: Exception) -> EdgecoreError:
    """What reached the top without our words: a name or text that the system refuses is bad input, the rest a fault."""
    if isinstance(error, UnicodeError):
        return BadRequest(f"not UTF-8 text: {error}", supported="arguments and input in UTF-8")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG):
        return DoesNotFit(f"{error.filename or 'a file'}: {error.strerror}", hint="edgecore cache ls")
    if isinstance(error, OSError) and error.filename is not None:
        return BadRequest(
            f"{os.fsdecode(error.filename)}: {error.strerror}", supported="a path that this user may read or write"
        )
    return PluginFault(f"{type(error).__name__}: {error}", hint="the same command with --debug")


def _show_error(error: EdgecoreError, as_json: bool) -> None:
    if as_json:
        import json

        try:
            click.echo(json.dumps(error.to_wire()))
        except OSError:  # standard output is what failed: a full disk, say
            click.echo(f"error: {error}", err=True)
    else:
        click.echo(f"error: {error}", err=True)
