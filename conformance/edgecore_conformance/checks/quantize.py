"""Group *quantize*: an artifact becomes the precision that its name says, in size and in what it still knows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgecore.contract.artifacts import Artifact
from edgecore.contract.manifest import Manifest
from edgecore.contract.precisions import Precision
from edgecore_conformance import tensor_models as models
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
from edgecore_conformance.known import TRAINED, Known, concerning
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
        assert job.base is not None
        bench.made[key] = bench.sealed(out, made, precision, fixture, format=job.base.format)
    return bench.made[key]


@check
class Size(jobs.OfEither):
    """quantize.size: an artifact is as small as the name of its precision says, and as the plugin says.

    Bits a weight are counted by the suite in the artifact's own files, where it reads the format (GGUF, safetensors),
    else taken from the size of the files. Over the matrices of the layers they must be within 1.25 times the nominal
    bits and the declared overhead, and not fewer than the name says; what the plugin says of itself must agree within
    2 %, and a matrix that kept far more bits must be listed as a fallback. An artifact whose bytes are those of what it
    was made from is a copy. Of tensor models the classifier is quantized, whose weights the suite counts in the source:
    the file must be as many times smaller as the bits are fewer, and what the plugin says must be of as many weights. A
    failure usually is a group size that rows do not divide by: tools then leave most layers as they are, and
    report success.
    """

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        text = [{"precision": p.name} for p in made_by_quantize(manifest, device)]
        return [*text, *jobs.tensor_cells(manifest, device)] or [{}]

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        if not cell:
            return Observation()
        tensor = cell.get("task") == "tensor"
        name = cell["precision"]
        base = jobs.base_of(bench, "tensor" if tensor else "text", name)
        made = models.classifier(bench, name)[0] if tensor else artifact_of(bench, name)
        return Observation(
            {
                "files": {f.path: [f.size, f.role] for f in made.files},
                "found": {name: facts[0] for name, facts in jobs.tree(made.path).items() if facts[3]},
                "digests": jobs.digests(made.path),
                "weights": sizes.weights_facts(made.weights),
                "tensors": None if tensor else sizes.tensor_sizes(made),
                "base": {
                    "precision": base.precision,
                    "digests": jobs.digests(base.path),
                    "files": {f.path: [f.size, f.role] for f in base.files},
                },
            }
        )

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        if not cell:
            verdict.claimed = Outcome.NOT_APPLICABLE
            return
        facts, precision = seen.facts, named(known.manifest, cell["precision"])
        sizes.judge_files(facts["files"], facts["found"], verdict)
        if cell.get("task") == "tensor":
            before = named(known.manifest, facts["base"]["precision"])
            sizes.judge_tensor_size(facts, precision, before.bits, models.classifier_weights(), verdict)
        else:
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
class Unknown(jobs.OfEither):
    """quantize.unknown: a precision that does not exist is refused, and the refusal names those that do.

    The hook is asked for a precision that nobody has. It must raise `UnsupportedPrecision`, and what it says must name
    the precisions that it makes of models of the kind, language models or tensor models. A precision that only convert
    makes, that only models of the other kind have, or that is claimed in other formats alone, must not be answered
    either. A failure is a default that is taken in silence: the file is named for what it is not.
    """

    whole = True

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        here = concerning(manifest, device)
        made: list[Cell] = []
        for task in ("text", "tensor"):
            if not jobs.makes(here, "quantize", task):
                continue
            mine, formats = here.precisions_of(task), set(here.formats_of(task))
            only = [p.name for p in mine if p.by == "convert"][:1]
            others = [p for p in manifest.precisions if p not in mine and p.by != "convert"]
            foreign = [p.name for p in others if p not in manifest.precisions_of(task)][:1]
            elsewhere = [
                p.name
                for p in others
                if p in manifest.precisions_of(task) and not formats & set(manifest.formats_of(task, p.name))
            ][:1]
            for asked in (refusals.NO_PRECISION, *only, *foreign, *elsewhere):
                made.append({"asked": asked, **({"task": task} if task == "tensor" else {})})
        return made or [{}]

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        if not cell:
            return Observation()
        task = cell.get("task", "text")
        base = jobs.base_of(bench, task)
        return Observation(jobs.attempt(lambda: quantized(bench, base, cell["asked"]), bench))

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        if not cell:
            verdict.claimed = Outcome.NOT_APPLICABLE
            return
        error, said = seen.facts.get("error", ""), f"{seen.facts.get('what')} {seen.facts.get('supported')}".lower()
        verdict.expect(error == "UnsupportedPrecision", f"{error or 'an artifact'}, where UnsupportedPrecision is due")
        due = [p.name for p in known.manifest.precisions_of(cell.get("task", "text")) if p.by != "convert"]
        missing = [name for name in due if name not in said]
        verdict.expect(not missing, f"the refusal does not name {', '.join(missing[:5])}")


def quantized(bench: Bench, base: Artifact, precision: str, calibration: Path | None = None) -> object:
    """The hook's answer. Raises what it raises."""
    return bench.backend().quantize(
        artifact=base, out=bench.folder("asked"), precision=precision, calibration=calibration,
        options=bench.options("quantize", base.task), deadline=bench.left,
    )  # fmt: skip


