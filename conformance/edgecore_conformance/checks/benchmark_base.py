"""What every check of a text benchmark shares: a worker of its own, one thread, and prompts that the seed draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from edgecore.contract.manifest import Manifest
from edgecore.contract.measurement import Workload
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, Check, has_task
from edgecore_conformance.known import TRAINED, Known
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.timing import Stand

CONTEXT = 512
TIMELESS = "{device} is emulated: its times are no speed, of the device or of anything"


class TextBenchmark(Check):
    """Of text benchmarks: one row, in a worker of its own, with one thread."""

    timed: ClassVar[bool] = False
    """Whether it is about how long something takes: of an emulated device that means nothing."""

    def unfit(self, known: Known) -> str:
        return TIMELESS.format(device=known.device) if self.timed and known.emulated else ""

    def applies(self, manifest: Manifest) -> bool:
        return has_task("text")(manifest)

    def proves(self, manifest: Manifest, cell: Cell) -> Mapping[str, str]:
        return {"task": "text", **cell}

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        artifact = bench.artifact(TRAINED)
        with bench.fresh() as backend:
            facts = self.watched(Stand(bench, backend, artifact))
        return Observation({"precision": artifact.precision, **facts})

    def watched(self, stand: Stand) -> dict[str, Any]:
        raise NotImplementedError

    def workload(self, known: Known, prompt: int, decode: int, purpose: str = "", **more: Any) -> Workload:
        """Where the context of the run is short, with as much less of both as fits; of an emulated device into half of
        it, since every step takes as long as hundreds."""
        context = context_of(known)
        most = context // 2 if known.emulated else context
        if prompt + decode > most:
            prompt, decode = prompt * most // (prompt + decode), decode * most // (prompt + decode)
        tokens = known.tokens(TRAINED, f"{self.name()} {purpose}".strip(), prompt)
        return Workload(tuple(tokens), decode, **{"threads": 1, "context_length": context, "warmup": 1, **more})

    def as_published(self, visit: Mapping[str, Any], known: Known, verdict: Judgement, purpose: str = "") -> None:
        """The prompt is the one that the seed draws."""
        given = visit["asked"]["prompt"]
        drawn = known.tokens(TRAINED, f"{self.name()} {purpose}".strip(), len(given))
        verdict.expect(given == drawn, "the prompt is not the one that this seed draws")


def context_of(known: Known) -> int:
    """What the sessions of this group are opened for."""
    return min(CONTEXT, known.context(TRAINED))
