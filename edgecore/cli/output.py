"""What every command prints with: aligned tables, JSON, and progress.

Own lines instead of rich or tabulate: either costs 0.07 s at import, more than all of `edgecore backends` may take.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

import click

from edgecore.contract.errors import BadRequest


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()) -> str:
    """Rows under headers, columns two spaces apart; columns whose index is in `right` are right-aligned."""
    cells = [[str(h) for h in headers], *([("" if c is None else str(c)) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    lines = [
        "  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(line.rstrip() for line in lines)


def emit_json(value: Any) -> None:
    import json

    click.echo(json.dumps(value, indent=2, default=str))


def size(n: float) -> str:
    """Bytes for people, in the decimal units that disks and downloads are sold in."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit in ("B", "kB") or n >= 100 else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.2f} TB"


def note(text: str) -> None:
    """A line for the person, on standard error so that standard output stays the result."""
    click.echo(text, err=True)


def standard_input(what: str) -> str:
    """All of standard input, nothing where it is closed. Raises `BadRequest` where it is not UTF-8, in any locale."""
    if sys.stdin is None:
        return ""
    if sys.stdin.isatty():
        note(f"reading the {what} from the keyboard; end it with Ctrl-D")
    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(
            f"the {what} on standard input is not UTF-8 (byte {error.start})", supported="UTF-8 text"
        ) from None


class Bars:
    """Progress on standard error for whatever takes over a second: a bar on a terminal, one line a stage elsewhere.

    Use as a context manager and pass it as `on_progress`. With `quiet` (`--json`) it prints nothing.
    """

    def __init__(self, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._stage = ""
        self._since = 0.0
        self._bar: Any = None
        self._told = False

    def __call__(self, done: int, total: int, stage: str = "") -> None:
        if self._quiet:
            return
        if stage != self._stage:
            self.finish()
            self._stage, self._since, self._told = stage, time.monotonic(), False
        if time.monotonic() - self._since < 1.0 and self._bar is None:
            return
        if not self._stream.isatty():
            if not self._told:
                click.echo(f"{stage} ...", file=self._stream)
                self._told = True
            return
        if self._bar is None:
            self._bar = click.progressbar(length=max(total, 1), label=stage or None, file=self._stream)
            self._bar.__enter__()
        self._bar.length = max(total, 1)
        self._bar.update(max(done - self._bar.pos, 0))

    def finish(self) -> None:
        """End the running stage, before something else is printed."""
        if self._bar is not None:
            self._bar.update(max((self._bar.length or 0) - self._bar.pos, 0))
            self._bar.render_finish()
            self._bar = None
        elif self._told:
            click.echo(f"{self._stage}: {time.monotonic() - self._since:.1f} s", file=self._stream)
        self._stage, self._told = "", False

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish()
        elif self._bar is not None:
            # After a failure the bar stays where it was: it did not reach its end.
            self._bar.render_finish()
            self._bar = None
