"""What a plugin makes and does not claim: the core must refuse it when it is garbage. Part of group *quantize*."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from edgecore.contract.manifest import Manifest
from edgecore.contract.precisions import Precision
from edgecore.quality import verdict as core
from edgecore.quality.divergence import chunks, compare
from edgecore_conformance import tensor_models
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, check
from edgecore_conformance.checks import closeness, jobs
from edgecore_conformance.known import TRAINED, Known
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.outcomes import Outcome

WORDS = ("tq1_0", "tq2_0", "ternary")
"""Types for models that were trained for them: garbage for any other, so a claim of one for such a family is wrong."""


def unclaimed(manifest: Manifest, device: str) -> list[Precision]:
    """Precisions that quantize makes and that are claimed for no family of text on the device."""
    named = {p.name for p in jobs.claimed(manifest, device)}
    return [p for p in manifest.precisions_of("text") if p.by != "convert" and p.name not in named]


@check
class Garbage(jobs.OfQuantize):
    """quantize.garbage: what ruins the model is not claimed, and is refused when it is made all the same.

    No type for ternary models may be claimed for families that were not trained for it. At level full, every
    precision that the plugin makes and does not claim (those ternary types, say) is made of the trained fixture and
    scored. Where the mean KL divergence is beyond the garbage floor (half of all that the model gains from reading
    the text), `edgecore build` with that precision must end with `QualityRefused`. A failure means that a user is
    given a model that answers nonsense, with a good exit code.
    """

    seconds = 180.0

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        names = [p.name for p in unclaimed(manifest, device)] if level == "full" else []
        return [{"unclaimed": name} for name in names] or [{}]

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        seen = Observation()
        if not cell:
            return seen
        precision = bench.precision(cell["unclaimed"])
        job, out = jobs.quantize_job(bench, precision), bench.folder("unclaimed")
        made = job.run(bench.backend(), out, bench.left)
        closeness.observe_logits(
            bench, seen, bench.sealed(out, made, precision.name, TRAINED), TRAINED, "quantize", small=True
        )
        seen.facts["core"] = jobs.attempt(lambda: through_core(bench, precision.name), bench)
        return seen

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        for claim in known.manifest.claims:
            ternary = any(word in claim.precision for word in WORDS)
            verdict.expect(
                claim.task != "text" or not ternary or claim.family == "bitnet",
                f"{claim.precision} is for models that were trained so, and is claimed for {claim.family}",
            )
        if not cell:
            return
        tokens = known.tokens(TRAINED, "quantize", closeness.TOKENS)
        verdict.expect(seen.facts.get("tokens") == tokens, "other tokens were scored than this run's seed draws")
        if "logits" not in seen.arrays:
            verdict.expect(not known.manifest.can("logits"), "logits are declared, and refused")
            verdict.claimed = Outcome.UNAVAILABLE
            return
        source = known.logits(TRAINED, tokens)
        total = compare(chunks(source), chunks(seen.arrays["logits"].astype("float32")), tokens)
        floor = core.garbage_check(total, closeness.gain(source), known.bounds)
        verdict.figure("mean KL", floor.measured, unit="nats")
        verdict.figure("garbage floor", floor.bound, unit="nats", origin=floor.origin)
        error = seen.facts["core"].get("error", "")
        if floor.passed:
            verdict.expect(error in ("", "QualityRefused"), f"{error}, where an artifact or QualityRefused is due")
            return
        verdict.expect(error == "QualityRefused", f"garbage, and the core says {error or 'that it is fine'}")
        verdict.claimed = Outcome.UNSUPPORTED


def through_core(bench: Bench, precision: str, *, calibrated: bool = True, task: str = "text") -> object:
    """`edgecore build` of the trained model or the classifier, in a store of its own. Raises what a user would be
    told."""
    import os

    from edgecore import api

    takes = calibrated and bench.precision(precision).calibration != "none"
    calibration = jobs.calibration_of(bench, task) if takes else None
    source = bench.known.fixture(TRAINED) if task == "text" else tensor_models.classifier_feeds(1)[0]
    limits = bench.limits(task, source)
    before = os.environ.get("EDGECORE_HOME")
    os.environ["EDGECORE_HOME"] = str(bench.folder("store"))
    try:
        named = bench.entry.name if bench.entry.origin != "path" else str(Path(bench.entry.location).parent)
        return api.build(
            source, backend=named, precision=precision, calibration=calibration, device=bench.device,
            max_context=limits.max_context, shapes=limits.shapes, deadline=bench.left, offline=True,
        )  # fmt: skip
    finally:
        os.environ.pop("EDGECORE_HOME")
        if before is not None:
            os.environ["EDGECORE_HOME"] = before
