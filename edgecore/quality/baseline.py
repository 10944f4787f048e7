"""What round-to-nearest of so many bits loses on a model and text, remembered: it is the same for every backend.

A pass of the oracle takes seconds to minutes, and one source is usually built in several precisions and compared more
than once. The cache is a small file; without it everything is merely slower.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgecore import paths
from edgecore.checkpoint.opening import Checkpoint
from edgecore.quality.divergence import Divergence
from edgecore.quality.rounding import GROUP, HEAD_BITS

METHOD = f"rtn-1-g{GROUP}-h{HEAD_BITS:g}"
"""Changes whenever rounding or the definition of a figure does."""
KEPT = 200


def key(model: Checkpoint, bits: float, tokens: Sequence[int]) -> str:
    """Names a baseline by the source's file state, the bits and the tokens."""
    files = sorted(f for f in model.path.iterdir() if f.is_file()) if model.path.is_dir() else [model.path]
    state = [(str(f.resolve()), (s := f.stat()).st_size, s.st_mtime_ns) for f in files]
    return hashlib.sha256(json.dumps([METHOD, state, bits, list(tokens)]).encode()).hexdigest()[:32]


def recall(name: str) -> Divergence | None:
    known = _read(_file()).get(name)
    try:
        return Divergence.from_dict(known) if known else None
    except TypeError:
        return None


def remember(name: str, found: Divergence) -> None:
    """Concurrent writers may lose one another's entry, never the file."""
    file = _file()
    known = {**_read(file), name: found.to_dict()}
    kept = dict(list(known.items())[-KEPT:])
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.{id(found)}")
        temporary.write_text(json.dumps(kept, indent=1), encoding="utf-8")
        temporary.replace(file)
    except OSError:
        pass


def _file() -> Path:
    return paths.index() / "baselines.json"


def _read(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
