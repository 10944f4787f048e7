"""Figures for arrays: outputs of tensor models, and weights where logits would take too long.

Signal to quantization-noise ratio (SQNR) is 10 log10(sum x^2 / sum (x - y)^2), in decibels: 6.02 dB are one bit.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint.tensors import Readable
from edgecore.contract.errors import BadRequest
from edgecore.contract.progress import Progress, no_progress
from edgecore.quality.rounding import bits_for, eligible, round_to_nearest

SAMPLED_ROWS = 256
"""Rows of each matrix that stand for it, taken in runs of 64 that are spread over it."""


@dataclass(frozen=True, slots=True)
class TensorError:
    """How far an array is from its reference."""

    max_error: float
    """Largest absolute difference. Infinite where a value is no number and the reference's is one."""
    relative_error: float
    """`max_error` over the largest absolute value of the reference."""
    sqnr_db: float
    """Infinite for equal arrays."""


@dataclass(frozen=True, slots=True)
class WeightNoise:
    """What quantization did to the matrices, beside what round-to-nearest of equal bits does to the same rows."""

    sqnr_db: float
    """Mean noise over signal of all matrices, in decibels."""
    baseline_sqnr_db: float
    noise_ratio: float
    """Noise power over that of round-to-nearest; 4 is one bit worse."""
    worst: tuple[tuple[str, float], ...]
    """The five tensors with the lowest SQNR, dB, the lowest first."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        worst = tuple((str(name), float(db)) for name, db in data["worst"])
        return cls(data["sqnr_db"], data["baseline_sqnr_db"], data["noise_ratio"], worst)


def compare_tensors(reference: NDArray[Any], candidate: NDArray[Any]) -> TensorError:
    """Error of one output; integers and booleans are compared as numbers. Raises `BadRequest` for other shapes."""
    if reference.shape != candidate.shape:
        raise BadRequest(f"shape {candidate.shape} where the reference has {reference.shape}")
    x, y = reference.astype(np.float64).ravel(), candidate.astype(np.float64).ravel()
    if x.size == 0:
        return TensorError(0.0, 0.0, math.inf)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, np.abs(x - y))
    error = np.where(np.isnan(error), np.inf, error)
    worst, largest = float(error.max()), float(np.abs(x[np.isfinite(x)]).max(initial=0.0))
    with np.errstate(over="ignore"):
        noise, signal = float((error**2).sum()), float((x[np.isfinite(x)] ** 2).sum())
    return TensorError(worst, worst / largest if largest else (math.inf if worst else 0.0), decibels(signal, noise))


def compare_outputs(
    reference: Mapping[str, NDArray[Any]], candidate: Mapping[str, NDArray[Any]]
) -> dict[str, TensorError]:
    """By output name. Raises `BadRequest` naming an output that is missing."""
    for name in reference:
        if name not in candidate:
            raise BadRequest(f"output {name!r} is missing", supported=", ".join(reference))
    return {name: compare_tensors(reference[name], candidate[name]) for name in reference}


def decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal and math.isfinite(noise) else -math.inf


def weight_noise(
    reference: Mapping[str, Readable],
    weights: Mapping[str, Any],
    bits: float,
    progress: Progress = no_progress,
) -> WeightNoise:
    """Compare sampled rows of every matrix with the source's, and the source's with themselves rounded to `bits`.

    reference: the source's tensors; weights: float32 arrays by the same names.
    """
    names = [name for name, tensor in reference.items() if eligible(name, tensor.shape)]
    noises: dict[str, float] = {}
    baselines: list[float] = []
    for number, name in enumerate(names):
        progress(number, len(names), "comparing weights")
        runs = _runs(reference[name].shape[0])
        x = np.concatenate([reference[name].rows(a, b) for a, b in runs])
        whole = np.asarray(weights[name], np.float32)
        if whole.shape != reference[name].shape:
            raise BadRequest(f"{name}: has shape {whole.shape}, its source {reference[name].shape}")
        y = np.concatenate([whole[a:b] for a, b in runs])
        rounded = round_to_nearest(x, bits_for(name, bits), seed=zlib.crc32(name.encode()))
        signal = float((x.astype(np.float64) ** 2).sum()) or 1.0
        noise = float(((x - y).astype(np.float64) ** 2).sum()) / signal
        noises[name] = noise if math.isfinite(noise) else math.inf
        baselines.append(float(((x - rounded).astype(np.float64) ** 2).sum()) / signal)
    progress(len(names), len(names), "comparing weights")
    noise, baseline = _mean(list(noises.values())), _mean(baselines)
    worst = sorted(noises, key=lambda name: -noises[name])[:5]
    return WeightNoise(
        sqnr_db=decibels(1.0, noise),
        baseline_sqnr_db=decibels(1.0, baseline),
        noise_ratio=noise / baseline if baseline else (math.inf if noise else 0.0),
        worst=tuple((name, decibels(1.0, noises[name])) for name in worst),
    )


def _runs(rows: int) -> list[tuple[int, int]]:
    """Aligned runs of 64 rows, spread evenly, `SAMPLED_ROWS` rows in all at most."""
    starts = range(0, rows, 64)
    wanted = max(1, SAMPLED_ROWS // 64)
    chosen = starts if len(starts) <= wanted else [starts[i * len(starts) // wanted] for i in range(wanted)]
    return [(start, min(start + 64, rows)) for start in chosen]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
