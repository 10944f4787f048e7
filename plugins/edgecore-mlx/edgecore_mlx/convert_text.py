"""The neutral model as a folder that mlx_lm loads as it is, without torch and in bounded memory.

folder.py   the files                                packing.py  how they say what is packed
packed.py   blocks of a GGUF file, kept as they are  weights.py  what the result weighs
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgecore.checkpoint import Checkpoint, folder_config, folder_weights
from edgecore.contract import ConvertLimits, DoesNotFit, Made, Progress, UnsupportedPrecision, Value
from edgecore_mlx import folder, weights

TYPES = ("f32", "f16", "bf16")


def convert(
    model: Checkpoint, out: Path, precision: str, options: Mapping[str, Value], limits: ConvertLimits,
    progress: Progress,
) -> Made:  # fmt: skip
    """Writes the folder into `out`. Raises as `folder.write` does, `DoesNotFit` beyond the trained context too."""
    check_context(limits, model.decoder.context_length)
    if precision not in TYPES:
        raise UnsupportedPrecision(f"convert does not make {precision!r}", supported=", ".join(TYPES))

    def report(done: int, total: int, stage: str = "") -> None:
        model.forget()  # what was written is not read again
        progress(done, total, stage)

    entries = folder_weights(model, precision, "same")
    files = folder.write(out, entries, folder_config(model, precision), model.parameters, report)
    beside, notes = folder.write_beside(model, out)
    return Made(files=(*files, *beside), weights=weights.measure(out), notes=(*lost(model), *notes))


def check_context(limits: ConvertLimits, trained: int) -> None:
    """Raises `DoesNotFit` where more is asked for than the model was trained for."""
    if limits.max_context is not None and limits.max_context > trained:
        raise DoesNotFit(
            f"a context of {limits.max_context} tokens; the model was trained for {trained}",
            supported=f"up to {trained} tokens",
        )


def lost(model: Checkpoint) -> list[str]:
    """What a quantized source had lost before, in words."""
    lossy = [name for name in model.storage if name not in ("F32", "F16", "BF16", "TERNARY")]
    return [f"dequantized from {', '.join(lossy)}: what had been lost before is not restored"] if lossy else []
