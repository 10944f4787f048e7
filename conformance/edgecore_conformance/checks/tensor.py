"""Run, tensor: named arrays in, named arrays out, right in value, shape and type, whatever ran before.

The small checks run a graph that the seed draws (`tensor_models.Graph`), whose answer plain numpy knows in float64. The
operator tier and the classifier are in files of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from edgecore.contract.errors import EdgecoreError, UnsupportedModel
from edgecore.contract.manifest import Manifest
from edgecore.contract.sessions import TensorSession
from edgecore_conformance import tensor_models as models
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, Check, check, has_task
from edgecore_conformance.checks import tensor_classifier, tensor_memory, tensor_operators, tensor_types
from edgecore_conformance.checks.tensor_base import TensorCheck, answer_of, judge_values, keep_answer, static_batch
from edgecore_conformance.known import Known
from edgecore_conformance.observation import Judgement, Observation, error_of
from edgecore_conformance.outcomes import Outcome
from edgecore_conformance.tensor_models import Arrays

__all__ = ["tensor_classifier", "tensor_memory", "tensor_operators", "tensor_types"]
BATCHES = (1, 3, 7)
REFUSALS = ("BadRequest", "UnsupportedModel", "CannotDo")
"""Errors by which an empty batch may be refused."""
LENGTHS = ((2, 5), (1, 9), (4, 2), (2, 5))
"""(batch, length), one call after the other."""
EXPORTED = {
    "zeta": "serving_default_x:0",
    "alpha": "input.1",
    "total": "StatefulPartitionedCall:0",
    "gate": "/out/Sigmoid_output_0",
}
"""Names as exporters write them."""


@check
class Values(TensorCheck):
    """tensor.values: the values are right in every precision that is claimed.

    A graph with two inputs and two outputs, weights and feeds drawn from the seed, is converted (and quantized) to each
    precision and compared with its answer in float64. Errors far above the width of the weights usually mean that the
    runtime computes in less than its precision says: an accelerator's default, or a fast-math setting.
    """

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        return [{"precision": name} for name in models.precisions(manifest, device)]

    def watched(self, session: TensorSession, bench: Bench, seen: Observation) -> None:
        for label in ("first", "second"):
            self.call(session, bench, seen, label, static_batch(session, 4))

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        for label in ("first", "second"):
            self.right(seen, label, known, verdict)


@check
class Specs(TensorCheck):
    """tensor.specs: inputs and outputs have the model's names, types, shapes and order; feeds go by name.

    A feed by another order of its names must give the same answer: runtimes that take inputs by position mix them up
    where a plugin does not sort them. A symbolic dimension is stated as a name, a fixed one as a number. The same graph
    with names as TensorFlow's and PyTorch's exporters write them keeps these, whatever identifiers a format allows.
    """

    def watched(self, session: TensorSession, bench: Bench, seen: Observation) -> None:
        batch = static_batch(session, 3)
        feeds = models.feeds(bench.known, f"{self.name()} same", batch)
        keep_answer(seen, "as listed", session({n: feeds[n] for n in ("zeta", "alpha")}), batch)
        keep_answer(seen, "reversed", session({n: feeds[n] for n in ("alpha", "zeta")}), batch)
        artifact = models.drawn_artifact(bench, self.name(), seen.facts["precision"], names=EXPORTED)
        with bench.session(artifact, threads=1) as exported:
            assert isinstance(exported, TensorSession)
            given = [[s.name for s in side] for side in (exported.inputs, exported.outputs)]
            seen.facts["exported"] = given
            if {n for side in given for n in side} == set(EXPORTED.values()):
                answer = exported({EXPORTED[n]: array for n, array in feeds.items()})
                plain = {name: n for n, name in EXPORTED.items()}
                keep_answer(seen, "exported", {plain.get(n, n): array for n, array in answer.items()}, batch)

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        due = {
            "inputs": [("zeta", models.WIDE), ("alpha", models.NARROW)],
            "outputs": [("total", models.NARROW), ("gate", models.NARROW)],
        }
        for side, wanted in due.items():
            got = seen.facts[side]
            names = [name for name, _, _ in got]
            verdict.expect(names == [n for n, _ in wanted], f"{side}: {names}, the model has {[n for n, _ in wanted]}")
            for (name, dtype, shape), (_, width) in zip(got, wanted, strict=False):
                verdict.expect(dtype == "float32", f"{name}: stated as {dtype}, the model has float32")
                fits = len(shape) == 2 and shape[1] == width and (isinstance(shape[0], str) or shape[0] > 0)
                verdict.expect(fits, f"{name}: stated as {shape}, the model has ['batch', {width}]")
        due_names = [[EXPORTED[n] for n in side] for side in (("zeta", "alpha"), ("total", "gate"))]
        stated = seen.facts["exported"]
        verdict.expect(stated == due_names, f"inputs and outputs are called {stated}, the model has {due_names}")
        for label in ("as listed", "reversed", "exported"):
            if label not in seen.facts["calls"]:
                continue
            self.right(seen, label, known, verdict, drawn="same")
            for name, about in seen.facts["calls"][label]["answer"].items():
                verdict.expect(about["dtype"] == "float32", f"{name} came as {about['dtype']}, stated is float32")


@check
class Dynamic(TensorCheck):
    """tensor.dynamic_shapes: a dimension that is stated by name takes any size, in any order.

    One session is called with batches of 1, 3 and 7 and of 1 again, and at last with none at all; each must be right,
    and an empty one right or refused by a typed error. So must be a model that has a second open axis, as text and
    audio have, in several lengths. A runtime that has fixed shapes says so with a number in its specs: another size
    must then be `BadRequest`, and the row reads *unsupported*; a model whose second axis it cannot leave open it may
    refuse.
    """

    def watched(self, session: TensorSession, bench: Bench, seen: Observation) -> None:
        for batch in BATCHES:
            label = f"batch {batch}"
            try:
                self.call(session, bench, seen, label, batch)
            except EdgecoreError as error:
                seen.facts.setdefault("refused", {})[label] = dict(error_of(error))
        if "batch 1" in seen.facts.get("calls", {}):
            keep_answer(seen, "again", session(models.feeds(bench.known, f"{self.name()} batch 1", 1)), 1)
        try:
            self.call(session, bench, seen, "empty", 0)
        except EdgecoreError as error:
            seen.facts["empty"] = dict(error_of(error))
        try:
            self.lengths(bench, seen)
        except UnsupportedModel as error:
            seen.facts["lengths"] = dict(error_of(error))

    def lengths(self, bench: Bench, seen: Observation) -> None:
        """Calls of the model with two open axes."""
        artifact = models.drawn_artifact(bench, self.name(), seen.facts["precision"], axes=("batch", "length"))
        with bench.session(artifact, threads=1) as session:
            assert isinstance(session, TensorSession)
            if any(isinstance(size, int) for spec in session.inputs for size in spec.shape[:2]):
                raise UnsupportedModel("an axis that the model leaves open is fixed")
            for number, sizes in enumerate(LENGTHS):
                fed = models.feeds(bench.known, f"{self.name()} lengths", *sizes)
                keep_answer(seen, f"length {number}", session(fed), sizes[0])

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        fixed = [size for _, _, shape in seen.facts["inputs"] for size in shape[:1] if isinstance(size, int)]
        refused = seen.facts.get("refused", {})
        for batch in BATCHES:
            label = f"batch {batch}"
            if label in refused:
                said = refused[label]
                allowed = bool(fixed) and batch not in fixed and said["error"] == "BadRequest"
                verdict.expect(allowed, f"{label}: {said['error']}: {said['what']}; stated is {seen.facts['inputs']}")
            else:
                self.right(seen, label, known, verdict)
        if "again" in seen.facts.get("calls", {}):
            self.right(seen, "again", known, verdict, drawn="batch 1")
        if "empty" in seen.facts:
            said = seen.facts["empty"]
            verdict.expect(said["error"] in REFUSALS, f"an empty batch: {said['error']}: {said['what']}")
        else:
            answer = answer_of(seen, "empty")
            shapes = {name: list(array.shape) for name, array in answer.items()}
            due = [0, models.NARROW]
            verdict.expect(shapes == {"gate": due, "total": due}, f"an empty batch: shapes {shapes}, due are {due}")
        for number, sizes in enumerate(LENGTHS if "lengths" not in seen.facts else ()):
            feeds = models.feeds(known, f"{self.name()} lengths", *sizes)
            expected = models.graph(known, self.name()).expected(feeds)
            judge_values(seen, f"length {number}", expected, known, verdict)
        if fixed:
            verdict.claimed = Outcome.UNSUPPORTED


@check
class WrongFeeds(TensorCheck):
    """tensor.wrong_feeds: a feed that is missing, surplus, of a wrong type or shape is `BadRequest` naming the input.

    Runtimes compute from memory that was never set where an input is missing, cast what they were given, or broadcast
    it; each is a wrong answer without an error. After every refusal the session must answer a good feed as before.
    """

    wrong = (
        "missing zeta",
        "missing alpha",
        "surplus",
        "float64",
        "integers",
        "width",
        "rank",
        "batches differ",
        "same size",
        "one more axis",
        "none",
    )

    def watched(self, session: TensorSession, bench: Bench, seen: Observation) -> None:
        batch = static_batch(session, 2)
        good = models.feeds(bench.known, f"{self.name()} good", batch)
        said: dict[str, Any] = {}
        for name in self.wrong:
            try:
                answer = session(wrong_feeds(good, name))
                said[name] = {"answered": sorted(answer)}
            except EdgecoreError as error:
                said[name] = dict(error_of(error))
            keep_answer(seen, f"after {name}", session(good), batch)
        seen.facts["said"] = said

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        named = {
            "missing zeta": ["zeta"], "missing alpha": ["alpha"], "surplus": ["beta"], "float64": ["zeta"],
            "integers": ["alpha"], "width": ["zeta"], "rank": ["alpha"], "batches differ": ["zeta", "alpha"],
            "same size": ["zeta"], "one more axis": ["zeta"], "none": ["zeta", "alpha"],
        }  # fmt: skip
        for name in self.wrong:
            said = seen.facts["said"][name]
            if said.get("error") != "BadRequest":
                verdict.problems.append(
                    f"{name}: BadRequest was due, came {said.get('error', 'an answer')} {said.get('what', '')}".rstrip()
                )
            else:
                there = any(repr(n) in said["what"] or n in said["what"].split() for n in named[name])
                verdict.expect(there, f"{name}: the error does not name {' or '.join(named[name])}: {said['what']}")
            self.right(seen, f"after {name}", known, verdict, drawn="good")


def wrong_feeds(good: Arrays, name: str) -> Arrays:
    """Good feeds with one fault."""
    zeta, alpha = good["zeta"], good["alpha"]
    match name:
        case "missing zeta":
            return {"alpha": alpha}
        case "missing alpha":
            return {"zeta": zeta}
        case "surplus":
            return {**good, "beta": np.zeros(1, np.float32)}
        case "float64":
            return {**good, "zeta": zeta.astype(np.float64)}
        case "integers":
            return {**good, "alpha": alpha.astype(np.int32)}
        case "width":
            return {**good, "zeta": np.concatenate([zeta, zeta[:, :1]], axis=1)}
        case "rank":
            return {**good, "alpha": alpha[0]}
        case "batches differ":
            return {**good, "zeta": np.concatenate([zeta, zeta[:1]])}
        case "same size":
            return {**good, "zeta": zeta.reshape(-1, models.WIDE // 2)}
        case "one more axis":
            return {**good, "zeta": zeta[None]}
    return {}


@check
class FixedShapes(Check):
    """tensor.fixed_shapes: a conversion with fixed shapes gives a session that states and keeps them.

    The drawn graph is converted with `shapes` for both inputs. The specs must say the sizes, that size must be answered
    rightly and any other be `BadRequest` naming the input. A shape that the model does not allow is refused at
    conversion.
    """

    def applies(self, manifest: Manifest) -> bool:
        return has_task("tensor")(manifest) and "onnx" in manifest.sources

    def proves(self, manifest: Manifest, cell: Cell) -> Mapping[str, str]:
        return {"task": "tensor"}

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        seen = Observation({"precision": models.finest(bench.manifest, bench.device)})
        source = models.graph(bench.known, self.name()).write(bench.folder("graph") / "model.onnx")
        shapes = {"zeta": (3, models.WIDE), "alpha": (3, models.NARROW)}
        with bench.session(models.artifact(bench, source, shapes=shapes), threads=1) as session:
            assert isinstance(session, TensorSession)
            seen.facts["inputs"] = [[s.name, list(s.shape)] for s in session.inputs]
            keep_answer(seen, "fixed", session(models.feeds(bench.known, f"{self.name()} fixed", 3)), 3)
            try:
                answer = session(models.feeds(bench.known, f"{self.name()} other", 2))
                seen.facts["other"] = {"answered": sorted(answer)}
            except EdgecoreError as error:
                seen.facts["other"] = dict(error_of(error))
        try:
            models.artifact(bench, source, shapes={"zeta": (3, models.WIDE + 1)})
            seen.facts["impossible"] = {"answered": "an artifact"}
        except EdgecoreError as error:
            seen.facts["impossible"] = dict(error_of(error))
        return seen

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        stated, due = seen.facts["inputs"], [["zeta", [3, models.WIDE]], ["alpha", [3, models.NARROW]]]
        verdict.expect(stated == due, f"inputs are stated as {stated}, due is {due}")
        expected = models.graph(known, self.name()).expected(models.feeds(known, f"{self.name()} fixed", 3))
        judge_values(seen, "fixed", expected, known, verdict)
        for name, kinds in (("other", ("BadRequest",)), ("impossible", ("BadRequest", "UnsupportedModel"))):
            said = seen.facts[name]
            verdict.expect(said.get("error") in kinds, f"{name} shape: {' or '.join(kinds)} was due, came {said}")
