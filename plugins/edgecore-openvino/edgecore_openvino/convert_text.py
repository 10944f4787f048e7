"""The neutral model as a folder that openvino_genai loads as it is, without torch and in bounded memory.

graph.py   the computation (attention.py, rope.py its parts)   ir_file.py  the file, weights streamed behind the graph
folder.py  tokenizer, chat template and configs beside it       weights.py  what the finished file weighs
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
from edgecore_openvino import folder, graph, ir_file, weights

RUNTIME_OPTIONS = {"ACTIVATIONS_SCALE_FACTOR": "8.0", "KV_CACHE_PRECISION": "f16"}
"""What optimum-intel writes for weights that are not quantized: devices that compute in float16 scale activations down
by it, and the cache is kept in 16 bits where the run's own options do not say otherwise."""


def convert(
    model: Checkpoint, out: Path, precision: str, options: Mapping[str, Value], limits: ConvertLimits,
    progress: Progress,
) -> Made:  # fmt: skip
    """Writes the folder into `out`. Raises as `ir_file.write` does, `DoesNotFit` beyond the trained context too."""
    trained = model.decoder.context_length
    if limits.max_context is not None and limits.max_context > trained:
        raise DoesNotFit(
            f"a context of {limits.max_context} tokens; the model was trained for {trained}",
            supported=f"up to {trained} tokens",
        )
    if precision not in graph.TYPES:
        raise UnsupportedPrecision(f"convert does not make {precision!r}", supported=", ".join(graph.TYPES))
    built = graph.build(model.decoder, precision)
    for name, value in RUNTIME_OPTIONS.items():
        built.set_rt_info(value, ["runtime_options", name])
    ir_file.write(built, model, out / folder.MODEL, progress)
    beside, notes = folder.write_beside(model, out)
    lossy = [name for name in model.storage if name not in ("F32", "F16", "BF16", "TERNARY")]
    lost = (f"dequantized from {', '.join(lossy)}: what had been lost before is not restored",) if lossy else ()
    return Made(
        files=(*folder.payload([folder.MODEL, folder.WEIGHTS]), *beside),
        weights=weights.measure(out / folder.MODEL),
        notes=(*lost, *_computed_otherwise(model.decoder), *notes),
    )


def _computed_otherwise(decoder: Decoder) -> Iterator[str]:
    """What a person should know of how OpenVINO computes this model."""
    if decoder.rope.scaling is RopeScaling.LONGROPE:
        border = decoder.rope.original_context
        yield (
            f"a text that grows past {border} tokens turns all its positions otherwise: edgecore computes it anew, "
            f"openvino_genai keeps its first {border} keys as they were"
        )
    if decoder.attention_softcap:
        yield (
            "attention with a soft cap is not an operation of OpenVINO's: it is computed step by step, slower, and "
            "openvino_genai takes it with ATTENTION_BACKEND=SDPA only"
        )
