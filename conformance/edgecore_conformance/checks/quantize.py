"""Group *quantize*: an artifact becomes the precision that its name says, in size and in what it still knows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edgecore.contract.manifest import Manifest
from edgecore.contract.precisions import Precision
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, check
from edgecore_conformance.checks import (
    closeness,
    garbage,
    jobs,
    quantize_upsets,
    quantize_words,
    refusals,
    sizes,
    weights,
)
from edgecore_conformance.known import TRAINED, Known
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.outcomes import Outcome

PARTS = (garbage, quantize_upsets, quantize_words, weights)
"""Where the other checks of this group stand."""


def named(manifest: Manifest, name: str) -> Precision:
    return next(p for p in manifest.precisions if p.name == name)


def made_by_quantize(manifest: Manifest, device: str) -> list[Precision]:
    """Claimed precisions that quantize makes."""
    return [p for p in jobs.claimed(manifest, device) if p.by != "convert"]


def artifact_of(bench: Bench, precision: str, fixture: str = TRAINED) -> Any:
    """The artifact in this precision, by quantize also where convert could make it: that is what is checked here."""
    found = bench.precision(precision)
    if found.by == "quantize":
        return bench.artifact(fixture, precision)
    key = (fixture, f"{precision} by quantize")
    if key not in bench.made:
        job, out = jobs.quantize_job(bench, found, fixture), bench.folder(f"{fixture}-{precision}")
        made = job.run(bench.backend(), out, bench.left)
        bench.made[key] = bench.sealed(out, made, precision, fixture)
    return bench.made[key]


@check
class Size(jobs.OfQuantize):
    """quantize.size: an artifact is as small as the name of its precision says, and as the plugin says.

    Bits a weight are counted by the suite in the artifact's own files, where it reads the format (GGUF, safetensors),
    else taken from the size of the files. Over the matrices of the layers they must be within 1.25 times the nominal
    bits and the declared overhead, and not fewer than the name says; what the plugin says of itself must agree within
    2 %, and a matrix that kept far more bits must be listed as a fallback. An artifact whose bytes are those of what it
    was made from is a copy. A failure usually is a group size that rows do not divide by: tools then leave most
    layers as they are, and report success.
    """

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        return [{"precision": p.name} for p in made_by_quantize(manifest, device)] or [{}]

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        if not cell:
            return Observation()
        base = bench.artifact(TRAINED)
        made = artifact_of(bench, cell["precision"])
        return Observation(
            {
                "files": {f.path: [f.size, f.role] for f in made.files},
                "found": {name: facts[0] for name, facts in jobs.tree(made.path).items() if facts[3]},
                "digests": jobs.digests(made.path),
                "weights": sizes.weights_facts(made.weights),
                "tensors": sizes.tensor_sizes(made),
                "base": {"precision": base.precision, "digests": jobs.digests(base.path)},
            }
        )

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        if not cell:
            verdict.claimed = Outcome.NOT_APPLICABLE
            return
        facts, precision = seen.facts, named(known.manifest, cell["precision"])
        sizes.judge_files(facts["files"], facts["found"], verdict)
        sizes.judge_size(facts, precision, verdict)
        sizes.judge_fallbacks(facts, precision, verdict)
        stored = [
            facts["digests"].get(name) for name, (_, role) in facts["files"].items() if role in ("model", "weights")
        ]
        base = set(facts["base"]["digests"].values())
        copied = bool(stored) and all(digest in base for digest in stored)
        verdict.expect(
            not copied or facts["base"]["precision"] == precision.name,
            f"the weights are byte for byte those of the {facts['base']['precision']} artifact: nothing was quantized",
        )


@check
class Order(jobs.OfQuantize):
    """quantize.order: fewer bits make a smaller artifact.

    All claimed precisions of the trained fixture are made, and their files compared: of two whose nominal bits and
    overhead differ by more than a sixth, the one with fewer is smaller. A failure usually is a precision that falls
    back to another for most tensors, or a name that leads to another's code.
    """

    seconds = 300.0

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        made = made_by_quantize(bench.manifest, bench.device)
        return Observation({"sizes": {p.name: sum(f.size for f in artifact_of(bench, p.name).files) for p in made}})

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        found: dict[str, int] = seen.facts["sizes"]
        due = [p.name for p in made_by_quantize(known.manifest, known.device)]
        verdict.expect(sorted(found) == sorted(due), f"made were {sorted(found)}, claimed are {sorted(due)}")
        for name, size in found.items():
            mine = named(known.manifest, name)
            verdict.figure(f"size of {name}", size / 1e6, unit="MB")
            for other in found:
                theirs = named(known.manifest, other)
                if (mine.bits + mine.overhead) * 7 / 6 < theirs.bits + theirs.overhead and mine.bits < theirs.bits:
                    verdict.expect(
                        size < found[other], f"{name} ({size} bytes) is no smaller than {other} ({found[other]})"
                    )


@check
class Quality(jobs.OfQuantize):
    """quantize.quality: what is left of the model is what its bits allow.

    Each claimed precision of the trained fixture is opened and scores held-out text. The mean KL divergence of the
    whole from the oracle, of the file's weights from the source's, and of the kernels from the oracle on the file's
    weights, each stand beside their bound: a multiple of what plain round-to-nearest of equal bits loses on this very
    model, and a small fixed bound by compute class for the kernels (edgecore/quality/bounds.toml). Top-1 agreement and
    perplexity are shown. The oracle on the file's weights runs on the device's side, where the file is; everything else
    is computed again by `verify`. Level full adds every claimed family at its recommended precisions. A failure
    of the file is a wrong scale or group; of the kernels, a fault of the runtime; of both, an answer from elsewhere.
    """

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        made = made_by_quantize(manifest, device)
        yield from [{"precision": p.name} for p in made] or [{}]
        if level == "full":
            for precision in (p for p in made if p.recommended):
                for family in jobs.families(manifest, device, precision.name):
                    yield {"family": family, "precision": precision.name}

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        seen = Observation()
        if cell:
            fixture = cell.get("family", TRAINED)
            made = artifact_of(bench, cell["precision"], fixture)
            closeness.observe_logits(bench, seen, made, fixture, "quantize", small=True)
        return seen

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        fixture = cell.get("family", TRAINED)
        if not cell:
            verdict.claimed = Outcome.NOT_APPLICABLE
        elif not closeness.judge_logits(
            seen, known, fixture, "quantize", named(known.manifest, cell["precision"]), verdict
        ):
            verdict.claimed = Outcome.UNAVAILABLE


@check
class Unknown(jobs.OfQuantize):
    """quantize.unknown: a precision that does not exist is refused, and the refusal names those that do.

    The hook is asked for a precision that nobody has. It must raise `UnsupportedPrecision`, and what it says must name
    the declared precisions. A precision that only convert makes must not be answered by quantize either. A failure is a
    default that is taken in silence: the file is named for what it is not.
    """

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        only = [p.name for p in manifest.precisions if p.by == "convert"]
        return [{"asked": refusals.NO_PRECISION}, *({"asked": name} for name in only[:1])]

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        base = bench.artifact(TRAINED)

        def ask() -> object:
            return bench.backend().quantize(
                artifact=base, out=bench.folder("unknown"), precision=cell["asked"], options=bench.options("quantize"),
                deadline=bench.left,
            )  # fmt: skip

        return Observation(jobs.attempt(ask, bench))

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        error, said = seen.facts.get("error", ""), f"{seen.facts.get('what')} {seen.facts.get('supported')}".lower()
        verdict.expect(error == "UnsupportedPrecision", f"{error or 'an artifact'}, where UnsupportedPrecision is due")
        due = [p.name for p in known.manifest.precisions if p.by != "convert"]
        missing = [name for name in due if name not in said]
        verdict.expect(not missing, f"the refusal does not name {', '.join(missing[:5])}")


@check
class Calibration(jobs.OfQuantize):
    """quantize.calibration: a precision that requires calibration data is refused without it, and takes it.

    Asked through the core, as a user would, the precision without data is `UnsupportedPrecision`; asked directly, the
    hook raises one of the contract's errors; with the fixture's calibration text it makes an artifact. A failure is a
    file that was quantized blindly and is worse than its name.
    """

    def applies(self, manifest: Manifest) -> bool:
        return super().applies(manifest) and any(p.calibration == "required" for p in manifest.precisions)

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        required = [p.name for p in manifest.precisions if p.calibration == "required"]
        return [{"precision": name} for name in (required if level == "full" else required[:1])]

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        base, name = bench.artifact(TRAINED), cell["precision"]

        def ask() -> object:
            return bench.backend().quantize(
                artifact=base, out=bench.folder("blind"), precision=name, options=bench.options("quantize"),
                deadline=bench.left,
            )  # fmt: skip

        core = jobs.attempt(lambda: garbage.through_core(bench, name, with_text=False), bench)
        direct_error = jobs.attempt(ask, bench)
        made = jobs.attempt(lambda: artifact_of(bench, name), bench)
        return Observation({"core": core, "hook": direct_error, "with": made})

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        core, hook = seen.facts["core"].get("error", ""), seen.facts["hook"].get("error", "")
        verdict.expect(
            core == "UnsupportedPrecision", f"core: {core or 'an artifact'}, where UnsupportedPrecision is due"
        )
        verdict.expect(hook not in jobs.UNTYPED, f"hook: {hook or 'an artifact'}, where a typed refusal is due")
        verdict.expect(not seen.facts["with"], f"with calibration data: {seen.facts['with']}")
