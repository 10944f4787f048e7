"""What a measurement answers: each figure with its spread, the raw samples it came from, and what speaks against it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from edgecore.contract.measurement import Samples, Workload
from edgecore.measure.memory import Memory
from edgecore.measure.statistics import Interval


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One arm: medians over its visits, with 95 % bootstrap intervals."""

    label: str
    backend: str
    device: str
    precision: str
    artifact: str
    """Id, or the path of a native file."""
    emulated: bool
    """Whether the device executes elsewhere what its name promises: then its rates are None: they are not speed."""
    native_loop: bool
    """Whether the backend's own loop measured, or the core's."""
    load: Interval
    """Seconds from opening to a usable session, files in the system's cache."""
    first_load: float
    """Seconds of the first load in this process."""
    ttft: Interval | None
    """Seconds to the first token: prefill of the whole prompt. None without a prompt."""
    prefill: Interval | None
    """Prompt tokens a second."""
    decode: Interval | None
    """Decoded tokens a second; for tensor models, calls a second."""
    inter_token: tuple[float, float, float] | None
    """50th, 95th and 99th percentile of a step, seconds, over all steps."""
    memory: Memory
    """The worker's peak, the interpreter and its libraries included."""
    streamed_bytes: int
    """Bytes of weights that a decoded token has to read, taken as the size of the model's files."""
    bandwidth_fraction: float | None
    """`decode` x `streamed_bytes` over the measured memory bandwidth; None where the device is not the CPU."""
    conditions: Mapping[str, str]
    counters: Mapping[str, float]
    """The runtime's own, of the last visit."""
    samples: tuple[Samples, ...]
    """Raw, one an uninterrupted visit, in order."""
    void: str = ""
    """Why the result does not count; empty where it does."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """One arm over the first, from pairs that were measured side by side."""

    label: str
    over: str
    what: str
    """`prefill` or `decode`."""
    interval: Interval


@dataclass(frozen=True, slots=True)
class Comparison:
    """All arms of one measurement."""

    workload: Workload
    pairs: int
    arms: tuple[ArmResult, ...]
    ratios: tuple[Ratio, ...]
    """Empty where the arms are not comparable."""
    noise: tuple[Ratio, ...]
    """The first arm against itself, in another process: what a ratio that means nothing looks like here."""
    not_comparable: tuple[str, ...]
    """Why no ratio is given; empty where ratios are, or where there is one arm."""
    bandwidth: float | None
    """Bytes a second that this machine's memory was measured to deliver; None where no arm ran on the CPU."""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    load_average: tuple[float, ...] = field(default=())
    """Of the last minute, before and after: a busy machine. Empty where the system does not tell."""

    @property
    def noise_floor(self) -> float | None:
        """The farther end of the A/A interval of decode from 1 (0.03 is 3 %); None where no A/A run was made."""
        ends = [abs(end - 1) for r in self.noise if r.what == "decode" for end in (r.interval.low, r.interval.high)]
        return max(ends, default=None)

    def ratio(self, label: str, what: str = "decode") -> Interval | None:
        """Of the arm `label` over the first."""
        return next((r.interval for r in self.ratios if r.label == label and r.what == what), None)

    def to_dict(self) -> dict[str, Any]:
        """JSON, raw samples included; what is not a number is None."""
        return {**_plain(asdict(self)), "noise_floor": self.noise_floor}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
