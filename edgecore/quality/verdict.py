"""From figures to a verdict. Each check keeps the figure, the bound and where the bound came from, so that a person who
is refused can see by how much, and judge the judge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self

from edgecore.contract.artifacts import Weights
from edgecore.contract.precisions import OVERSIZE, Precision
from edgecore.quality.bounds import FILE, Bounds
from edgecore.quality.divergence import Divergence
from edgecore.quality.tensors import WeightNoise

PATHS_X = 4
"""The two ways of computing err each on their own, and a few positions scatter more than a text does."""


class Verdict(StrEnum):
    """What may be done with an artifact."""

    ACCEPTED = "accepted"
    """Compared, and within every bound."""
    REFUSED = "refused"
    """Compared, and outside a bound."""
    UNVERIFIED = "unverified"
    """Not compared, for the reason that is given."""


@dataclass(frozen=True, slots=True)
class Check:
    """One figure beside its bound."""

    name: str
    """`kernels`, `file`, `total`, `weights`, `garbage`, `size`, `paths`, `tokenizer`."""
    measured: float
    bound: float
    """The largest `measured` that passes."""
    what: str
    """What was measured, with its unit."""
    origin: str
    """Where the bound came from."""

    @property
    def passed(self) -> bool:
        """A figure that is not a number does not pass."""
        return self.measured <= self.bound

    def __str__(self) -> str:
        relation = "within" if self.passed else "exceeds"
        return f"{self.what} {self.measured:.3g} {relation} {self.bound:.3g} ({self.origin})"

    def to_dict(self) -> dict[str, Any]:
        """JSON knows no infinity: None stands for it."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}
        return {**finite, "passed": self.passed}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        values: dict[str, Any] = {
            name: math.inf if data[name] is None else data[name] for name in cls.__dataclass_fields__
        }
        return cls(**values)


def kernels_check(kernels: Divergence, compute: str, origin: str, bounds: Bounds) -> Check:
    """The backend against the oracle on the same weights."""
    return Check(
        "kernels",
        kernels.kl_mean,
        bounds.kernel(compute),
        "kernels: mean KL of the backend from the oracle on the same weights",
        f"fixed bound for {compute} compute, {FILE}; {origin}",
    )


def file_check(file: Divergence, baseline: Divergence | None, bits: float, bounds: Bounds) -> Check:
    """The file's weights against the source's, both through the oracle. `baseline` None: 32 bits, nothing to lose."""
    return Check(
        "file",
        file.kl_mean,
        _allowed(baseline, bounds),
        "file: mean KL of its weights from the source's",
        _origin(baseline, bits, bounds),
    )


def total_check(
    total: Divergence, baseline: Divergence | None, bits: float, compute: str, origin: str, bounds: Bounds
) -> Check:
    """Where the backend gives no weights, file and kernels cannot be told apart, and both bounds together hold."""
    return Check(
        "total",
        total.kl_mean,
        _allowed(baseline, bounds) + bounds.kernel(compute),
        "file and kernels together: mean KL of the backend from the source",
        f"{_origin(baseline, bits, bounds)}, and {bounds.kernel(compute):g} for {compute} compute; {origin}",
    )


def typical_check(total: Divergence, loss: float, bits: float, compute: str, origin: str, bounds: Bounds) -> Check:
    """Where the oracle cannot run, what round-to-nearest loses on the model of the bounds stands in for this model."""
    return Check(
        "total",
        total.kl_mean,
        bounds.file_multiple * loss + bounds.file_slack + bounds.kernel(compute),
        "file and kernels together: mean KL of the backend from its reference",
        f"{bounds.file_multiple:g} x {loss:.3g}, what round-to-nearest of {bits:g} bits loses on the model that the "
        f"bounds come from; {FILE}; {bounds.kernel(compute):g} for {compute} compute; {origin}",
    )


def garbage_check(total: Divergence, gain: float, bounds: Bounds) -> Check:
    return Check(
        "garbage",
        total.kl_mean,
        bounds.garbage_share * gain,
        "garbage floor: mean KL from the source",
        f"{bounds.garbage_share:g} x {gain:.3g} nats, all that the source's predictions gain from reading the text; "
        f"{FILE}",
    )


def size_check(weights: Weights, precision: Precision) -> Check:
    nominal = precision.bits + precision.overhead
    return Check(
        "size",
        weights.eligible_bits_per_weight,
        OVERSIZE * nominal,
        "size: measured bits per weight over the matrices",
        f"{OVERSIZE:g} x {nominal:g}, the bits that {precision.name} stands for"
        + (f"; {len(weights.fallbacks)} tensors fell back to another type" if weights.fallbacks else ""),
    )


def paths_check(difference: float, compute: str, bounds: Bounds) -> Check:
    return Check(
        "paths",
        difference,
        PATHS_X * bounds.kernel(compute),
        "paths: mean KL between scoring a text at once and stepping through it, as generation does",
        f"{PATHS_X} x the fixed bound for {compute} compute, {FILE}: two errors add up, over a few positions",
    )


def tokenizer_check(differing: int) -> Check:
    return Check(
        "tokenizer", differing, 0, "tokenizer: tokens of the text that differ from the source's", "they must be equal"
    )


def weights_check(noise: WeightNoise, bits: float, bounds: Bounds) -> Check:
    """Stands in for the file gate. KL grows with the noise power of the weights, so the same multiple applies."""
    return Check(
        "weights",
        noise.noise_ratio,
        bounds.file_multiple,
        "file: noise power of its weights over that of round-to-nearest",
        f"{bounds.file_multiple:g} x round-to-nearest of {bits:g} bits, {FILE}; stands in for a comparison of logits",
    )


def decide(checks: Sequence[Check], compared: bool, why_not: Sequence[str]) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict and its reasons: every check that failed; or why nothing was compared; or every check that passed."""
    failed = tuple(str(check) for check in checks if not check.passed)
    if failed:
        return Verdict.REFUSED, failed
    if not compared:
        return Verdict.UNVERIFIED, tuple(why_not)
    return Verdict.ACCEPTED, tuple(map(str, checks))


def _allowed(baseline: Divergence | None, bounds: Bounds) -> float:
    return (bounds.file_multiple * baseline.kl_mean if baseline else 0.0) + bounds.file_slack


def _origin(baseline: Divergence | None, bits: float, bounds: Bounds) -> str:
    if baseline is None:
        return f"{bits:g} bits lose nothing; {FILE}"
    lost = f"{baseline.kl_mean:.3g}, what round-to-nearest of {bits:g} bits loses on this model"
    return f"{bounds.file_multiple:g} x {lost}; {FILE}"
