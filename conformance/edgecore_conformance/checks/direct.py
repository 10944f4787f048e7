"""Calls a plugin's hooks in a fresh interpreter that is watched (inside.py), beside the workers that users get."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from edgecore.contract.artifacts import Artifact
from edgecore.contract.errors import Timeout, WorkerCrashed
from edgecore.workers.transport import QUIET
from edgecore_conformance.bench import Bench
from edgecore_conformance.checks.jobs import Tree, environment, places, trees


def observe_directly(bench: Bench, call: Mapping[str, Any] | None = None, **known: Path) -> dict[str, Any]:
    """What inside.py found, with the four places around the process as they were left (`left`).

    call:  {"hook", "arguments", "cancel_at"}; None only loads the plugin.
    known: paths that events are named by, `out=...`: no folder of this machine stands in what is kept.
    Raises `WorkerCrashed`, `Timeout`.
    """
    entry, folder = bench.entry, bench.folder("direct")
    where = places(folder)
    answer = folder / "answer.json"
    foreign = entry.origin == "environment"
    task = {
        "path": [] if foreign else [p or os.getcwd() for p in sys.path],
        "search_path": list(entry.search_path),
        "package": Path(entry.location).parent.name,
        "hooks": bench.manifest.hooks,
        "backend": entry.name,
        "call": dict(call) if call else None,
        "answer": str(answer),
    }
    code = (files("edgecore_conformance.checks") / "inside.py").read_text(encoding="utf-8")
    command = [entry.python or sys.executable, "-B", *(["-I"] if foreign else []), "-c", code, json.dumps(task)]
    variables = {**os.environ, **QUIET, **{k: v for k, v in environment(where).items() if v is not None}}
    for name, value in environment(where).items():
        if value is None:
            variables.pop(name, None)
    _run(command, variables, where["cwd"], bench.left)
    if not answer.is_file():
        raise WorkerCrashed(f"an interpreter that called hooks of {entry.name!r} ended without an answer")
    found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    plugin = Path(entry.location).parent
    named = {**{k: str(v) for k, v in known.items()}, **{k: str(v) for k, v in where.items()}, "plugin": str(plugin)}
    found["events"] = [[stage, kind, _named(what, named)] for stage, kind, what in found["events"]]
    left: dict[str, Tree] = trees(where)
    found["left"] = {name: sorted(tree) for name, tree in left.items()}
    return found


def artifact_facts(artifact: Artifact) -> dict[str, Any]:
    """An artifact for `call`."""
    listed = [{"path": f.path, "role": f.role, "size": f.size, "sha256": f.sha256} for f in artifact.files]
    return {
        "path": str(artifact.path), "backend": artifact.backend, "task": artifact.task, "format": artifact.format,
        "precision": artifact.precision, "files": listed, "id": artifact.id, "family": artifact.family,
        "context_length": artifact.context_length,
    }  # fmt: skip


def _named(what: str, named: Mapping[str, str]) -> str:
    for name, path in named.items():
        if what == path or what.startswith(path + os.sep):
            return "{" + name + "}" + what[len(path) :].replace(os.sep, "/")
    home = str(Path.home())
    return "~" + what[len(home) :] if len(home) > 1 and what.startswith(home + os.sep) else what


def outside(events: list[list[str]], stages: tuple[str, ...], allowed: tuple[str, ...]) -> list[str]:
    """Changes to files that are not below an allowed place. Devices and /proc are no files."""
    fine = tuple("{" + name + "}" for name in allowed)
    return sorted(
        {
            f"{kind} {what}"
            for stage, kind, what in events
            if stage in stages
            and kind not in ("network", "process")
            and not what.startswith((*fine, "/dev/", "/proc/"))
        }
    )


def _run(command: list[str], variables: Mapping[str, str], cwd: Path, seconds: float) -> None:
    process = subprocess.Popen(
        command, cwd=cwd, env=dict(variables), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        process.wait(seconds)
    except BaseException as error:
        if os.name == "posix":
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        raise Timeout("a hook that was called in a fresh interpreter did not return before the deadline") from None
