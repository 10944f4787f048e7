"""The neutral model as a folder for an NPU: fixed shapes, no torch, in bounded memory.

htp_graph.py   the computation     htp_folder.py   the folder's files and their description
onnx_out.py    weights, streamed   folder.py       tokenizer, chat template and configs beside them
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from edgecore.checkpoint import Checkpoint
from edgecore.contract import (
    BadRequest,
    ConvertLimits,
    Made,
    PayloadFile,
    Progress,
    UnsupportedPrecision,
    Value,
    full_disk,
)
from edgecore_onnxruntime import folder, htp_folder, htp_graph, onnx_out, weights
from edgecore_onnxruntime.convert_text import check_context, lost
from edgecore_onnxruntime.nodes import Graph

CONTEXT = 1024
"""Positions when nobody said: the NPU computes over all of them at every token, used or not."""
CHUNK = 32
"""Tokens of a prefill at once when nobody said."""
TABLE = {"f32": "float32", "f16": "float16"}


def convert(
    model: Checkpoint, out: Path, precision: str, options: Mapping[str, Value], limits: ConvertLimits,
    progress: Progress,
) -> Made:  # fmt: skip
    """Writes the folder into `out`. Raises `CorruptModel` for weights that are not finite, `UnsupportedPrecision` for
    those that float16 cannot hold, `DoesNotFit` beyond the trained context and for a full disk."""
    if precision != "f16":
        raise UnsupportedPrecision(f"convert does not make {precision!r} for an NPU", supported="f16")
    context, chunk = sizes(limits, model.decoder.context_length)
    write(model, out, context, chunk, precision, progress)
    beside, notes = folder.write_beside(model, out)
    return Made(
        files=(*payload(), *beside),
        weights=weights.measure(out / htp_folder.PREFILL),
        notes=(*lost(model), *_sized(context, chunk, model), *notes),
    )


def sizes(limits: ConvertLimits, trained: int) -> tuple[int, int]:
    """Context and chunk. Raises `BadRequest`, `DoesNotFit`."""
    check_context(limits, trained)
    context = limits.max_context or min(trained, CONTEXT)
    chunk = limits.prefill_chunk or min(CHUNK, context)
    if chunk > context:
        raise BadRequest(
            f"a prefill of {chunk} tokens at once in a context of {context}", supported=f"1 to {context} tokens"
        )
    return context, chunk


def write(model: Checkpoint, out: Path, context: int, chunk: int, precision: str, progress: Progress) -> None:
    """Both graphs, their weights and their description; whatever was written of them is gone when it fails."""
    decoder = model.decoder
    graphs = {name: htp_graph.build(decoder, tokens, context, precision)
              for name, tokens in ((htp_folder.PREFILL, chunk), (htp_folder.DECODE, 1))}  # fmt: skip
    table, rest = Graph(), Graph(weights=dict(graphs[htp_folder.DECODE].weights))
    rest.weights.pop(htp_graph.EMBEDDING, None)
    table.weight(htp_graph.EMBEDDING, (decoder.vocab_size, decoder.hidden_size), precision)
    places = onnx_out.placed(rest)
    try:
        with full_disk(out):
            onnx_out.fill(table, model, onnx_out.placed(table), out / htp_folder.EMBEDDING, _of_table(progress))
            onnx_out.fill(rest, model, places, out / htp_folder.WEIGHTS, progress)
            for name, graph in graphs.items():
                made = graph.model(decoder.family)
                onnx_out.declare(
                    made, Graph(weights=rest.weights, constants=graph.constants), places, htp_folder.WEIGHTS
                )
                if htp_graph.EMBEDDING in graph.weights:
                    onnx_out.declare(made, table, onnx_out.placed(table), htp_folder.EMBEDDING)
                (out / name).write_bytes(made.SerializeToString(deterministic=True))
            said = htp_folder.described(decoder, context, chunk)
            replace(said, precision=precision, embedding_type=TABLE[precision]).write(out)
    except BaseException:  # cancelled or failed: half a folder is worse than none
        for name in (*graphs, htp_folder.WEIGHTS, htp_folder.EMBEDDING, htp_folder.DESCRIPTION):
            (out / name).unlink(missing_ok=True)
        raise


def _of_table(progress: Progress) -> Progress:
    """A stage has one total."""
    return lambda done, total, stage="": progress(done, total, f"{stage} the embedding")


def payload() -> list[PayloadFile]:
    """The folder's own files with their roles."""
    roles = {
        htp_folder.PREFILL: "model",
        htp_folder.DECODE: "other",
        htp_folder.WEIGHTS: "weights",
        htp_folder.EMBEDDING: "weights",
        htp_folder.DESCRIPTION: "config",
    }
    return [PayloadFile(name, role) for name, role in roles.items()]


def _sized(context: int, chunk: int, model: Checkpoint) -> Iterator[str]:
    yield f"fixed shapes: a context of {context} tokens, a prefill of {chunk} at once"
    if context < model.decoder.context_length:
        yield f"the model was trained for {model.decoder.context_length} tokens: --max-context asks for more"
