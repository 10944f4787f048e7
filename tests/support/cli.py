"""The command line as users start it: another process, its own home, what it printed and how it ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def edgecore(
    *arguments: object, stdin: str | None = None, timeout: float = 240, cwd: Path | None = None, **env: str
) -> Result:
    """Run `edgecore ARGUMENTS...`; a hang is a failure of the test."""
    done = subprocess.run(
        [sys.executable, "-m", "edgecore", *map(str, arguments)],
        input=stdin if stdin is not None else "",
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout,
        cwd=cwd,
        env={**os.environ, **env},
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)
