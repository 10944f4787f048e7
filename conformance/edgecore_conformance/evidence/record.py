"""A note in edgecore's home, so that `edgecore backends` shows each claim with what became of it on this machine.

Read by `edgecore.verbs.proving`, which must stay free of numpy and of this distribution: plain JSON between the two.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from edgecore.verbs import proving

CLAIM = ("task", "family", "format", "precision", "device", "state", "good", "rows")


def record(report: Mapping[str, Any]) -> bool:
    """Notes a run of the whole level; a run of some rows says too little. Whether it was noted."""
    if not report["claims"]["whole"] or not report["rows"]:
        return False
    header = report["header"]
    noted = {
        "when": header["begun"],
        "suite": header["suite"]["version"],
        "plugin": header["plugin"]["version"],
        "manifest": header["plugin"]["manifest"],
        "origin": header["plugin"]["origin"],
        "runtime": header["runtime"]["version"],
        "drivers": header["drivers"],
        "level": header["level"],
        "outcome": report["outcome"],
        "claims": [{n: c[n] for n in CLAIM} for c in report["claims"]["of"] if c["device"] == header["device"]["name"]],
        "report": hashlib.sha256(json.dumps(report, sort_keys=True).encode()).hexdigest(),
    }
    file = proving.file_of(header["plugin"]["name"], header["device"]["name"])
    # Where nothing can be noted, the bundle is still the evidence.
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{os.getpid()}")
        partial.write_text(json.dumps(noted), encoding="utf-8")
        os.replace(partial, file)
        return True
    return False
