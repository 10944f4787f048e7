"""Run, tensor: what a conversion costs in the only unit that a user of a classifier has, right answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecore.contract.manifest import Manifest
from edgecore.contract.sessions import TensorSession
from edgecore.quality.tensors import compare_tensors
from edgecore_conformance import tensor_models as models
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, Check, check, has_task
from edgecore_conformance.known import Known
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.tensor_models import CALIBRATED

SCORED = 120
"""Images at most in level quick."""


@check
class Accuracy(Check):
    """tensor.accuracy: a classifier is as accurate after conversion, and after quantization, as it was.

    A small trained classifier is converted to each claimed precision and run on labelled images that did not calibrate
    it. Its accuracy may fall by a stated share of the images: none to speak of from 16 bits on, two in a hundred at 8
    bits, five below. Beside it stands how often its answer is the original's, computed by onnx's own evaluator.
    """

    seconds = 180.0

    def applies(self, manifest: Manifest) -> bool:
        return has_task("tensor")(manifest)

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        return [{"precision": name} for name in models.precisions(manifest, device)]

    def proves(self, manifest: Manifest, cell: Cell) -> Mapping[str, str]:
        return {"task": "tensor", **cell}

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        artifact, first = models.classifier(bench, cell["precision"])
        name = next(iter(first))
        images, _ = scored(bench.known.level)
        with bench.session(artifact, threads=1) as session:
            assert isinstance(session, TensorSession)
            size = session.inputs[0].shape[0]
            batch = size if isinstance(size, int) and size > 0 else 40
            whole = len(images) // batch * batch
            parts = [session({name: images[i : i + batch]}) for i in range(0, whole, batch)]
        output = next(iter(parts[0]))
        answers = np.concatenate([np.asarray(part[output], np.float32) for part in parts])
        return Observation({"fed": models.digest({name: images[:whole]}), "images": whole}, {"answers": answers})

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        images, labels = scored(known.level)
        count = int(seen.facts["images"])
        answers = seen.arrays["answers"]
        before = original(known.level)[:count]
        fed = models.digest({_input(): images[:count]})
        verdict.expect(seen.facts["fed"] == fed, "other images were fed than are published")
        verdict.expect(count >= 50, f"{count} images were scored")
        if answers.shape != before.shape:
            verdict.problems.append(f"the answers have shape {list(answers.shape)}, due is {list(before.shape)}")
            return
        bits = models.bits_of(known.manifest, cell["precision"])
        was = float((before.argmax(axis=1) == labels[:count]).mean())
        now = float((answers.argmax(axis=1) == labels[:count]).mean())
        lost = 0.005 if bits >= 16 else 0.02 if bits >= 8 else 0.05
        verdict.figure("accuracy before", was, unit=f"of {count} images")
        verdict.figure(
            "accuracy after",
            now,
            was - lost,
            ">=",
            f"of {count} images",
            f"{was:.4g} before, less {lost:g} for {bits:g} bits",
        )
        same = float((answers.argmax(axis=1) == before.argmax(axis=1)).mean())
        verdict.figure("same answer as before", same, 1 - 2 * lost, ">=", "of all", "twice what accuracy may lose")
        error = compare_tensors(before, answers)
        if bits >= 16:
            bound = 1e-3 if bits >= 32 else 5e-2
            verdict.figure(
                "relative error", error.relative_error, bound, "<=", "", f"{bits:g} bits, through all layers"
            )
        verdict.figure("signal to noise", min(error.sqnr_db, 999.0), unit="dB")


def _input() -> str:
    from edgecore_conformance import fixtures

    return models.input_name(fixtures.classifier().model)


def scored(level: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Images and labels that are scored: not those that calibrate."""
    from edgecore_conformance import fixtures

    found = fixtures.classifier()
    last = None if level == "full" else CALIBRATED + SCORED
    return np.asarray(found.images)[CALIBRATED:last], np.asarray(found.labels)[CALIBRATED:last]


@lru_cache(maxsize=2)
def original(level: str) -> NDArray[np.float32]:
    """What the classifier answers by onnx's own evaluator."""
    from onnx.reference import ReferenceEvaluator

    from edgecore_conformance import fixtures

    images, _ = scored(level)
    evaluator = ReferenceEvaluator(str(fixtures.classifier().model))
    name = _input()
    found: list[Any] = [evaluator.run(None, {name: images[i : i + 50]}) for i in range(0, len(images), 50)]
    return np.concatenate([np.asarray(outputs[0]) for outputs in found]).astype(np.float32)
