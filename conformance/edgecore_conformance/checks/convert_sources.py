"""Sources as people have them: in several files, at a path where something else lay before. Part of *convert*."""

from __future__ import annotations

import shutil

from edgecore.contract.manifest import Manifest
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, Check, check
from edgecore_conformance.checks import closeness, jobs, sources
from edgecore_conformance.known import SCRIPTED, TRAINED, Known
from edgecore_conformance.observation import Judgement, Observation

SHARDS = 3


@check
class Anew(Check):
    """convert.anew: a source is read anew, all of it, whatever lay at its path before.

    A model is converted; then another of the same shape takes its place, under the same path and in three files, as
    large models are published, and is converted by the same worker. The second artifact must have the second model's
    logits. A failure is a model that is remembered by its path, or a reader that knows one file and no more.
    """

    def applies(self, manifest: Manifest) -> bool:
        return jobs.makes(manifest, "convert", "text") and "huggingface" in manifest.sources

    def proves(self, manifest: Manifest, cell: Cell) -> dict[str, str]:
        return {"task": "text"}

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        precision = bench.finest()
        path = sources.source(bench, "huggingface", SCRIPTED)
        job = jobs.convert_job(bench, path, precision)
        job.run(bench.backend(), bench.folder("anew"), bench.left)
        shutil.rmtree(path)
        shutil.copytree(bench.known.fixture(TRAINED), path, copy_function=shutil.copyfile)
        sources.shard(path, SHARDS)
        out = bench.folder("anew")
        made = job.run(bench.backend(), out, bench.left)
        seen = Observation({"precision": precision.name})
        artifact = bench.sealed(out, made, precision.name, TRAINED)
        closeness.observe_logits(bench, seen, artifact, TRAINED, "convert anew", small=precision.bits < 16)
        return seen

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        precision = next(p for p in known.manifest.precisions if p.name == seen.facts["precision"])
        closeness.judge_logits(seen, known, TRAINED, "convert anew", precision, verdict)
