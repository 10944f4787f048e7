"""NNCF on the weights of a text model's IR, without torch, and an account of what each matrix became."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import nncf
import numpy as np
import openvino as ov
from nncf.quantization.advanced_parameters import GroupSizeFallbackMode

from edgecore.checkpoint import calibration as text
from edgecore.contract import (
    Artifact,
    BadRequest,
    CorruptModel,
    Fallback,
    Made,
    Progress,
    UnsupportedModel,
    Value,
)
from edgecore_openvino.calibration import Feeding, inputs, own_text
from edgecore_openvino.folder import MODEL, WEIGHTS, copy_beside, model_file, open_tokenizer, payload, trained_context
from edgecore_openvino.four_bits import in_four_bits
from edgecore_openvino.recipe import FIXED, LEAST_GROUP, Recipe, recipe
from edgecore_openvino.runtime import read_model
from edgecore_openvino.saving import save
from edgecore_openvino.watching import watched
from edgecore_openvino.weights import Weight, find, in_layer, measure

FLOATS = ("f32", "f16", "bf16")
STORED = {
    "int8_asym": "u8", "int8_sym": "i8", "int4_asym": "u4", "int4_sym": "i4", "nf4": "nf4", "mxfp4": "f4e2m1",
    "nvfp4": "f4e2m1",
}  # fmt: skip
"""NNCF's mode to the element type that an IR has for it."""


def quantize(
    artifact: Artifact,
    out: Path,
    precision: str,
    calibration: Path | None,
    options: Mapping[str, Value],
    progress: Progress,
) -> Made:
    """Writes the folder into `out`. Raises `UnsupportedPrecision`, `UnsupportedModel`, `BadRequest`, `Cancelled`."""
    own = bool(options.get("self_calibration"))
    if own and calibration:
        raise BadRequest("a calibration text and self_calibration", supported="one of them")
    wanted = recipe(precision, options, own or calibration is not None)
    source = model_file(artifact)
    model = read_model(source)
    _check_source(source)
    given = own or calibration is not None
    feeding = _feeding(model, source.parent, calibration, options, progress) if given and _looks(wanted) else None
    rest = wanted
    if feeding and wanted.gptq:
        in_four_bits(model, wanted, feeding, progress)
        rest = replace(wanted, gptq=False, mode=wanted.mode if wanted.all_layers else wanted.backup)
    if rest.mode != "none":
        with watched(progress):
            model = _compressed(model, rest, feeding)
    progress(0, 1, "writing")
    save(model, out / MODEL)
    beside = [file for file in copy_beside(source.parent, out) if file.path != "openvino_config.json"]
    (out / "openvino_config.json").unlink(missing_ok=True)  # what optimum says of its own quantization
    progress(1, 1, "writing")
    return Made(
        files=(*payload([MODEL, WEIGHTS]), *beside),
        weights=measure(out / MODEL, _fallbacks(out / MODEL, wanted)),
        notes=(*artifact.notes, *_notes(wanted, feeding, calibration)),
        tools={"nncf": version("nncf")},
    )


def _check_source(file: Path) -> None:
    """NNCF passes over what is quantized already, and rounds what is no number to one; it would say nothing."""
    weights = find(file).values()
    if small := {_type(weight) for weight in weights if weight.matrix} - set(FLOATS):
        raise UnsupportedModel(
            f"{file}: its weights are {', '.join(sorted(small))} already",
            supported="quantize from f16 or f32",
            hint="edgecore convert MODEL --backend openvino --precision f16",
        )
    for weight in weights:
        if not np.isfinite(weight.stored.get_data(dtype=np.float32)).all():
            raise CorruptModel(f"{file.with_suffix('.bin')}: {weight.name!r} holds weights that are NaN or infinite")


def _looks(wanted: Recipe) -> bool:
    """Whether anything in the recipe looks at activations."""
    return wanted.calibrated or wanted.awq or wanted.ratio < 1


def _feeding(
    model: ov.Model, folder: Path, calibration: Path | None, options: Mapping[str, Value], progress: Progress
) -> Feeding:
    """Samples of the text, or of what the model writes where there is none."""
    count = int(options.get("calibration_samples") or (text.SAMPLES if calibration else text.OWN_SAMPLES))
    length = int(options.get("calibration_length") or text.LENGTH)
    length = min(length, trained_context(folder) or length)
    tokenizer = open_tokenizer(folder)
    if calibration:
        pieces = text.samples(tokenizer, text.read_text(calibration), count, length)
    else:
        pieces = own_text(model, tokenizer, count, length, progress)
    return Feeding(pieces, inputs(model))


def _compressed(model: ov.Model, wanted: Recipe, feeding: Feeding | None) -> ov.Model:
    mode = nncf.CompressWeightsMode(wanted.mode)
    if wanted.mode.startswith("int8"):
        return nncf.compress_weights(model, mode=mode)
    feeding = feeding if _looks(wanted) else None
    count, microscaling = len(feeding) if feeding else 1, wanted.mode in ("mxfp4", "nvfp4")
    return nncf.compress_weights(
        model,
        mode=mode,
        ratio=wanted.ratio,
        group_size=wanted.group_size,
        all_layers=wanted.all_layers,
        backup_mode=nncf.BackupMode(wanted.backup),
        dataset=nncf.Dataset(feeding) if feeding else None,
        subset_size=count,
        awq=wanted.awq,
        scale_estimation=wanted.scale_estimation,
        advanced_parameters=nncf.AdvancedCompressionParameters(
            group_size_fallback_mode=GroupSizeFallbackMode.IGNORE if microscaling else GroupSizeFallbackMode.ADJUST,
            min_adjusted_group_size=LEAST_GROUP,
            awq_params=nncf.AdvancedAWQParameters(subset_size=count),
            scale_estimation_params=nncf.AdvancedScaleEstimationParameters(subset_size=count),
        ),
    )


def _fallbacks(file: Path, wanted: Recipe) -> Iterator[Fallback]:
    """Matrices of the layers that have another type, or smaller groups, than the recipe plans for."""
    least = wanted.group_size if "group_size" in FIXED.get(wanted.mode, ()) else LEAST_GROUP
    planned = {STORED[wanted.mode]} | ({STORED.get(wanted.backup, "f16")} if wanted.ratio < 1 else set())
    for weight in filter(in_layer, find(file).values()):
        shape = list(weight.stored.get_output_shape(0))
        columns, group = math.prod(shape[1:]), shape[-1]
        if _type(weight) not in planned:
            reason = f"rows of {columns} cannot be cut into equal groups of {least} or more"
            yield Fallback(weight.name, _type(weight), reason)
        elif len(shape) == 3 and group != wanted.group_size:
            reason = f"rows of {columns} cannot be cut into groups of {wanted.group_size}"
            yield Fallback(weight.name, f"{wanted.mode}, groups of {group}", reason)


def _type(weight: Weight) -> str:
    return str(weight.stored.get_output_element_type(0).get_type_name())


def _notes(wanted: Recipe, feeding: Feeding | None, calibration: Path | None) -> list[str]:
    if feeding is None:
        return ["the calibration text was not used: nothing in the recipe looks at activations"] if calibration else []
    used = [name for name in ("gptq", "awq", "scale_estimation") if getattr(wanted, name)]
    pieces = feeding.pieces
    how = " and ".join(used) or "the choice of sensitive matrices"
    return [
        f"{how.replace('_', ' ')} on {len(pieces)} samples of {len(pieces[0])} tokens"
        + ("" if calibration else " that the model wrote")
    ]
