"""NNCF on a tensor model: weights alone in 8 bits, or weights and activations, with feeds that show what flows."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino as ov
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix
from nncf.quantization.range_estimator import RangeEstimatorParametersSet
from numpy.typing import NDArray

from edgecore.contract import (
    Artifact,
    BadRequest,
    Made,
    Progress,
    UnsupportedModel,
    UnsupportedPrecision,
    Value,
    check_feeds,
)
from edgecore_openvino.constants import constants, measure
from edgecore_openvino.convert_tensor import FILES, MODEL, save
from edgecore_openvino.interface import Specs, state
from edgecore_openvino.runtime import last_line, read_model
from edgecore_openvino.tensors import load
from edgecore_openvino.watching import watched

WEIGHTS_ONLY = ("int8_sym", "int8_asym")
STORED = ("i8", "u8")
_LARGEST = RangeEstimatorParametersSet.MINMAX
SUBSET = 300
"""Feeds that are looked at, NNCF's own default."""
OPTIONS = (
    "preset",
    "ranges",
    "overflow_fix",
    "fast_bias_correction",
    "subset_size",
    "model_type",
    "ignored_names",
    "ignored_types",
)
NNCF_FAULTS = (nncf.ValidationError, nncf.UnsupportedModelError, nncf.InternalError, RuntimeError, ValueError)
Feeds = Mapping[str, NDArray[Any]]


def quantize(
    artifact: Artifact,
    out: Path,
    precision: str,
    calibration: Path | None,
    options: Mapping[str, Value],
    progress: Progress,
) -> Made:
    """Writes model.xml and model.bin. Raises `UnsupportedPrecision`, `UnsupportedModel` for a model without anything to
    quantize, `BadRequest` for feeds and options that do not fit it, `Cancelled`."""
    if precision not in (*WEIGHTS_ONLY, "a8w8"):
        raise UnsupportedPrecision(
            f"quantize does not make {precision} of a tensor model", supported=", ".join((*WEIGHTS_ONLY, "a8w8"))
        )
    _check_options(precision, options)
    progress(0, 1, "reading")
    model, inputs, outputs = load(artifact.model)
    if stored := sorted({c.type for c in constants(model) if c.eligible and c.type in STORED}):
        raise UnsupportedModel(
            f"{artifact.model.name}: its weights are {', '.join(stored)} already",
            supported="quantize from f32 or f16",
            hint="edgecore convert MODEL.onnx --backend openvino --precision f32",
        )
    ignored = _ignored(options)
    feeds = read_feeds(calibration, inputs) if precision == "a8w8" and calibration else []
    try:
        with watched(progress):
            if precision in WEIGHTS_ONLY:
                mode = nncf.CompressWeightsMode(precision)
                model = nncf.compress_weights(model, mode=mode, ignored_scope=ignored)
            else:
                model = _calibrated(model, inputs, feeds, options, ignored)
    except NNCF_FAULTS as error:
        raise _refusal(artifact.model.name, options, error) from None
    if not any(c.type in STORED for c in constants(model) if c.eligible):
        raise UnsupportedModel(
            f"{artifact.model.name}: no layer whose weights {precision} changes",
            supported="models with matrix products or convolutions",
        )
    state(model, inputs, outputs)
    progress(0, 1, "writing")
    save(model, out, compressed=False)
    progress(1, 1, "writing")
    used = min(len(feeds), int(options.get("subset_size", SUBSET)))
    return Made(
        FILES,
        weights=measure(read_model(out / MODEL), STORED),
        notes=(f"calibrated on {used} feeds",) if feeds else (),
        tools={"nncf": version("nncf")},
    )


def read_feeds(folder: Path, inputs: Specs) -> list[Feeds]:
    """One feed a file, in the order of their names. Raises `BadRequest` naming the file."""
    files = sorted(folder.glob("*.npz")) if folder.is_dir() else []
    if not files:
        raise BadRequest(
            f"calibration data {folder}: no .npz files", supported="a folder of .npz files, in each one array an input"
        )
    found: list[Feeds] = []
    for file in files:
        try:
            with np.load(file, allow_pickle=False) as archive:
                feeds = {name: archive[name] for name in archive.files}
            check_feeds(inputs, feeds)
            _check_ranges(feeds)
        except BadRequest as error:
            raise BadRequest(f"calibration data {file}: {error.what}", supported=error.supported) from None
        except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise BadRequest(
                f"calibration data {file}: is not an .npz file: {error}", supported="what numpy.savez writes"
            ) from None
        found.append(feeds)
    return found


def _check_ranges(feeds: Feeds) -> None:
    """NNCF takes what has no range too, and the model would answer zeros."""
    for name, feed in feeds.items():
        if not feed.size:
            raise BadRequest(f"input {name!r} is empty, which shows no range", supported="at least one number")
        if feed.dtype.kind == "f" and not np.isfinite(feed).all():
            raise BadRequest(f"input {name!r} holds numbers that are not finite", supported="finite numbers")


def _calibrated(
    model: ov.Model,
    inputs: Specs,
    feeds: list[Feeds],
    options: Mapping[str, Value],
    ignored: nncf.IgnoredScope | None,
) -> ov.Model:
    # By position: OpenVINO loses some names.
    dataset = nncf.Dataset(feeds, lambda feed: [feed[spec.name] for spec in inputs])
    preset, kind = options.get("preset"), options.get("model_type", "none")
    # NNCF's own default, the mean of the feeds' largest values, cuts off what most feeds hold: 10 dB on small networks.
    ranges = RangeEstimatorParametersSet.MEAN_MINMAX if options.get("ranges") == "mean" else _LARGEST
    return nncf.quantize(
        model,
        dataset,
        preset=nncf.QuantizationPreset(preset) if preset else None,
        subset_size=int(options.get("subset_size", SUBSET)),
        fast_bias_correction=bool(options.get("fast_bias_correction", True)),
        model_type=nncf.ModelType.TRANSFORMER if kind == "transformer" else None,
        ignored_scope=ignored,
        advanced_parameters=AdvancedQuantizationParameters(
            activations_range_estimator_params=ranges,
            overflow_fix=OverflowFix(options.get("overflow_fix", "enable")),
        ),
    )


def _check_options(precision: str, options: Mapping[str, Value]) -> None:
    known = OPTIONS if precision == "a8w8" else ("ignored_names", "ignored_types")
    for name in options:
        if name not in known:
            raise BadRequest(f"{precision} of a tensor model has no option {name}", supported=", ".join(known))


def _ignored(options: Mapping[str, Value]) -> nncf.IgnoredScope | None:
    names, types = (
        [part.strip() for part in str(options.get(option, "")).split(",") if part.strip()]
        for option in ("ignored_names", "ignored_types")
    )
    return nncf.IgnoredScope(names=names, types=types) if names or types else None


def _refusal(name: str, options: Mapping[str, Value], error: Exception) -> BadRequest | UnsupportedModel:
    if "gnored" in str(error) and _ignored(options):
        return BadRequest(
            f"ignored_names or ignored_types: {' '.join(str(error).split())}",
            supported="names and types of operators in the IR, separated by commas",
        )
    return UnsupportedModel(f"{name}: NNCF does not quantize it: {last_line(error)}")
