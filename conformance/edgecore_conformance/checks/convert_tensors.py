"""A tensor model converted: it still tells apart what it told apart. Part of *convert*."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from edgecore.contract.manifest import Manifest
from edgecore.contract.sessions import TensorSession
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, Check, check
from edgecore_conformance.checks import jobs, sizes, sources
from edgecore_conformance.known import Known
from edgecore_conformance.observation import Judgement, Observation

IMAGES = 64


@check
class Tensors(Check):
    """convert.tensors: the ONNX classifier becomes every declared tensor format, and classifies as before.

    The artifact is opened and asked about the labelled images of the fixture; its answers are compared with those of
    onnx's own evaluator on the source, and with the labels. A failure usually is a layout (NCHW against NHWC) or an
    input that was scaled twice.
    """

    def applies(self, manifest: Manifest) -> bool:
        return jobs.makes(manifest, "convert", "tensor")

    def proves(self, manifest: Manifest, cell: Cell) -> Mapping[str, str]:
        return {"task": "tensor", **super().proves(manifest, cell)}

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        made = [p for p in jobs.claimed(manifest, device, "tensor") if p.by != "quantize"]
        return [{"format": f, "precision": p.name} for p in made for f in manifest.formats_of("tensor", p.name)]

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        from edgecore_conformance import fixtures

        precision = bench.precision(cell["precision"])
        job = jobs.convert_job(bench, sources.source(bench, "onnx"), precision, cell["format"], "tensor")
        out = bench.folder("tensors")
        made = job.run(bench.backend(), out, bench.left)
        artifact = bench.sealed(out, made, precision.name, task="tensor", format=cell["format"])
        images = fixtures.classifier().images[:IMAGES].astype(np.float32)
        with bench.session(artifact) as opened:
            assert isinstance(opened, TensorSession)
            size = opened.inputs[0].shape[0]
            batch = size if isinstance(size, int) and size > 0 else len(images)
            fed = [{opened.inputs[0].name: images[i : i + batch]} for i in range(0, len(images), batch)]
            name = opened.outputs[0].name
            scores = np.concatenate([np.asarray(opened(one)[name], np.float32) for one in fed])
        files = {f.path: [f.size, f.role] for f in artifact.files}
        found = {name: facts[0] for name, facts in jobs.tree(out).items() if facts[3]}
        return Observation({"files": files, "found": found}, {"scores": scores})

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        from edgecore_conformance import fixtures

        sizes.judge_files(seen.facts["files"], seen.facts["found"], verdict)
        data = fixtures.classifier()
        due, scores = classified(), seen.arrays["scores"]
        if scores.shape != due.shape:
            verdict.problems.append(f"scores of shape {scores.shape}, where {due.shape} are due")
            return
        bits = next(p.bits for p in known.manifest.precisions if p.name == cell["precision"])
        scale = float(np.abs(due).max())
        tolerance = {32: 1e-4}.get(int(bits), 2e-2)
        worst = float(np.abs(scores - due).max()) / scale
        verdict.figure("largest error", worst, tolerance, "<=", "of the largest score", "compute of its bits")
        agreement = float((scores.argmax(1) == due.argmax(1)).mean())
        verdict.figure("same class as the source", agreement, 0.99, ">=", "", "a conversion decides nothing anew")
        verdict.figure("accuracy", float((scores.argmax(1) == data.labels[: len(scores)]).mean()))


def classified() -> Any:
    """Scores of the fixture's own ONNX file, by onnx's evaluator."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    from edgecore_conformance import fixtures

    data = fixtures.classifier()
    model = onnx.load(data.model)
    feed = {model.graph.input[0].name: data.images[:IMAGES].astype(np.float32)}
    answers: Any = ReferenceEvaluator(model).run(None, feed)
    return np.asarray(answers[0], np.float32)
