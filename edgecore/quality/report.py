"""One call that compares an artifact with its source and says whether it is good enough, and why.

Up to four models read the same text in lockstep: the source through the oracle, the artifact's weights through the
oracle, the source rounded to nearest through the oracle, and the artifact through its backend. From them come what the
file lost, what the kernels lost, both together, and what the bits had to cost on this model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Self

from edgecore.checkpoint.opening import Checkpoint
from edgecore.checkpoint.tensors import Readable
from edgecore.contract.artifacts import Weights
from edgecore.contract.errors import UnsupportedModel
from edgecore.contract.precisions import Precision
from edgecore.contract.progress import Progress, no_progress
from edgecore.contract.sessions import TextSession
from edgecore.quality import verdict as judging
from edgecore.quality.bounds import bounds, compute_class
from edgecore.quality.comparison import Figures, Request, compare_models
from edgecore.quality.divergence import Divergence
from edgecore.quality.oracles import given_weights, measure_cost
from edgecore.quality.tensors import WeightNoise, weight_noise
from edgecore.quality.texts import token_limit
from edgecore.quality.verdict import Check, Verdict

FEWEST = 64
"""Tokens below which a comparison of logits says too little; the weights are compared instead."""


@dataclass(frozen=True, slots=True)
class Assessment:
    """A verdict with everything that it rests on; `to_dict` is the JSON that evidence keeps."""

    verdict: Verdict
    reasons: tuple[str, ...]
    """The checks that failed; or why it was not compared; or the checks that passed."""
    checks: tuple[Check, ...] = ()
    """Every figure beside its bound, and where the bound came from."""
    total: Divergence | None = None
    """The backend from the source."""
    file: Divergence | None = None
    """The artifact's weights from the source's, both through the oracle."""
    kernels: Divergence | None = None
    """The backend from the oracle, on the artifact's weights."""
    baseline: Divergence | None = None
    """The source rounded to nearest with the precision's nominal bits, from the source."""
    bits: float | None = None
    """Those bits."""
    compute: str = ""
    """Compute precision by which the kernels were judged."""
    context_gain: float | None = None
    """Nats that the source's predictions gain from reading the text."""
    noise: WeightNoise | None = None
    """Where the budget did not allow logits: noise of the weights stands in."""
    method: str = "none"
    """`logits`, `weights` (noise of the weights stands in), or `none`."""
    tokens: int = 0
    text_sha256: str = ""
    seconds: float = 0.0
    """What the comparison took."""
    notes: tuple[str, ...] = ()
    """What a reader should know about how it was compared."""

    @classmethod
    def unverified(cls, reason: str) -> Self:
        """For what cannot be compared at all."""
        return cls(Verdict.UNVERIFIED, (reason,))

    def summary(self) -> str:
        """One line for people: the figures that decide."""
        if self.noise is not None:
            ours, baseline = self.noise.sqnr_db, self.noise.baseline_sqnr_db
            return f"weights {ours:.1f} dB (round-to-nearest {baseline:.1f} dB), logits not compared"
        shown = self.total or self.file
        if shown is None:
            return "; ".join(self.reasons)
        parts = [f"KL {shown.kl_mean:.2g}", f"top-1 {shown.top1:.1%}", f"perplexity x{shown.perplexity_ratio:.3f}"]
        parts += [f"{c.name} {c.measured:.2g} of {c.bound:.2g}" for c in self.checks if c.name in _GATES]
        failed = [check.name for check in self.checks if not check.passed]
        return ", ".join(parts) + (f"; outside its bound: {', '.join(failed)}" if failed else "")

    def to_dict(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in _PLAIN}
        nested = {name: value.to_dict() if (value := getattr(self, name)) else None for name in _DIVERGENCES}
        return {
            "verdict": self.verdict.value,
            "reasons": list(self.reasons),
            "checks": [check.to_dict() for check in self.checks],
            **nested,
            "noise": self.noise.to_dict() if self.noise else None,
            "notes": list(self.notes),
            **plain,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        fields: dict[str, Any] = {name: data[name] for name in _PLAIN}
        for name in _DIVERGENCES:
            fields[name] = Divergence.from_dict(data[name]) if data.get(name) else None
        fields["noise"] = WeightNoise.from_dict(data["noise"]) if data.get("noise") else None
        checks = tuple(map(Check.from_dict, data["checks"]))
        return cls(Verdict(data["verdict"]), tuple(data["reasons"]), checks, notes=tuple(data["notes"]), **fields)


_DIVERGENCES = ("total", "file", "kernels", "baseline")
_PLAIN = ("bits", "compute", "context_gain", "method", "tokens", "text_sha256", "seconds")
_GATES = ("kernels", "file", "total")


def assess(
    *,
    reference: Checkpoint,
    session: TextSession,
    weights: Mapping[str, Any] | None,
    precision: Precision | None,
    weights_stats: Weights | None,
    text: str,
    text_sha256: str,
    budget_seconds: float = 60.0,
    on_progress: Progress = no_progress,
) -> Assessment:
    """Compare an opened artifact with its source.

    weights:        what the backend says its weights are, dequantized, float32 by canonical name; None where it cannot.
    precision:      what was asked for; None (a native file of an unknown type) leaves the file without a bound.
    weights_stats:  measured size of the file, for the size check; None where not known.
    budget_seconds: a comparison predicted to take longer is made on fewer tokens, down to 64, then on weights alone.
    """
    start = perf_counter()
    notes: list[str] = []
    tokens, checks = _tokens(reference, session, text, text_sha256, notes)
    given = _given(weights, reference, notes)
    if weights_stats is not None and precision is not None:
        checks.append(judging.size_check(weights_stats, precision))
    bits = precision.bits if precision is not None else None
    if bits is None:
        notes.append("the precision is not declared, so there is no bound on what the file lost")
    fitting = _fitting(reference, given, bits, len(tokens), budget_seconds)
    if fitting < min(FEWEST, len(tokens)):
        made = _by_weights(reference, weights if given else None, bits, checks, budget_seconds, on_progress)
    else:
        if fitting < len(tokens):
            notes.append(f"{fitting} of {len(tokens)} tokens, to stay within {budget_seconds:g} s")
        request = Request(reference, session, given, precision, tuple(tokens[:fitting]), text_sha256)
        made = _by_logits(compare_models(request, on_progress), request, checks)
    return replace(
        made, notes=(*notes, *made.notes), bits=bits, text_sha256=text_sha256, seconds=round(perf_counter() - start, 2)
    )


def _by_logits(figures: Figures, request: Request, checks: Sequence[Check]) -> Assessment:
    """Put every figure beside its bound."""
    limits, bits = bounds(), request.bits
    stated, rounds = request.session.conditions.get("compute", ""), request.reference.decoder.int8_activations
    compute, origin = compute_class(stated, request.precision, rounds)
    made = list(checks)
    if figures.kernels is not None:
        made.append(judging.kernels_check(figures.kernels, compute, origin, limits))
    if figures.file is not None and bits is not None:
        made.append(judging.file_check(figures.file, figures.baseline, bits, limits))
    elif figures.total is not None and bits is not None:
        made.append(judging.total_check(figures.total, figures.baseline, bits, compute, origin, limits))
    worst = figures.total or figures.file
    if worst is not None:
        made.append(judging.garbage_check(worst, figures.context_gain, limits))
    if figures.paths is not None:
        made.append(judging.paths_check(figures.paths, compute, limits))
    verdict, reasons = judging.decide(made, figures.total is not None, (figures.missing,))
    return Assessment(
        verdict,
        reasons,
        tuple(made),
        total=figures.total,
        file=figures.file,
        kernels=figures.kernels,
        baseline=figures.baseline,
        compute=compute,
        context_gain=figures.context_gain,
        method="logits" if worst is not None else "none",
        tokens=len(request.tokens),
    )


def _by_weights(
    reference: Checkpoint,
    weights: Mapping[str, Any] | None,
    bits: float | None,
    checks: Sequence[Check],
    budget: float,
    progress: Progress,
) -> Assessment:
    """The oracle would take too long here: noise of the weights stands in, where they and a bound can be had."""
    why = f"comparing logits with the source would take more than {budget:g} s on this machine"
    if weights is None or bits is None or bits >= 32:
        what = "gives no weights" if weights is None else "has no declared bits below 32"
        return Assessment(*judging.decide(checks, False, [f"{why}, and the artifact {what}"]), checks=tuple(checks))
    noise = weight_noise(reference.tensors, weights, bits, progress)
    made = (*checks, judging.weights_check(noise, bits, bounds()))
    verdict, reasons = judging.decide(made, True, ())
    return Assessment(
        verdict, reasons, made, noise=noise, method="weights", notes=(f"{why}: the noise of its weights stands in",)
    )


def _tokens(
    reference: Checkpoint, session: TextSession, text: str, sha256: str, notes: list[str]
) -> tuple[list[int], list[Check]]:
    """The ids that everybody scores, the source's own, and the check that the backend reads the text alike."""
    theirs = session.tokenize(text)
    try:
        ours = reference.tokenizer.encode(text)
    except UnsupportedModel as error:
        notes.append(f"tokens are the backend's own: {error.what}")
        ours, checks = theirs, []
    else:
        differing = sum(a != b for a, b in zip(ours, theirs, strict=False)) + abs(len(ours) - len(theirs))
        checks = [judging.tokenizer_check(differing)]
    room = min(token_limit(sha256), session.context_length, reference.decoder.context_length)
    return ours[:room], checks


def _given(weights: Mapping[str, Any] | None, reference: Checkpoint, notes: list[str]) -> Mapping[str, Readable] | None:
    if weights is None:
        notes.append("the backend does not give its weights, so the losses of file and kernels are not told apart")
        return None
    given = given_weights(weights, reference.tensors)
    if isinstance(given, str):
        notes.append(f"{given}, so the losses of file and kernels are not told apart")
        return None
    return given


def _fitting(
    reference: Checkpoint, given: Mapping[str, Readable] | None, bits: float | None, tokens: int, budget: float
) -> int:
    """The largest of tokens, tokens/2, tokens/4 ... whose comparison is predicted to fit the budget; 0 where none."""
    cost = measure_cost(reference.decoder, reference.tensors, given, bits or 32)
    baseline = bits is not None and bits < 32
    while tokens and cost.seconds(tokens, file=given is not None, baseline=baseline) > budget:
        tokens //= 2
    return tokens
