"""Probes are recorded, so that listing can show the last one without starting a runtime. Standard library only."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecore import paths

if TYPE_CHECKING:
    from edgecore.registry import Entry

_FACTS = {"when", "plugin", "devices", "versions"}
"""What every recorded probe has: a file with less was written by someone else."""


def probe(entry: Entry, deadline: float = 30.0) -> dict[str, Any]:
    """Ask the backend afresh, in a worker, and record the answer. Raises what the worker raises."""
    from edgecore.workers import connect

    with connect(entry) as backend:
        found = backend.probe(deadline=deadline)
    answer = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "plugin": entry.version,
        "devices": [
            {"name": d.name, "available": d.available, "description": d.description, "reason": d.reason}
            for d in found.devices
        ],
        "versions": dict(found.versions),
        "features": dict(found.features),
    }
    file = _file(entry.name)
    # Where nothing can be recorded the answer is still the answer.
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{os.getpid()}")
        partial.write_text(json.dumps(answer))
        os.replace(partial, file)
    return answer


def last(name: str) -> dict[str, Any] | None:
    """The last recorded probe of a backend, None where it never was probed here."""
    try:
        answer = json.loads(_file(name).read_text())
    except (OSError, ValueError):
        return None
    return answer if isinstance(answer, dict) and answer.keys() >= _FACTS else None


def _file(name: str) -> Path:
    return paths.home() / "index" / f"probe-{name}.json"
