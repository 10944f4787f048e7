"""What a benchmark is asked for and what it answers: raw samples, never a rate that someone else computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Workload:
    """One workload. Every backend gets the same token ids, so results can be compared."""

    prompt: tuple[int, ...]
    """Token ids of the prompt; its length is the prefill length."""
    decode: int
    """Tokens to decode after the prompt, one at a time; 0 measures prefill alone."""
    repetitions: int = 5
    """Counted repetitions after `warmup` ones that are not."""
    warmup: int = 1
    mode: str = "bare"
    """`bare`: the model's step on given tokens, as llama-bench does it, logits left where they are.
    `greedy`: the token chosen from the logits of the step before, as a user gets it."""
    threads: int | None = None
    context_length: int | None = None
    """Tokens, at least 1; None lets the backend choose."""
    feeds: str = ""
    """Path of a `.npz` of feeds for a tensor model, for which `decode` counts calls; empty makes them up."""


@dataclass(frozen=True, slots=True)
class Repetition:
    """One counted repetition, in seconds by a monotonic clock."""

    prefill: float
    """From handing over the prompt until its last logits could be read."""
    steps: tuple[float, ...]
    """One duration a decoded token."""


@dataclass(frozen=True, slots=True)
class Samples:
    """All counted repetitions of one workload in one process."""

    repetitions: tuple[Repetition, ...]
    load: float
    """Seconds from opening the artifact to a usable session."""
    native_loop: bool
    """True where the backend's own loop measured, False where the contract's did."""
    tokens: tuple[int, ...] = ()
    """Token ids that the last repetition decoded (greedy) or was given (bare)."""
    conditions: Mapping[str, str] = field(default_factory=dict)
    """What must agree before two results may be compared: `threads`, `context`, `device`, `compute`
    (inference precision), `kv_cache` (its precision)."""
    counters: Mapping[str, float] = field(default_factory=dict)
    """The runtime's own counters, in its own names, for the reader; nothing is computed from them."""
