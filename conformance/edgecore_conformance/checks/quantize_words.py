"""Whether a quantized model still says what it said. Part of *quantize*."""

from __future__ import annotations

from collections.abc import Iterable

from edgecore.contract.manifest import Manifest
from edgecore.contract.precisions import Precision
from edgecore.contract.sampling import GREEDY
from edgecore.contract.sessions import TextSession
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, check
from edgecore_conformance.checks import jobs, words
from edgecore_conformance.known import SCRIPTED, TRAINED, Known
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.outcomes import Outcome
from edgecore_conformance.scripted import said


def usual(manifest: Manifest, device: str, level: str) -> list[Precision]:
    """Claimed precisions that quantize makes; at level quick those that are recommended, or the first."""
    made = [p for p in jobs.claimed(manifest, device) if p.by != "convert"]
    if level == "full":
        return made
    return [p for p in made if p.recommended and p.calibration != "required"] or made[:1]


@check
class Words(jobs.OfQuantize):
    """quantize.words: a quantized model has its words, and says what it said.

    The scripted model is quantized after the trained one, in the same worker: tensors of the same names, and many
    blocks that hold nothing but zeros. It must give the script's answer, token by token, and end where the script ends;
    its tokenizer, its tokens that end a text and its chat template must be the model's.

    A block of zeros has no scale, and dividing by it makes what is no number. Blocks that are remembered by their
    tensor's name are another model's. A template or an end that was not copied shows in no figure of quality: the
    model talks on, or is asked in words that it never learnt.
    """

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        return [{"precision": p.name} for p in usual(manifest, device, level)] or [{}]

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        from edgecore_conformance.checks.quantize import artifact_of

        if not cell:
            return Observation()
        artifact_of(bench, cell["precision"], TRAINED)
        made = artifact_of(bench, cell["precision"], SCRIPTED)
        answers = {}
        with bench.session(made, threads=1) as session:
            assert isinstance(session, TextSession)
            for name, (prompt, count) in asked(bench.known).items():
                pieces = list(session.generate(prompt, max_tokens=count, sampling=GREEDY))
                answers[name] = [[p.token for p in pieces if p.token >= 0], "".join(p.text for p in pieces)]
        return Observation({"answers": answers, "words": words.observe_words(bench, made)})

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        if not cell:
            verdict.claimed = Outcome.NOT_APPLICABLE
            return
        tokenizer = known.tokenizer(SCRIPTED)
        for name, (prompt, count) in asked(known).items():
            due = known.script.answer(prompt[-1], count)
            due = due[: next((n for n, token in enumerate(due, 1) if token in tokenizer.eos_ids), count)]
            text = said(tokenizer, [token for token in due if token not in tokenizer.eos_ids])
            made, read = seen.facts["answers"][name]
            verdict.expect(made == due, f"{name}: tokens {made} came, and {due} were due")
            verdict.expect(read == text, f"{name}: the text is {read!r}, and should be {text!r}")
        words.judge_words(seen.facts["words"], tokenizer, known, verdict)


def asked(known: Known) -> dict[str, tuple[list[int], int]]:
    """Prompts, and how many tokens their answers have."""
    script = known.script
    before = known.draw("quantized words").choices(script.prompts, k=4)
    return {
        "words": ([*before, script.words[0]], len(script.words)),
        "end": ([*before, script.ends[0][0]], len(script.ends[0]) + 3),
    }
