"""llama_model_quantize, with progress from the growing file, an importance matrix where there is a text, and an account
of what each tensor became.

The call itself cannot be interrupted: a cancelled quantization ends with its worker, and what was written is discarded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecore.contract import (
    Artifact,
    CorruptModel,
    EdgecoreError,
    Made,
    PayloadFile,
    Progress,
    UnsupportedPrecision,
    Value,
    check_room,
    watch_growth,
)
from edgecore_llamacpp import imatrix, mixes, native, weights
from edgecore_llamacpp.convert import MODEL
from edgecore_llamacpp.model import Model
from edgecore_llamacpp.native import libllama

SLAB = 1 << 29
"""Bytes of rows in memory at once; it does not change the result."""
EXACT = {"F32", "F16", "BF16"}


def quantize(
    artifact: Artifact,
    out: Path,
    precision: str,
    calibration: Path | None,
    options: Mapping[str, Value],
    threads: int,
    progress: Progress,
    *,
    needs_calibration: bool,
) -> Made:
    """Writes `model.gguf` into `out`. `needs_calibration`: the manifest says that `precision` requires a text."""
    if precision not in mixes.BASE:
        raise UnsupportedPrecision(f"quantize does not make {precision!r}", supported=", ".join(mixes.BASE))
    if needs_calibration and calibration is None:
        raise UnsupportedPrecision(
            f"{precision} needs an importance matrix, and no text to measure one from was given",
            hint="the same command with --calibration FILE.txt",
        )
    source, file = artifact.model, out / MODEL
    before = weights.read_header(source)
    importance: imatrix.Importance = {}
    if calibration is not None:
        importance = _importance(source, calibration, options, threads, progress)
    with watch_growth(file, mixes.predicted_bytes(before, precision), progress, "quantizing"):
        _run(source, file, precision, options, threads, importance)
    after = weights.read_header(file)
    if after.keys() != before.keys():
        raise CorruptModel(f"{file}: libllama wrote {len(after)} tensors of {len(before)}")
    forced = [str(options[name]).upper() for name in ("output_type", "embedding_type") if options.get(name)]
    fallbacks = tuple(mixes.fallbacks(after, precision, forced))
    return Made(
        files=(PayloadFile(MODEL, "model"),),
        weights=weights.measure(file, fallbacks),
        notes=tuple(_notes(before, importance)),
        tools={"llama.cpp": libllama.llama_version().decode()},
    )


def _importance(
    source: Path, calibration: Path, options: Mapping[str, Value], threads: int, progress: Progress
) -> imatrix.Importance:
    text = imatrix.read_text(calibration)
    model = Model(source)
    try:
        return imatrix.measure(model, text, threads, progress, most_chunks=int(options.get("calibration_chunks") or 0))
    finally:
        model.close()


def _run(
    source: Path, file: Path, precision: str, options: Mapping[str, Value], threads: int, importance: imatrix.Importance
) -> None:
    native.start()
    params = libllama.llama_model_quantize_default_params()
    params.nthread = threads
    params.ftype = mixes.file_type(precision)
    params.allow_requantize = True  # quality is judged by measuring, and a note says what the source was
    params.pure = bool(options.get("pure"))
    params.max_buf_size = SLAB
    if options.get("output_type"):
        params.output_tensor_type = mixes.type_number(str(options["output_type"]))
    if options.get("embedding_type"):
        params.token_embedding_type = mixes.type_number(str(options["embedding_type"]))
    kept: list[Any] = []
    if precision == "mxfp4":
        rule = libllama.llama_model_tensor_override(rb"^blk\..*weight$", mixes.type_number("MXFP4"))
        kept.append((libllama.llama_model_tensor_override * 2)(rule))
        params.tt_overrides = kept[-1]
    if importance:
        kept.append(_imatrix_data(importance))
        params.imatrix = kept[-1]
    native.forget_words()
    status = libllama.llama_model_quantize(str(source).encode(), str(file).encode(), ctypes.byref(params))
    if status:
        why = native.last_words()
        check_room(file)
        raise EdgecoreError(f"libllama could not quantize {source.name} to {precision}: {why}")


def _imatrix_data(importance: imatrix.Importance) -> Any:
    """The C array, ended by a nameless entry. numpy's data must outlive the call: `importance` does."""
    entries = (libllama.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        entry.name, entry.data, entry.size = name.encode(), _floats(values), values.size
    return entries


def _floats(values: NDArray[np.float32]) -> Any:
    return values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))


def _notes(before: Mapping[str, Any], importance: imatrix.Importance) -> list[str]:
    notes = []
    if lossy := sorted({t.type.name for t in before.values() if t.type.name not in EXACT}):
        notes.append(f"quantized from {', '.join(lossy)}: adds to what had been lost before")
    if importance:
        notes.append(f"with an importance matrix for {len(importance)} tensors")
    return notes
