"""The weights of a text model for CPUs in 4 or 8 bits, for MatMulNBits and GatherBlockQuantized, one matrix at a time.

recipe.py    what a precision is                 rounding.py  by looking at the numbers
usage.py     how a text uses the matrices        edgecore.checkpoint.gptq  by looking at that too
matrices.py  where they are in the graph         small.py, nbits.py        what they become
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from edgecore.checkpoint import calibration as text
from edgecore.checkpoint.gptq import Floats, Rounded, gptq
from edgecore.contract import (
    Artifact,
    BadRequest,
    Fallback,
    Made,
    Progress,
    UnsupportedModel,
    UnsupportedPrecision,
    Value,
    full_disk,
)
from edgecore_onnxruntime import nbits, small
from edgecore_onnxruntime.folder import (
    MODEL,
    WEIGHTS,
    copy_beside,
    model_file,
    open_tokenizer,
    payload,
    trained_context,
)
from edgecore_onnxruntime.matrices import Matrix, Source
from edgecore_onnxruntime.model_file import check_file
from edgecore_onnxruntime.own_text import own_text
from edgecore_onnxruntime.recipe import GPTQ, MOST_BITS, Recipe, affordable, block_of, recipe
from edgecore_onnxruntime.rounding import rounded
from edgecore_onnxruntime.usage import Inputs, Pieces, walk
from edgecore_onnxruntime.weights import measure

_SMALL_OPERATORS = ("MatMulNBits", "GatherBlockQuantized", "MatMulInteger", "DequantizeLinear")


def quantize(
    artifact: Artifact,
    out: Path,
    precision: str,
    calibration: Path | None,
    options: Mapping[str, Value],
    progress: Progress,
) -> Made:
    """Writes the folder into `out`. Raises `UnsupportedPrecision`, `UnsupportedModel`, `CorruptModel`, `BadRequest`,
    `DoesNotFit`, `Cancelled`."""
    own = bool(options.get("self_calibration"))
    if own and calibration:
        raise BadRequest("a calibration text and self_calibration", supported="one of them")
    wanted = recipe(precision, options, own or calibration is not None)
    source, matrices = _source(artifact, wanted)
    planned = wanted
    if "wide" not in options:
        wanted = affordable(planned, {m.name: (m.rows, m.columns) for m in matrices if m.in_layer})
    pieces = _pieces(artifact, source.folder, calibration, options, progress) if wanted.algorithm == GPTQ else None
    with full_disk(out):
        work = _Work(source, wanted, out / WEIGHTS)
        try:
            if pieces:
                walk(source, matrices, pieces, work.by_use, progress)
            work.the_rest(matrices, progress)
            work.finish(out / MODEL)
        except BaseException:  # cancelled or failed: half a file is worse than none
            work.weights.close()
            (out / WEIGHTS).unlink(missing_ok=True)
            raise
        beside = copy_beside(source.folder, out)
    return Made(
        files=(*payload([MODEL, WEIGHTS]), *beside),
        weights=measure(out / MODEL, _fallbacks(work.made.values(), wanted)),
        notes=(*artifact.notes, *_narrowed(planned, wanted), *_notes(wanted, pieces, calibration)),
    )


class _Work:
    """Matrices as they become small, written at once."""

    def __init__(self, source: Source, wanted: Recipe, file: Path) -> None:
        self.source, self.wanted = source, wanted
        self.weights = small.Weights(file)
        self.made: dict[str, small.Small] = {}

    def by_use(self, inputs: Inputs, used: Floats) -> list[Floats]:
        """GPTQ on all matrices of one input at once, since they share what is dear: the inverse, and the loop over
        columns. What they are now."""
        answer: dict[str, Floats] = {}
        for bits in sorted({self.wanted.bits_of(matrix.name) for matrix in inputs.matrices} - {0}):
            alike = [matrix for matrix in inputs.matrices if self.wanted.bits_of(matrix.name) == bits]
            block = block_of(inputs.columns, self.wanted.block_size)
            more = -inputs.columns % block
            together = np.concatenate([self.source.weights(matrix) for matrix in alike])
            symmetric = self.wanted.symmetric_of(alike[0].name)
            made = gptq(_wider(together, more), np.pad(used, (0, more)), block, symmetric, bits)
            start = 0
            for matrix in alike:
                part = made.rows(start, start + matrix.rows)
                self._store(matrix, part, bits, block)
                answer[matrix.name] = part.read()[:, : matrix.columns]
                start += matrix.rows
        return [answer[m.name] if m.name in answer else self.source.weights(m) for m in inputs.matrices]

    def the_rest(self, matrices: Sequence[Matrix], progress: Progress) -> None:
        left = [m for m in matrices if m.name not in self.made and self.wanted.bits_of(m.name)]
        algorithm = "mse" if self.wanted.algorithm == GPTQ else self.wanted.algorithm
        for done, matrix in enumerate(left):
            progress(done, len(left), "rounding")
            bits, block = self.wanted.bits_of(matrix.name), block_of(matrix.columns, self.wanted.block_size)
            weights = _wider(self.source.weights(matrix), -matrix.columns % block)
            symmetric = self.wanted.symmetric_of(matrix.name)
            self._store(matrix, rounded(weights, block, symmetric, bits, algorithm), bits, block)
        if left:
            progress(len(left), len(left), "rounding")

    def _store(self, matrix: Matrix, made: Rounded, bits: int, block: int) -> None:
        if not np.isfinite(made.scale).all():
            raise UnsupportedPrecision(
                f"{matrix.name!r} holds weights too large for scales in float16", supported="f32"
            )
        packed = nbits.pack(made, bits, self.wanted.symmetric_of(matrix.name))
        self.made[matrix.name] = small.stored(matrix, packed, bits, block, self.weights)

    def finish(self, file: Path) -> None:
        """What stayed as it was, and the graph."""
        model = self.source.model
        kept: list[TensorProto] = []
        for tensor in model.graph.initializer:
            if tensor.name not in self.made:
                external = onnx.external_data_helper.uses_external_data(tensor)
                kept.append(self.weights.add(tensor.name, self.source.read(tensor.name)) if external else tensor)
        self.weights.close()
        kept += [tensor for made in self.made.values() for tensor in made.initializers]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        small.swap(model, self.made, self.wanted.accuracy_level)
        file.write_bytes(model.SerializeToString(deterministic=True))


def _wider(weights: Floats, more: int) -> Floats:
    return np.pad(weights, ((0, 0), (0, more))) if more else weights


def _source(artifact: Artifact, wanted: Recipe) -> tuple[Source, list[Matrix]]:
    file = model_file(artifact)
    check_file(file)
    source = Source(onnx.load(file, load_external_data=False), file.parent)
    if small_ones := {node.op_type for node in source.model.graph.node} & set(_SMALL_OPERATORS):
        raise UnsupportedModel(
            f"{file}: its weights are in few bits already, for {', '.join(sorted(small_ones))}",
            supported="quantize from f16 or f32",
            hint="edgecore convert MODEL --backend onnxruntime --precision f16",
        )
    matrices = [matrix for matrix in source.matrices() if _fits(matrix, wanted)]
    if not any(matrix.in_layer for matrix in matrices):
        raise UnsupportedModel(
            f"{file}: has no matrices that its names call a layer's", supported="text models that edgecore converted"
        )
    return source, matrices


def _fits(matrix: Matrix, wanted: Recipe) -> bool:
    """GatherBlockQuantized answers whole blocks, so it takes no row that was filled up."""
    return not matrix.looked_up or matrix.columns % block_of(matrix.columns, wanted.block_size) == 0


def _pieces(
    artifact: Artifact, folder: Path, calibration: Path | None, options: Mapping[str, Value], progress: Progress
) -> Pieces:
    """Samples of the text, or of what the model writes where there is none."""
    count = int(options.get("calibration_samples") or (text.SAMPLES if calibration else text.OWN_SAMPLES))
    length = int(options.get("calibration_length") or text.LENGTH)
    length = min(length, trained_context(folder) or length)
    tokenizer = open_tokenizer(folder)
    if calibration:
        return text.samples(tokenizer, text.read_text(calibration), count, length)
    return own_text(artifact, tokenizer, count, length, progress)


def _fallbacks(made: Sequence[small.Small] | Any, wanted: Recipe) -> Iterator[Fallback]:
    """Matrices of the layers that have smaller blocks than the recipe plans for, or rows that were filled up."""
    for one in made:
        columns, name = one.matrix.columns, one.matrix.name
        if one.matrix.in_layer and (one.block != wanted.block_size or columns % one.block):
            filled = f", rows filled up to {columns + -columns % one.block}" if columns % one.block else ""
            reason = f"rows of {columns} cannot be cut into blocks of {wanted.block_size}"
            yield Fallback(name, f"int{one.bits}, blocks of {one.block}{filled}", reason)


def _narrowed(planned: Recipe, wanted: Recipe) -> list[str]:
    most = MOST_BITS * wanted.bits
    names = ", ".join(planned.wide)
    return [f"{names} in {wanted.bits} bits: in 8 the layers had more than {most:g}"] if planned != wanted else []


def _notes(wanted: Recipe, pieces: Pieces | None, calibration: Path | None) -> list[str]:
    if pieces is None:
        return (
            [f"the calibration text was not used: {wanted.algorithm} looks at nothing but the weights"]
            if calibration
            else []
        )
    return [
        f"gptq on {len(pieces)} samples of {len(pieces[0])} tokens" + ("" if calibration else " that the model wrote")
    ]
