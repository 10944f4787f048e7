"""A text model's matrices in few bits, as a folder that mlx_lm loads: each read, rounded and written by itself.

recipe.py    what a precision is       affine.py, microscaling.py  by looking at the numbers
usage.py     by how a text uses them   learned.py                  by what mlx-lm learns from a text
source.py    the folder that is read
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint import calibration as text
from edgecore.checkpoint import folder_decoder
from edgecore.checkpoint.gptq import Floats
from edgecore.checkpoint.safetensors_out import NUMPY, Entry, array
from edgecore.checkpoint.storage import Bytes
from edgecore.checkpoint.usage import Pieces
from edgecore.contract import (
    Artifact,
    BadRequest,
    Made,
    Progress,
    UnsupportedModel,
    UnsupportedPrecision,
    Value,
)
from edgecore_mlx import affine, convert_text, folder, usage
from edgecore_mlx.affine import Small
from edgecore_mlx.recipe import AFFINE, GPTQ, LEARNED, MSE, WITH_TEXT, Packing, Recipe, recipe
from edgecore_mlx.source import Source
from edgecore_mlx.weights import Weight, measure

_AT_ONCE = 1 << 20
"""Numbers rounded between two looks at whether the user has had enough."""


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
    folder.check_folder(artifact.path)
    source = Source(artifact.path)
    wanted = recipe(precision, options, own or calibration is not None, source.layers)
    _check_source(source, artifact.precision in convert_text.TYPES, wanted)
    plan, ahead, notes = source.plan(wanted), _Ahead(), list[str]()
    if wanted.algorithm in WITH_TEXT:
        pieces = _pieces(source, calibration, options, progress)
        ahead = _ahead(source, wanted, plan, pieces, options, progress)
        notes = [_used(wanted, pieces, calibration), *ahead.notes]
    elif calibration:
        notes = [f"the calibration text was not used: {wanted.algorithm} looks at nothing but the weights"]
    plan |= {path: small.packing for path, small in ahead.packed.items()}
    ticking = _Ticking(progress)
    entries = _entries(source, wanted, plan, ahead, ticking.again)
    count = sum(weight.elements for weight in source.weights.values())
    files = folder.write(out, entries, source.config(plan), count, ticking)
    beside = folder.copy_beside(source.folder, out)
    return Made(
        files=(*files, *beside),
        weights=measure(out, source.fallbacks(wanted, plan)),
        notes=(*source.what_became(artifact.notes, plan), *notes),
    )


def _check_source(source: Source, by_convert: bool, wanted: Recipe) -> None:
    """Blocks that convert kept as they were are rounded again, as if it had not kept them."""
    if wanted.mixed and not any("down_proj" in path for path in source.matrices):
        raise UnsupportedModel(
            f"{source.folder}: {wanted.mixed} goes by the names v_proj and down_proj, and it has no such matrices",
            supported="precisions that are not mixed",
        )
    if not source.packed or (by_convert and wanted.algorithm not in LEARNED):
        return
    loose = " -O packed=false" if by_convert else ""
    raise UnsupportedModel(
        f"{source.folder}: its weights are in few bits already",
        supported="quantize from f32, f16 or bf16",
        hint=f"edgecore convert MODEL --backend mlx --precision f16{loose}",
    )


def _pieces(source: Source, calibration: Path | None, options: Mapping[str, Value], progress: Progress) -> Pieces:
    """Samples of the text, or of what the model writes where there is none."""
    count = int(options.get("calibration_samples") or (text.SAMPLES if calibration else text.OWN_SAMPLES))
    length = int(options.get("calibration_length") or text.LENGTH)
    length = min(length, folder.trained_context(source.folder) or length)
    tokenizer = folder.open_tokenizer(source.folder)
    if calibration:
        return text.samples(tokenizer, text.read_text(calibration), count, length)
    return usage.own_text(source.decoder, source.canonical, tokenizer, count, length, progress)


@dataclass(frozen=True, slots=True)
class _Ahead:
    """What is known before anything is written."""

    packed: Mapping[str, Small] = field(default_factory=dict)
    """By module path."""
    plain: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Tensors that have other numbers than in the source, by name."""
    notes: tuple[str, ...] = ()


def _ahead(
    source: Source, wanted: Recipe, plan: Mapping[str, Packing], pieces: Pieces, options: Mapping[str, Value],
    progress: Progress,
) -> _Ahead:  # fmt: skip
    def by_use(some: Mapping[str, Packing]) -> dict[str, Small]:
        dtypes = {path: source.dtype(path) for path in some}
        left = {path: how for path, how in some.items() if path not in source.kept(some)}
        return usage.by_use(source.decoder, source.canonical, pieces, left, dtypes, progress)

    if wanted.algorithm == GPTQ:
        return _Ahead(by_use(plan))
    from edgecore_mlx import learned

    rounded = by_use if folder_decoder(source.folder) else lambda _: {}
    found = learned.run(source.folder, wanted, plan, pieces, rounded, options, progress)
    return _Ahead(found.packed, found.plain, found.notes)


