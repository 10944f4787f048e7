"""What the checks of text share: the shape of one, how answers are recorded, and how far they may be from the oracle's.

Every check derives its inputs from the seed twice, when it observes and when it judges, and the two must agree:
answers to other questions are worth nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint import Oracle, open_checkpoint
from edgecore.contract.errors import CannotDo, EdgecoreError, Timeout, UnsupportedModel, WorkerCrashed
from edgecore.contract.manifest import Manifest
from edgecore.contract.precisions import Precision
from edgecore.contract.sampling import Sampling
from edgecore.contract.sessions import TextSession
from edgecore.quality.bounds import compute_class
from edgecore.quality.divergence import LogProbs
from edgecore.quality.rounding import RoundedTensors
from edgecore_conformance import fixtures
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, Check
from edgecore_conformance.known import LONG, SCRIPTED, TRAINED, Known
from edgecore_conformance.observation import Judgement, Observation, error_of
from edgecore_conformance.outcomes import Outcome

PATHS_X = 4
"""The bounds come from texts that were scored at once; a few tokens at a time are other kernels, whose errors scatter
more. The core allows the same (`quality.verdict.PATHS_X`)."""
WORST_X = 60
"""A single position may be so many times further off than the mean: tails are long, broken positions are further."""
DEVIATIONS = 6
"""How many standard deviations, of the error that the kernels' bound allows, two logits may change places by."""
ROUNDED_X = {"f32": 1, "f16": 1, "bf16": 2, "int8": 2}
"""By compute precision, how many times the bound of int8 kernels a model is given that rounds activations to 8 bits
itself: the smallest error decides which way one is rounded. Of `bitnet-packed` 0.0001 nats are lost by another number
of threads, 0.019 by float16 before the rounding, 0.037 by bfloat16; and 0.03 to 0.04 where nothing is rounded, which
cannot be told from these."""
ONE_SET = {"phi3": "phi3-short"}
"""What stands, where behaviour is checked, for a family whose checkpoint has two sets of rotary factors (`border`)."""
Rows = NDArray[np.float32]
Inputs = dict[str, Any]


def text_families(manifest: Manifest, device: str = "") -> tuple[str, ...]:
    """Families that the plugin claims for text, on a device where one is named."""
    claimed = (c.family for c in manifest.claims if c.task == "text" and device in ("", c.device))
    return tuple(dict.fromkeys(claimed))


def subject(manifest: Manifest) -> str:
    """The fixture that checks of behaviour run: the trained Llama, or where Llamas are not claimed a family that is."""
    claimed = text_families(manifest)
    if not claimed or "llama" in claimed:
        return TRAINED
    family = next((f for f in claimed if f in fixtures.families()), claimed[0])
    return ONE_SET.get(family, family)


