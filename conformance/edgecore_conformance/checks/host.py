"""A plugin used in its caller's process (`isolated=False`), where no worker stands between. Part of *robustness*."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from edgecore.contract.manifest import Manifest
from edgecore_conformance import tensor_models
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, Check, check
from edgecore_conformance.checks import direct
from edgecore_conformance.known import TRAINED, Known
from edgecore_conformance.observation import Judgement, Observation


@check
class Host(Check):
    """robustness.host: a session in its caller's own process keeps to itself.

    The hook `run` is called in a fresh interpreter; the session answers and is closed. Answers must be the caller's to
    keep, when others follow and when the session is closed, and feeds must be as they were. What the process has once
    must be unchanged: the working directory, variables that were set, locale, signals, numpy's handling of errors.
    Nothing may want the network.

    Workers hide most of this, because answers are copied on their way. Whoever asks for `isolated=False` gets answers
    that change afterwards, from a buffer of the runtime, or a program whose relative paths lead elsewhere.
    """

    def applies(self, manifest: Manifest) -> bool:
        return bool(tasks(manifest))

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        return [{"task": task} for task in tasks(manifest)]

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        text = cell["task"] == "text"
        artifact = bench.artifact(TRAINED) if text else tensor_models.drawn_artifact(bench, self.name())
        arguments = {
            "artifact": direct.artifact_facts(artifact), "device": bench.device, "context_length": None, "threads": 1,
            "options": bench.options("run", artifact.task),
        }  # fmt: skip
        call: dict[str, Any] = {"hook": "edgecore_run", "arguments": arguments}
        if text:
            call["tokens"] = bench.known.tokens(TRAINED, self.name(), 12)
        else:
            call["feeds"] = str(bench.folder("feeds") / "feeds.npz")
            np.savez(call["feeds"], **tensor_models.feeds(bench.known, self.name(), 4))  # type: ignore[arg-type]
        found = direct.observe_directly(bench, call)
        names = ("answer", "changed", "error", "call_error", "events")
        return Observation({name: found[name] for name in names if name in found})

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        facts: Mapping[str, Any] = seen.facts
        error = facts["error"] or facts.get("call_error")
        if error:
            verdict.problems.append(f"the hook raised {error}")
            return
        for what, holds in facts["answer"].items():
            verdict.expect(bool(holds), f"not so: {what}")
        verdict.expect(not facts["changed"], f"changed for the whole process: {', '.join(facts['changed'])}")
        called = [what for _, kind, what in facts["events"] if kind == "network"]
        verdict.expect(not called, f"it wants the network: {', '.join(called[:5])}")


def tasks(manifest: Manifest) -> list[str]:
    """What the plugin makes artifacts of, or opens."""
    made = [task for task in ("text", "tensor") if manifest.formats_of(task)]
    return made if "tensor" in made or not tensor_models.opens_onnx(manifest) else [*made, "tensor"]
