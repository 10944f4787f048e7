"""The neutral model as a folder that mlx_lm loads as it is, without torch and in bounded memory.

folder.py     the files                                    packing.py  how they say what is packed
packed.py     blocks of a GGUF file, kept as they are      weights.py  what the result weighs
elsewhere.py  what mlx_lm does otherwise than the model
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgecore.checkpoint import Checkpoint, folder_weights
from edgecore.contract import ConvertLimits, DoesNotFit, Made, Progress, UnsupportedPrecision, Value
from edgecore_mlx import elsewhere, folder, packed, weights

TYPES = ("f32", "f16", "bf16")
KEPT = "matrices kept packed as they were, nothing lost"
"""A note that quantize takes back."""


def convert(
    model: Checkpoint, out: Path, precision: str, options: Mapping[str, Value], limits: ConvertLimits,
    progress: Progress,
) -> Made:  # fmt: skip
    """Writes the folder into `out`. Raises as `folder.write` does, `DoesNotFit` beyond the trained context too."""
    trained = model.decoder.context_length
    check_context(limits, trained)
    context = limits.max_context or trained
    if precision not in TYPES:
        raise UnsupportedPrecision(f"convert does not make {precision!r}", supported=", ".join(TYPES))

    def report(done: int, total: int, stage: str = "") -> None:
        model.forget()  # what was written is not read again
        progress(done, total, stage)

    entries = folder_weights(model, precision, "same")
    kept = packed.keep(model, entries, precision) if options.get("packed", True) else packed.Kept(entries, {})
    config = folder.with_quantization(elsewhere.config_of(model, precision, context), kept.packings)
    files = folder.write(out, kept.entries, config, model.parameters, report)
    beside, notes = folder.write_beside(model, out)
    otherwise = elsewhere.computed_otherwise(model.decoder, config, context)
    return Made(
        files=(*files, *beside),
        weights=weights.measure(out),
        notes=(*what_became(model, kept), *otherwise, *notes),
    )


def check_context(limits: ConvertLimits, trained: int) -> None:
    """Raises `DoesNotFit` where more is asked for than the model was trained for."""
    if limits.max_context is not None and limits.max_context > trained:
        raise DoesNotFit(
            f"a context of {limits.max_context} tokens; the model was trained for {trained}",
            supported=f"up to {trained} tokens",
        )


def what_became(model: Checkpoint, kept: packed.Kept) -> Iterator[str]:
    """Of a quantized source's matrices, in words."""
    if kept.kinds:
        counts = Counter(kept.kinds.values())
        said = ", ".join(f"{count} of {kind}" for kind, count in counts.items())
        yield f"{KEPT}: {said}"
    rest = {tensor.storage for name, tensor in model.tensors.items() if name not in kept.tensors}
    if lossy := sorted(rest - {"F32", "F16", "BF16", "TERNARY"}):
        yield f"dequantized from {', '.join(lossy)}: what had been lost before is not restored"
