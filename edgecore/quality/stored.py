"""Judging by logits alone, where the oracle cannot run: logits made elsewhere, or by the exporter's half precision.

Round-to-nearest on this very model cannot be measured without the oracle, so what it loses on the model that the bounds
were derived from stands in, and every verdict says so. Small models lose more than large ones: for a larger model the
bound is lenient, and the garbage floor, which needs only the reference's logits, holds all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgecore.contract.artifacts import Weights
from edgecore.contract.precisions import Precision
from edgecore.contract.progress import Progress, no_progress
from edgecore.contract.sessions import Logits, TextSession
from edgecore.quality import verdict as judging
from edgecore.quality.bounds import bounds, compute_class
from edgecore.quality.divergence import Accumulator, ContextGain, LogProbs, lockstep
from edgecore.quality.report import Assessment


def assess_logits(
    reference: Iterable[Logits],
    session: TextSession,
    tokens: Sequence[int],
    *,
    precision: Precision | None,
    weights_stats: Weights | None,
    text_sha256: str,
    note: str,
    on_progress: Progress = no_progress,
) -> Assessment:
    """Compare a session with the reference's logits, float32 chunks (n, vocab) for every position of `tokens`.

    note: where the reference's logits came from; it stands in the assessment.
    Raises `BadRequest` where the two disagree in vocabulary or length.
    """
    figures, gain = Accumulator(), ContextGain()
    for start, (theirs, ours) in lockstep((reference, session.score(tokens)), len(tokens)):
        rows = LogProbs(theirs)
        gain.add(rows)
        figures.add(rows, LogProbs(ours), tokens, start)
        on_progress(start + len(theirs), len(tokens), "comparing with the reference's logits")
    total, limits = figures.result(text_sha256), bounds()
    bits = precision.bits if precision else None
    compute, origin = compute_class(session.conditions.get("compute", ""), precision)
    checks = [judging.garbage_check(total, gain.result(), limits)]
    loss = limits.typical_loss(bits) if bits is not None else None
    if bits is not None and loss is not None:
        checks.append(judging.typical_check(total, loss, bits, compute, origin, limits))
    if precision is not None and weights_stats is not None:
        checks.append(judging.size_check(weights_stats, precision))
    why_not = (
        "its precision is not declared" if bits is None else f"there is no bound for {bits:g} bits without an oracle"
    )
    verdict, reasons = judging.decide(checks, loss is not None, [why_not])
    return Assessment(
        verdict,
        reasons,
        tuple(checks),
        total=total,
        bits=bits,
        compute=compute,
        context_gain=gain.result(),
        method="logits",
        tokens=len(tokens),
        text_sha256=text_sha256,
        notes=(note,),
    )
