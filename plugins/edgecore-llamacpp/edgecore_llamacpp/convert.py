"""The neutral model as GGUF: the file that llama.cpp's own converter writes, without torch and in bounded memory.

parts.py      which tensors, their order and bytes     metadata.py   keys and values, tokenizer_metadata.py the
stored.py     float32 as F16, BF16, Q8_0                             tokenizer's, header.py how both lie in the file
computes.py   what llama.cpp would compute wrongly and is refused

A GGUF source keeps its own metadata, tokenizer and chat template included, exactly as they stand; only types change.
"""

from __future__ import annotations

from pathlib import Path

from edgecore.checkpoint import Checkpoint
from edgecore.contract import (
    ConvertLimits,
    DoesNotFit,
    Fallback,
    Made,
    PayloadFile,
    Progress,
    UnsupportedPrecision,
    full_disk,
)
from edgecore_llamacpp import computes, weights
from edgecore_llamacpp.header import front, padding
from edgecore_llamacpp.metadata import metadata_of
from edgecore_llamacpp.parts import Part, plan
from edgecore_llamacpp.stored import Stored
from edgecore_llamacpp.tokenizer_metadata import differences

MODEL = "model.gguf"


def convert(model: Checkpoint, out: Path, precision: str, limits: ConvertLimits, progress: Progress) -> Made:
    """Writes `model.gguf` into `out`. Raises `UnsupportedModel` for what llama.cpp computes otherwise."""
    decoder = model.decoder
    if limits.max_context is not None and limits.max_context > decoder.context_length:
        raise DoesNotFit(
            f"a context of {limits.max_context} tokens; the model was trained for {decoder.context_length}",
            supported=f"up to {decoder.context_length} tokens",
        )
    if precision.upper() not in Stored.__members__:
        made = ", ".join(kind.lower() for kind in Stored.__members__)
        raise UnsupportedPrecision(f"convert does not make {precision!r}", supported=made)
    notes = computes.check(decoder, limits.max_context)
    fallbacks = write_gguf(model, out / MODEL, precision, progress)
    lossy = [name for name in model.storage if name not in ("F32", "F16", "BF16", "TERNARY")]
    lost = (f"dequantized from {', '.join(lossy)}: what had been lost before is not restored",) if lossy else ()
    return Made(
        files=(PayloadFile(MODEL, "model"),),
        weights=weights.measure(out / MODEL, fallbacks),
        notes=(*lost, *notes, *differences(model)),
        tools={"gguf": _version()},
    )


def write_gguf(model: Checkpoint, file: Path, precision: str, progress: Progress) -> tuple[Fallback, ...]:
    """The file, whatever llama.cpp computes from it. Answers the tensors that got another type."""
    parts = plan(model, Stored[precision.upper()])
    begin = front(metadata_of(model, precision, parts), [part.entry for part in parts])
    try:
        with full_disk(file):
            _write(model, file, begin, parts, progress)
    except BaseException:  # cancelled or failed: half a file is worse than none
        file.unlink(missing_ok=True)
        raise
    return tuple(part.fallback for part in parts if part.fallback)


def _write(model: Checkpoint, file: Path, begin: bytes, parts: list[Part], progress: Progress) -> None:
    total, done = sum(part.entry.nbytes for part in parts), 0
    with file.open("wb", buffering=0) as stream:
        _all(stream, begin)
        for part in parts:
            for piece in part.pieces():
                progress(done, total, "writing")
                _all(stream, piece.data)
                done += piece.nbytes
                model.forget()
            _all(stream, bytes(padding(part.entry.nbytes)))
    progress(total, total, "writing")


def _all(stream: object, data: bytes | memoryview) -> None:
    """Every byte: an unbuffered file may take some and say so."""
    view = memoryview(data).cast("B") if len(data) else memoryview(b"")
    while len(view):
        view = view[stream.write(view) :]  # type: ignore[attr-defined]


def _version() -> str:
    from importlib.metadata import version

    return version("gguf")