class TextCheck(Check):
    """A check of text. Subclasses say `inputs`, `look` and `weigh`; here is what goes wrong in the same way for all.

    A cell may name a `variant` of its family (`variant_cells`): a model that a backend may refuse to convert or to open
    by `UnsupportedModel`, or answer otherwise when convert has said so in a note. Both are `unsupported`."""

    seconds: ClassVar[float] = 150.0
    needs_logits: ClassVar[bool] = False
    """Whether it reads logits of the context, which a backend may declare absent."""

    def applies(self, manifest: Manifest) -> bool:
        return any(f.task == "text" for f in manifest.formats)

    def proves(self, manifest: Manifest, cell: Cell) -> Mapping[str, str]:
        return {"task": "text", **({"family": cell["family"]} if "family" in cell else {})}

    def fixture(self, manifest: Manifest, cell: Cell) -> str:
        return cell.get("variant") or cell.get("family") or cell.get("fixture") or subject(manifest)

    def inputs(self, known: Known, cell: Cell) -> Inputs:
        """What is asked, as JSON: from the seed alone."""
        return {}

    def look(self, bench: Bench, cell: Cell, asked: Inputs) -> Observation:
        raise NotImplementedError

    def weigh(self, asked: Inputs, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        raise NotImplementedError

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        fixture = self.fixture(bench.manifest, cell)
        if why := missing(bench.known, fixture):
            return Observation({"absent": why})
        asked = self.inputs(bench.known, cell)
        try:
            seen = self.look(bench, cell, asked)
        except CannotDo as error:
            if bench.manifest.can("logits"):
                raise
            return Observation({"cannot_do": error_of(error)})
        except UnsupportedModel as error:
            if "variant" not in cell or bench.stage == "run":
                raise
            return Observation({"refused": error_of(error)})
        said = {"said": notes_of_variant(bench, cell)} if "variant" in cell else {}
        return Observation({**seen.facts, **said, "inputs": asked}, seen.arrays)

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        if "absent" in seen.facts:
            verdict.claimed = Outcome.UNAVAILABLE
            return
        if "cannot_do" in seen.facts:
            allowed = self.needs_logits and not known.manifest.can("logits")
            verdict.expect(allowed, f"it refuses what it does not declare absent: {seen.facts['cannot_do']}")
            verdict.claimed = Outcome.UNAVAILABLE
            return
        if "refused" in seen.facts:
            allowed = "variant" in cell and seen.facts["refused"].get("error") == "UnsupportedModel"
            verdict.expect(allowed, f"it refuses what it claims: {seen.facts['refused']}")
            verdict.claimed = Outcome.UNSUPPORTED
            return
        asked = self.inputs(known, cell)
        verdict.expect(seen.facts.get("inputs") == asked, "it was asked other inputs than the seed draws")
        found = Judgement()
        self.weigh(asked, seen, cell, known, found)
        if found.problems and "variant" in cell and (said := seen.facts["said"]):
            verdict.claimed = Outcome.UNSUPPORTED
            why = f"convert says: {'; '.join(said)}"
            found = Judgement([replace(figure, bound=None, origin=why) for figure in found.figures])
        verdict.figures += found.figures
        verdict.problems += found.problems
        verdict.claimed = verdict.claimed or found.claimed


def missing(known: Known, fixture: str) -> str:
    """Why there is no such fixture here; empty where there is."""
    if fixture not in (TRAINED, SCRIPTED, LONG, "real", *fixtures.families(), *fixtures.variants()):
        return f"this suite has no checkpoint of family {fixture!r}"
    if fixture == "real":
        try:
            known.fixture(fixture)
        except EdgecoreError as error:
            return f"no real model is here: {error.what}"
    return ""


def family_cells(manifest: Manifest, device: str) -> list[Cell]:
    """The subject, and every family that is claimed for the device."""
    return [{"fixture": subject(manifest)}, *({"family": f} for f in text_families(manifest, device))]


def variant_cells(manifest: Manifest, device: str, *names: str) -> list[Cell]:
    """Those of the variants whose family is claimed for the device."""
    claimed = text_families(manifest, device)
    return [{"family": family, "variant": v} for v in names if (family := v.partition("-")[0]) in claimed]


# ---- recording ----


def opened(bench: Bench, fixture: str, context_length: int | None = None) -> AbstractContextManager[TextSession]:
    """A session on one thread: the models are tiny, and threads that spin wait for one another on a busy machine. With
    the plugin's own number of threads runs `text.logits`. Of the context that models of the run are converted for,
    where no other is named: what could hold more is held to the same."""
    return bench.text_session(fixture, context_length=context_length or bench.known.max_context, threads=1)


def stated(session: TextSession, bench: Bench) -> dict[str, Any]:
    """What the session says of itself, and of what it is a session."""
    return {
        "compute": str(session.conditions.get("compute", "")),
        "precision": bench.finest().name,
        "context_length": session.context_length,
        "vocab_size": session.vocab_size,
    }


def notes_of_variant(bench: Bench, cell: Cell) -> list[str]:
    """What convert notes of a variant, and not of its family's own checkpoint."""
    usual = bench.artifact(cell["family"]).notes
    return [note for note in bench.artifact(cell["variant"]).notes if note not in usual]


def answered(session: TextSession, tokens: Sequence[int], *, limit: int | None = None, **how: Any) -> dict[str, Any]:
    """One whole generation as facts: its pieces, its error where it ended with one. `limit` closes it after so many."""
    begin = time.monotonic()
    facts: dict[str, Any] = {"pieces": [], "error": None}
    try:
        stream = session.generate(tokens, **how)
        for piece in stream:
            facts["pieces"].append([piece.token, piece.text, piece.finish])
            if limit is not None and len(facts["pieces"]) >= limit:
                stream.close()  # type: ignore[attr-defined]
                break
    except (Timeout, WorkerCrashed):
        raise
    except EdgecoreError as error:
        facts["error"] = error_of(error)
    facts["seconds"] = round(time.monotonic() - begin, 4)
    return facts


def tried(call: Any, *arguments: Any, **keywords: Any) -> Mapping[str, str]:
    """The error that a call raises, as facts; empty where it raises none."""
    try:
        answer = call(*arguments, **keywords)
        if hasattr(answer, "__next__"):
            for _ in answer:
                pass
    except (Timeout, WorkerCrashed):
        raise
    except EdgecoreError as error:
        return error_of(error)
    return {}


def sampling(how: Mapping[str, Any]) -> Sampling:
    return Sampling(**how)


def tokens_of(answer: Mapping[str, Any]) -> list[int]:
    """Ids in the order that they came, the one that ended it included."""
    return [int(p[0]) for p in answer["pieces"] if p[0] >= 0]


def text_of(answer: Mapping[str, Any]) -> str:
    return "".join(p[1] for p in answer["pieces"])


def finish_of(answer: Mapping[str, Any]) -> str:
    """The last piece's; `none` where no piece says one, `early` where one before the last does."""
    finishes = [p[2] for p in answer["pieces"]]
    if any(finishes[:-1]):
        return "early"
    return finishes[-1] if finishes and finishes[-1] else "none"


# ---- comparing with the oracle ----


def divergences(reference: Rows, candidate: Rows) -> NDArray[np.float64]:
    """KL(reference || candidate) of each row, nats; infinite where the candidate is no number."""
    p, q = LogProbs(reference), LogProbs(candidate)
    with np.errstate(invalid="ignore"):
        terms = np.multiply(p.probabilities, p.logs - q.logs, out=np.zeros_like(p.logs), where=p.probabilities > 0)
    found = terms.sum(axis=1)
    return np.where(np.isfinite(found), np.maximum(found, 0.0), np.inf)


def declared(known: Known, seen: Observation) -> Precision:
    """The precision that was run, as the manifest declares it."""
    return next(p for p in known.manifest.precisions if p.name == seen.facts["precision"])


def allowance(
    known: Known, seen: Observation, fixture: str, tokens: Sequence[int], *, scored: bool = False
) -> tuple[float, str]:
    """(mean KL that may be lost, where that comes from): by kernels, and by a precision that cannot hold the weights.
    `scored` for a whole text at once."""
    precision = declared(known, seen)
    compute, why = compute_class(str(seen.facts.get("compute", "")), precision)
    times = 1 if scored else PATHS_X
    with open_checkpoint(known.fixture(fixture)) as model:
        if model.decoder.int8_activations:
            times, compute = times * ROUNDED_X[compute], "int8"
            why += "; the model itself rounds activations to 8 bits"
    bound = times * known.bounds.kernel(compute)
    origin = f"{'' if times == 1 else f'{times} x '}the kernels' bound for {compute} compute; {why}"
    if precision.bits >= 16 and "bf" not in precision.name:
        return bound, origin
    with open_checkpoint(known.fixture(fixture)) as model:
        rounded = RoundedTensors(model.tensors, precision.bits)
        rows = np.concatenate(list(Oracle(model.decoder, rounded).score(tokens)))
    lost = float(divergences(known.logits(fixture, tokens), rows).mean())
    file = known.bounds.file_multiple * lost + known.bounds.file_slack
    return bound + file, f"{origin}; and {file:.3g} for weights of {precision.bits:g} bits"


def tolerance(known: Known, seen: Observation, fixture: str, tokens: Sequence[int]) -> float:
    """Logits by which the oracle's best may lead and still not be chosen. KL is half the variance of the error."""
    return DEVIATIONS * math.sqrt(2 * allowance(known, seen, fixture, tokens)[0])


def border(known: Known, fixture: str) -> int:
    """Tokens up to which a text takes the first of two sets of rotary factors (longrope); 0 where there is one set, or
    the context of this run ends before the other.

    The model chooses by the text, and so do some backends; others choose once, by the context that they open. Both are
    right for what is longer than the border, and for all in a context that is not; nothing else is held to the oracle.
    """
    with open_checkpoint(known.fixture(fixture)) as model:
        rope = model.decoder.rope
        return rope.original_context if rope.is_long(known.context(fixture)) else 0


def expected_rows(known: Known, fixture: str, sequences: Iterable[Sequence[int]]) -> list[Rows]:
    """The oracle's logits after each sequence, by as few passes as serve: a prefix is a row of a longer one."""
    with open_checkpoint(known.fixture(fixture)) as model:
        is_long = model.decoder.rope.is_long
    wanted = [tuple(s) for s in sequences]
    passes: list[tuple[int, ...]] = []
    for one in sorted(set(wanted), key=lambda s: (-len(s), s)):
        if not any(p[: len(one)] == one and is_long(len(p)) == is_long(len(one)) for p in passes):
            passes.append(one)

    def row(one: tuple[int, ...]) -> Rows:
        whole = next(p for p in passes if p[: len(one)] == one and is_long(len(p)) == is_long(len(one)))
        found: Rows = known.logits(fixture, whole)[len(one) - 1]
        return found

    return [row(one) for one in wanted]


def weigh_rows(
    verdict: Judgement, what: str, reference: Rows, candidate: Rows, bound: float, origin: str
) -> NDArray[np.float64]:
    """Mean and worst KL of some positions beside their bounds. Answers the KL of each."""
    if candidate.shape != reference.shape:
        verdict.problems.append(f"{what}: logits of shape {candidate.shape}, not {reference.shape}")
        return np.zeros(0)
    verdict.expect(candidate.dtype == np.float32, f"{what}: logits are {candidate.dtype}, not float32")
    kl = divergences(reference, candidate)
    verdict.figure(f"{what}: mean KL from the oracle", float(kl.mean()), bound, "<=", "nats", origin)
    verdict.figure(f"{what}: worst position", float(kl.max()), WORST_X * bound, "<=", "nats", f"{WORST_X} x the mean's")
    return kl


def weigh_greedy(
    verdict: Judgement, what: str, known: Known, fixture: str, prompt: Sequence[int], made: Sequence[int],
    seen: Observation,
) -> None:  # fmt: skip
    """Every token of a greedy answer is the oracle's best, or within the tolerance of it, given the answer so far."""
    if not made:
        verdict.problems.append(f"{what}: no token was made")
        return
    whole = [*prompt, *made]
    vocabulary = known.logits(fixture, prompt).shape[1]
    if not all(0 <= t < vocabulary for t in made):
        verdict.problems.append(f"{what}: it answers with ids outside the vocabulary")
        return
    rows = known.logits(fixture, whole[:-1])[len(prompt) - 1 :]
    allowed = tolerance(known, seen, fixture, whole[:-1])
    for at, (row, token) in enumerate(zip(rows, made, strict=True)):
        behind = float(row.max() - row[token])
        if behind > allowed:
            verdict.problems.append(
                f"{what}: token {at} is {token}; the oracle's {int(row.argmax())} leads it by {behind:.3g} logits, "
                f"of which {allowed:.3g} are within the tolerance"
            )
            return