@check
class Calibration(jobs.OfEither):
    """quantize.calibration: a precision that requires calibration data is refused without it, and takes it.

    Asked through the core, as a user would, the precision without data is `UnsupportedPrecision`; asked directly, the
    hook raises one of the contract's errors; with the fixture's calibration data it makes an artifact. For tensor
    models these are a folder of the classifier's images; one that is empty, or holds feeds of another name or shape,
    must be refused with an error of the contract too. A failure is a file that was quantized blindly and is worse than
    its name.
    """

    def applies(self, manifest: Manifest) -> bool:
        return super().applies(manifest) and bool(self.cells(manifest, "", "full"))

    def cells(self, manifest: Manifest, device: str, level: str) -> list[Cell]:
        found: list[Cell] = []
        for task in ("text", "tensor"):
            made = manifest.precisions_of(task) if jobs.makes(manifest, "quantize", task) else ()
            required = [p.name for p in made if p.calibration == "required"]
            more = {"task": task} if task == "tensor" else {}
            found += [{"precision": name, **more} for name in (required if level == "full" else required[:1])]
        return found

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        task, name = cell.get("task", "text"), cell["precision"]
        base = jobs.base_of(bench, task, name)
        core = jobs.attempt(lambda: garbage.through_core(bench, name, calibrated=False, task=task), bench)
        hook = jobs.attempt(lambda: quantized(bench, base, name), bench)
        wrong = {
            what: jobs.attempt(lambda feeds=feeds: quantized(bench, base, name, feeds), bench)  # type: ignore[misc]
            for what, feeds in (wrong_feeds(bench) if task == "tensor" else {}).items()
        }
        data = jobs.calibration_of(bench, task)
        made = jobs.attempt(lambda: quantized(bench, base, name, data), bench)
        return Observation({"core": core, "hook": hook, "wrong": wrong, "with": made})

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        core, hook = seen.facts["core"].get("error", ""), seen.facts["hook"].get("error", "")
        verdict.expect(
            core == "UnsupportedPrecision", f"core: {core or 'an artifact'}, where UnsupportedPrecision is due"
        )
        verdict.expect(hook not in jobs.UNTYPED, f"hook: {hook or 'an artifact'}, where a typed refusal is due")
        if cell.get("task") == "tensor":
            verdict.expect(sorted(seen.facts["wrong"]) == sorted(WRONG), f"not every folder was tried: {WRONG}")
        for what, error in seen.facts["wrong"].items():
            found = error.get("error", "")
            verdict.expect(
                found not in jobs.UNTYPED,
                f"{what}: {found or 'an artifact'}, where a typed refusal is due: {error.get('what', '')}",
            )
        verdict.expect(not seen.facts["with"], f"with calibration data: {seen.facts['with']}")


WRONG = ("an empty folder", "feeds of another name", "feeds of another shape")


def wrong_feeds(bench: Bench) -> dict[str, Path]:
    """Folders that cannot calibrate the classifier, by what is wrong with them."""
    feeds = models.calibrating()[:2]
    found: tuple[list[models.Arrays], ...] = (
        [],
        [{f"{name} of nobody": image for name, image in feed.items()} for feed in feeds],
        [{name: image[..., :-1] for name, image in feed.items()} for feed in feeds],
    )
    return {what: models.calibration_folder(bench, arrays) for what, arrays in zip(WRONG, found, strict=True)}
