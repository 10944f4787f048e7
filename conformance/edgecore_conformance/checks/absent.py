"""What a plugin declares absent, and how each absence is asked for. Part of group *manifest and isolation*."""

from __future__ import annotations

from collections.abc import Iterable

from edgecore.contract.artifacts import Artifact
from edgecore.contract.errors import CannotDo, DeviceUnavailable
from edgecore.contract.manifest import Manifest
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, Check, check
from edgecore_conformance.checks import jobs, sources
from edgecore_conformance.known import TRAINED, Known, concerning
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.outcomes import Outcome

KINDS = ("huggingface", "gguf", "onnx")
NOWHERE = "device-of-nobody"
TYPED = {
    "logits": CannotDo,
    "convert": CannotDo,
    "quantize": CannotDo,
    "compile": CannotDo,
    "device": DeviceUnavailable,
}
"""Error that the contract names; for anything else any of its errors will do."""


@check
class Absent(Check):
    """manifest.absent: what is declared absent raises the typed error when it is asked for all the same.

    Every capability that the manifest does not declare is called: logits, verbs without a hook, kinds of sources that
    are not listed, a device that nobody has. The error must be the contract's (`CannotDo` for a verb or for logits,
    `DeviceUnavailable` for a device), never a fault of the plugin, a crash, or an answer. Only then is the row
    `unsupported`. A failure means that a user is told of a bug where a feature is missing; or that a device that is not
    there is silently replaced by one that is.
    """

    whole = True

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        text = bool(concerning(manifest, device).formats_of("text"))
        names = [] if manifest.can("logits") or not text else ["logits"]
        names += [verb for verb in ("convert", "quantize") if not _declares(manifest, verb)]
        names += [f"source-{kind}" for kind in KINDS if kind not in manifest.sources and manifest.sources]
        names += ["device"] if text else []
        return [{"capability": name} for name in [*names, "compile"]]

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        what, backend = cell["capability"], bench.backend()
        if what == "compile" and backend.has_hook("compile"):
            return Observation({"there": True})
        return Observation({"there": False, **jobs.attempt(lambda: ask(bench, what), bench)})

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        what, error = cell["capability"], seen.facts.get("error", "")
        if seen.facts["there"]:
            verdict.claimed = Outcome.NOT_APPLICABLE
            return
        verdict.expect(error != "", f"{what} is declared absent, and the call was answered")
        if what in TYPED:
            verdict.expect(error in ("", TYPED[what].__name__), f"{what}: {error}, where {TYPED[what].__name__} is due")
        else:
            verdict.expect(
                error not in jobs.UNTYPED[1:], f"{what}: {error}, which is no typed refusal: {seen.facts.get('what')}"
            )
        verdict.claimed = Outcome.UNSUPPORTED


def _declares(manifest: Manifest, verb: str) -> bool:
    if verb == "convert":
        return bool(manifest.sources)
    return any(p.by != "convert" for p in manifest.precisions)


def ask(bench: Bench, what: str) -> object:
    """Ask for it. Raises what the backend raises."""
    backend, manifest = bench.backend(), bench.known.whole
    if what == "logits":
        with bench.text_session(TRAINED) as session:
            return list(session.score(bench.known.tokens(TRAINED, "absent", 8)))
    if what == "device":
        return backend.open(
            bench.artifact(TRAINED), device=NOWHERE, options=bench.options("run"), deadline=bench.left
        ).close()
    out = bench.folder("absent")
    nothing = Artifact(out, manifest.name, "text", manifest.formats[0].name, manifest.precisions[0].name, ())
    if what == "quantize":
        return backend.quantize(artifact=nothing, out=out, precision=nothing.precision, deadline=bench.left)
    if what == "compile":
        return backend.compile(artifact=nothing, out=out, profile={}, device=bench.device, deadline=bench.left)
    kind = what.removeprefix("source-") if what.startswith("source-") else KINDS[0]
    task = "tensor" if kind == "onnx" else "text"
    formats = manifest.formats_of(task) or [f.name for f in manifest.formats]
    return backend.convert(
        source=sources.source(bench, kind), out=out, format=formats[0], precision=manifest.precisions[0].name,
        options=bench.options("convert", task), deadline=bench.left,
    )  # fmt: skip
