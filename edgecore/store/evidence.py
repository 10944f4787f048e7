"""Evidence: one JSON file a machine and run, beside the sealed payload, so that copies are merged by copying files."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgecore import disk


def add(folder: Path, record: dict[str, Any]) -> Path:
    """Writes one record under a name that sorts by time and that nobody else takes."""
    kind = re.sub(r"[^a-z0-9]+", "-", str(record.get("kind", "record")).lower()).strip("-") or "record"
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    folder.mkdir(exist_ok=True)
    path = folder / f"{stamp}-{kind}-{os.urandom(4).hex()}.json"
    disk.write_whole(path, (json.dumps(record, indent=2) + "\n").encode("utf-8"))
    return path


def read(folder: Path) -> list[dict[str, Any]]:
    """Every record, oldest first. What is not a JSON object is not evidence and is left out."""
    records = []
    for path in sorted(folder.glob("[!.]*.json")):
        try:
            record = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(record, dict):
            records.append(record)
    return records