class _Ticking:
    """Progress that can be told again where nothing is further, for who may be cancelled meanwhile."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._last = progress, (0, 1, "weights")

    def __call__(self, done: int, total: int, stage: str = "") -> None:
        self._last = (done, total, stage)
        self.again()

    def again(self) -> None:
        self._progress(*self._last)


def _entries(
    source: Source, wanted: Recipe, plan: Mapping[str, Packing], ahead: _Ahead, again: Callable[[], None]
) -> Iterator[Entry]:
    """What the folder gets, rounded when it is written where that was not done before. The smallest first: what is
    behind a large matrix has longer numbers in the file's header."""
    algorithm, kept = MSE if wanted.algorithm in WITH_TEXT else wanted.algorithm, source.kept(plan)
    for name, weight in sorted(source.weights.items(), key=lambda item: item[1].nbytes):
        path = name.removesuffix(".weight")
        if name in ahead.plain:
            yield array(name, source.stored[name].dtype, ahead.plain[name])
        elif path in ahead.packed:
            small = ahead.packed[path]
            yield from _packed(path, weight, small.packing, source.dtype(path), partial(_itself, small))
        elif path in plan and path not in kept:
            used = source.use_of_head if algorithm == MSE and path == source.tied_head else None
            rounded = _Rounding(weight, plan[path], source.dtype(path), algorithm, used, again)
            yield from _packed(path, weight, plan[path], source.dtype(path), rounded)
        else:
            for part in ("weight", "scales", "biases", "weight_scale") if name.endswith(".weight") else ("",):
                stored = source.stored.get(f"{path}.{part}" if part else name)
                if stored is not None:
                    yield Entry(stored.name, stored.dtype, stored.shape, partial(_copied, stored))


def _packed(path: str, weight: Weight, how: Packing, dtype: str, made: Callable[[], Small]) -> Iterator[Entry]:
    """The arrays of one matrix; `made` is called once, for the first of them, and what it gave is forgotten with the
    last."""
    *outer, columns = weight.shape
    groups, kept = columns // how.group_size, list[Small]()
    shapes = {"weight": ("U32", columns * how.bits // 32), "scales": (dtype if how.mode == AFFINE else "U8", groups)}
    if how.mode == AFFINE:
        shapes["biases"] = (dtype, groups)

    def pieces(part: str) -> Iterator[Bytes]:
        if not kept:
            kept.append(made())
        yield from _bytes(getattr(kept[0], part))
        if part == list(shapes)[-1]:
            kept.clear()

    for part, (type, last) in shapes.items():
        yield Entry(f"{path}.{part}", type, (*outer, last), partial(pieces, part))


@dataclass(frozen=True, slots=True)
class _Rounding:
    """A matrix, rounded when it is called for."""

    weight: Weight
    how: Packing
    dtype: str
    algorithm: str
    used: Callable[[], Floats] | None
    """How, where that is known without a text."""
    again: Callable[[], None]

    def __call__(self) -> Small:
        used, rows = self.used() if self.used else None, self.weight.shape[0]
        step = max(1, (_AT_ONCE if used is None else usage.AT_ONCE) * rows // self.weight.elements)
        return affine.joined([self._part(at, min(at + step, rows), used) for at in range(0, rows, step)])

    def _part(self, start: int, stop: int, used: Floats | None) -> Small:
        self.again()
        numbers = self.weight.rows(start, stop).reshape(-1, self.weight.shape[-1])
        _check_range(self.weight.name, numbers, self.dtype)
        if used is not None:
            return affine.by_use(numbers, used, self.how, self.dtype)
        return affine.rounded(numbers, self.how, self.dtype, self.algorithm)


def _check_range(name: str, numbers: Floats, dtype: str) -> None:
    """Packed blocks may stand for more than the type of their scales holds."""
    if dtype == "F16" and np.abs(numbers).max() > np.finfo(NUMPY[dtype]).max:
        raise UnsupportedPrecision(
            f"{name!r} holds weights too large for scales in float16", supported="a source converted to f32 or bf16"
        )


def _itself(small: Small) -> Small:
    return small


def _copied(stored: folder.Stored) -> Iterator[Bytes]:
    yield from _bytes(stored.read())


def _bytes(values: NDArray[Any]) -> Iterator[Bytes]:
    yield np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def _used(wanted: Recipe, pieces: Pieces, calibration: Path | None) -> str:
    written = "" if calibration else " that the model wrote"
    return f"{wanted.algorithm} on {len(pieces)} samples of {len(pieces[0])} tokens{written}"
