"""The neutral model as a folder that onnxruntime_genai loads as it is, without torch and in bounded memory.

graph.py   the computation (attention.py, rope.py its parts)   onnx_out.py  the files, weights streamed
folder.py  tokenizer, chat template and configs beside them     weights.py   what the finished file weighs
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from edgecore.checkpoint import Checkpoint, Decoder, RopeScaling
from edgecore.contract import (
    ConvertLimits,
    DoesNotFit,
    Made,
    Progress,
    UnsupportedPrecision,
    Value,
)
from edgecore_onnxruntime import folder, graph, nodes, onnx_out, weights


def convert(
    model: Checkpoint, out: Path, precision: str, options: Mapping[str, Value], limits: ConvertLimits,
    progress: Progress,
) -> Made:  # fmt: skip
    """Writes the folder into `out`. Raises as `onnx_out.write` does, `DoesNotFit` beyond the trained context too."""
    trained = model.decoder.context_length
    check_context(limits, trained)
    if precision not in nodes.TYPES:
        raise UnsupportedPrecision(f"convert does not make {precision!r}", supported=", ".join(nodes.TYPES))
    context = limits.max_context or trained
    built = graph.build(model.decoder, precision, context)
    onnx_out.write(built, model, out / folder.MODEL, out / folder.WEIGHTS, progress)
    beside, notes = folder.write_beside(model, out)
    return Made(
        files=(*folder.payload([folder.MODEL, folder.WEIGHTS]), *beside, folder.write_genai(model, out, context)),
        weights=weights.measure(out / folder.MODEL),
        notes=(*lost(model), *_computed_otherwise(model.decoder), *notes),
    )


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


def _computed_otherwise(decoder: Decoder) -> Iterator[str]:
    """What a person should know of how ONNX Runtime computes this model."""
    border = decoder.rope.original_context
    if decoder.rope.scaling is RopeScaling.LONGROPE and folder.genai_border(decoder) != border:
        yield (
            f"a text that grows past {border} tokens turns all its positions otherwise: edgecore computes it anew, "
            f"onnxruntime_genai keeps its first {border} keys as they were"
        )
