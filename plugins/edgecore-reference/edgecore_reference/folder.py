"""Convert: the neutral model as a Hugging Face folder. The core writes it; a backend knows its limits."""

from __future__ import annotations

from pathlib import Path

from edgecore.checkpoint import Checkpoint, write_folder
from edgecore.contract import ConvertLimits, DoesNotFit, Made, Progress


def convert(
    model: Checkpoint, out: Path, precision: str, vectors: str, limits: ConvertLimits, progress: Progress
) -> Made:
    """Everything that transformers needs to open the model, and this backend too."""
    trained = model.decoder.context_length
    if limits.max_context is not None and limits.max_context > trained:
        raise DoesNotFit(
            f"a context of {limits.max_context} tokens; the model was trained for {trained}",
            supported=f"up to {trained} tokens",
        )
    return write_folder(model, out, precision, vectors=vectors, progress=progress)
