"""An ecosystem's own converter, run as people run it: from its command line, so that a crash in it is an answer.

For the module that a manifest's `[exporter]` names. It is offline: what it would fetch was not asked for.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from edgecore.contract.errors import UnsupportedModel
from edgecore.contract.progress import Progress, grown

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def run_exporter(name: str, command: list[str], out: Path, predicted: int, progress: Progress) -> None:
    """Runs the command; what grows at `out`, a file or a folder, is the progress, and a report that raises ends it.

    name:      what people call it.
    predicted: bytes that `out` will have.
    Raises `UnsupportedModel` with its last words where it fails.
    """
    written = 0
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=said, stdin=subprocess.DEVNULL, env={**os.environ, **OFFLINE}
        )
        try:
            while True:
                try:
                    status = process.wait(timeout=0.2)
                    break
                except subprocess.TimeoutExpired:
                    written = max(written, min(grown(out), predicted))
                    progress(written, predicted, "exporting")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if status:
            said.seek(0)
            lines = said.read().decode("utf-8", "replace").strip().splitlines()
            raise UnsupportedModel(f"{name} failed: {lines[-1] if lines else f'exit status {status}'}")
    progress(predicted, predicted, "exporting")
