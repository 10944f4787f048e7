"""What the checks of tensor sessions share: the drawn graph in an open session, answers kept and held to numpy's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from edgecore.contract.manifest import Manifest
from edgecore.contract.sessions import TensorSession
from edgecore.quality.tensors import compare_tensors
from edgecore_conformance import tensor_models as models
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, Check, has_task
from edgecore_conformance.known import Known
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.tensor_models import Arrays


class TensorCheck(Check):
    """One row, on the drawn graph in the finest precision, on an open session."""

    def applies(self, manifest: Manifest) -> bool:
        return has_task("tensor")(manifest)

    def proves(self, manifest: Manifest, cell: Cell) -> Mapping[str, str]:
        return {"task": "tensor", **cell}

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        seen = Observation()
        precision = cell.get("precision", "") or models.finest(bench.manifest, bench.device)
        seen.facts["precision"] = precision
        with bench.session(models.drawn_artifact(bench, self.name(), precision), threads=1) as session:
            assert isinstance(session, TensorSession)
            seen.facts["inputs"] = [[s.name, s.dtype, list(s.shape)] for s in session.inputs]
            seen.facts["outputs"] = [[s.name, s.dtype, list(s.shape)] for s in session.outputs]
            self.watched(session, bench, seen)
        return seen

    def watched(self, session: TensorSession, bench: Bench, seen: Observation) -> None:
        raise NotImplementedError

    def call(self, session: TensorSession, bench: Bench, seen: Observation, label: str, batch: int) -> None:
        """One call on the feeds of a label; the answer is kept."""
        keep_answer(seen, label, session(models.feeds(bench.known, f"{self.name()} {label}", batch)), batch)

    def right(self, seen: Observation, label: str, known: Known, verdict: Judgement, drawn: str = "") -> None:
        """The answer of a label is that of the feeds which the seed draws for it (or for `drawn`)."""
        batch = seen.facts["calls"][label]["batch"]
        feeds = models.feeds(known, f"{self.name()} {drawn or label}", batch)
        expected = models.graph(known, self.name()).expected(feeds)
        judge_values(seen, label, expected, known, verdict)


def keep_answer(seen: Observation, label: str, answer: Mapping[str, NDArray[Any]], batch: int) -> None:
    calls = seen.facts.setdefault("calls", {})
    calls[label] = {"batch": batch, "answer": models.keep(answer, label, seen.arrays)}


def answer_of(seen: Observation, label: str) -> Arrays:
    return models.kept(seen.facts["calls"][label]["answer"], label, seen.arrays)


def judge_values(seen: Observation, label: str, expected: Arrays, known: Known, verdict: Judgement) -> None:
    """All outputs, no others, in type and shape, and near in value: relative to the largest of an output from 16 bits
    on, by signal to noise below."""
    answer = answer_of(seen, label)
    verdict.expect(set(answer) == set(expected), f"{label}: outputs {sorted(answer)}, the model has {sorted(expected)}")
    bits = models.bits_of(known.manifest, seen.facts["precision"])
    for name in sorted(set(answer) & set(expected)):
        got, wanted = answer[name], expected[name]
        if got.shape != wanted.shape:
            verdict.problems.append(f"{label}: {name} has shape {list(got.shape)}, due is {list(wanted.shape)}")
            continue
        error = compare_tensors(wanted, got)
        if bits < 16:
            bound = 6.02 * bits - 18  # a bit is 6 dB; 3 bits are left to activations and to the spread of the weights
            sqnr = min(error.sqnr_db, 999.0)
            verdict.figure(f"{label}: {name}, signal to noise", sqnr, bound, ">=", "dB", f"{bits:g} bits less 3")
        else:
            bound = 1e-4 if bits >= 32 else 2e-2
            verdict.figure(f"{label}: {name}, relative error", error.relative_error, bound, "<=", "", f"{bits:g} bits")


def static_batch(session: TensorSession, wanted: int) -> int:
    """The batch that a session insists on, else the wanted one."""
    size = session.inputs[0].shape[0] if session.inputs and session.inputs[0].shape else wanted
    return size if isinstance(size, int) and size > 0 else wanted
