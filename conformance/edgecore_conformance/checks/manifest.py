"""Group *manifest and isolation*: what a plugin says of itself is what it does, and looking at it costs nothing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from edgecore.checkpoint.families import known as known_families
from edgecore.contract.artifacts import Artifact
from edgecore.contract.errors import BadRequest
from edgecore.contract.manifest import Manifest
from edgecore.contract.options import Option, Value
from edgecore.contract.precisions import PrecisionClass
from edgecore.contract.sessions import TextSession
from edgecore.workers.host import HOOKS
from edgecore_conformance import tensor_models
from edgecore_conformance.bench import Bench
from edgecore_conformance.check import Cell, Check, check
from edgecore_conformance.checks import absent, closeness, direct, jobs, sources  # noqa: F401 - absent registers
from edgecore_conformance.known import TRAINED, Known
from edgecore_conformance.observation import Judgement, Observation
from edgecore_conformance.outcomes import Outcome

CAPABILITIES = ("logits", "native_generate", "native_benchmark", "deterministic", "cancel_quantize")
PROBE_SECONDS = 1.0
TRIES = 3
"""Fresh workers whose probe is timed; the best counts, because a cold disk and a busy neighbour are nobody's fault."""


@check
class Hooks(Check):
    """manifest.hooks: there is a hook for everything that is declared, and none for what is not.

    The hooks that the plugin registered are compared with its manifest: `run` and `probe` always; `convert` where
    sources are declared; `quantize` exactly where a precision is made by it; `benchmark` exactly where
    `native_benchmark` is declared; a hook for every verb that has options. Precisions, claims and capabilities must
    make sense: known names, no claim twice, one recommended precision a class on each device. A failure means that
    `plan` and `help` promise what a call refuses, or hide what it could do.
    """

    whole = True

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        backend = bench.backend()
        return Observation({"hooks": [name.removeprefix("edgecore_") for name in HOOKS if backend.has_hook(name)]})

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        manifest, hooks = known.whole, set(seen.facts["hooks"])
        quantizes = any(p.by != "convert" for p in manifest.precisions)
        wanted = {
            "probe": (True, "every backend answers it"),
            "run": (bool(manifest.formats), "formats are declared"),
            "convert": (bool(manifest.sources), "sources are declared"),
            "quantize": (quantizes, "precisions are made by quantize"),
            "benchmark": (manifest.can("native_benchmark"), "native_benchmark is declared"),
        }
        for hook, (declared, why) in wanted.items():
            if declared:
                verdict.expect(hook in hooks, f"there is no hook {hook}, though {why}")
            else:
                verdict.expect(
                    hook not in hooks, f"there is a hook {hook}, and nothing that declares it: not that {why}"
                )
        for verb, options in manifest.options.items():
            there = verb in hooks or (verb == "benchmark" and "run" in hooks)
            verdict.expect(not options or there, f"options of {verb} are declared, and there is no hook {verb}")
        verdict.expect(bool(manifest.claims), "there are no claims: nothing can be proven of this plugin")
        verdict.problems += _contradictions(manifest)


def _contradictions(manifest: Manifest) -> list[str]:
    said = [
        f"capability {name!r} is none: {', '.join(CAPABILITIES)}"
        for name in manifest.capabilities
        if name not in CAPABILITIES
    ]
    families = {family.name for family in known_families()}
    tasks = {f.name: f.task for f in manifest.formats}
    for claim in set(manifest.claims):
        if manifest.claims.count(claim) > 1:
            said.append(f"claimed twice: {asdict(claim)}")
        if claim.task == "text" and claim.family not in families:
            said.append(f"family {claim.family!r} is claimed for text, and is none of {', '.join(sorted(families))}")
        if tasks[claim.format] != claim.task:
            said.append(f"format {claim.format!r} is for {tasks[claim.format]}, and is claimed for {claim.task}")
    for task in sorted({f.task for f in manifest.formats}):
        said += dict.fromkeys(words for d in manifest.devices if (words := _several(manifest, task, d.name)))
    for verb, options in manifest.options.items():
        for option in options:
            if option.default is not None and jobs.attempt(lambda o=option: o.parse(o.default)):  # type: ignore[misc]
                said.append(f"option {option.name} of {verb} does not accept its own default {option.default!r}")
    return said


def _several(manifest: Manifest, task: str, device: str) -> str:
    """Classes of which more than one precision is recommended on a device, in words."""
    mine = manifest.precisions_of(task, device)
    named = {k: [p.name for p in mine if p.precision_class is k and p.recommended] for k in PrecisionClass}
    found = [f"{kind} ({', '.join(names)})" for kind, names in named.items() if len(names) > 1]
    return f"several precisions of a class are recommended for {task}: {', '.join(found)}" if found else ""


@check
class Imports(Check):
    """manifest.imports: looking at the plugin loads no runtime, and loading its hooks loads none before one is called.

    A fresh interpreter of the plugin's environment imports the top-level package, then what every worker needs, then
    the hooks module, and lists what each step added to `sys.modules` and to the mapped libraries. The package may bring
    itself and the standard library. The hooks module may bring small helpers, but no distribution with native code that
    the core does not bring anyway, and not the runtime. A failure makes `--help` and `doctor` slow for everybody,
    and turns a runtime that cannot be loaded into a plugin that cannot even say so.
    """

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        found = direct.observe_directly(bench)
        return Observation(
            {name: found[name] for name in ("stages", "packages", "error", "events", "hooks") if name in found}
        )

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        stages, packages = seen.facts["stages"], seen.facts["packages"]
        verdict.expect(not seen.facts["error"], f"the hooks module cannot be loaded: {seen.facts['error']}")
        runtime = known.manifest.runtime.distribution
        for name in _foreign(stages.get("package", {}), packages):
            native = packages[name]["native"] or _same(packages[name]["distribution"], runtime)
            verdict.expect(not native, f"importing the package loads {name}, which holds native code or is the runtime")
        before = stages.get("package", {}).get("libraries", -1), stages.get("core", {}).get("libraries", -1)
        after = stages.get("hooks", {}).get("libraries", -1)
        for name in _foreign(stages.get("hooks", {}), packages):
            one = packages[name]
            runs = one["native"] or _same(one["distribution"], runtime)
            verdict.expect(one["core"] or not runs, f"importing the hooks loads {name}: only a call of a hook may")
        if min(*before, after) >= 0:
            verdict.figure("libraries mapped by the package", before[0])
            verdict.figure("libraries mapped by the hooks", after - before[1])
        for name, stage in stages.items():
            verdict.figure(f"seconds to import, {name}", stage["cpu"], unit="s of CPU time")
        wrote = direct.outside(seen.facts["events"], ("package", "hooks"), ("temp",))
        verdict.expect(not wrote, f"importing it changes files: {', '.join(wrote[:5])}")
        called = [what for stage, kind, what in seen.facts["events"] if kind == "network"]
        verdict.expect(not called, f"importing it wants the network: {', '.join(called[:5])}")


def _foreign(stage: Mapping[str, Any], packages: Mapping[str, Any]) -> list[str]:
    return [name for name in stage.get("modules", ()) if name in packages and not packages[name]["own"]]


def _same(one: str, other: str) -> bool:
    names = [n.strip().lower().replace("_", "-") for n in one.split(",")]
    return other.lower().replace("_", "-") in names


@check
class ProbeAnswers(Check):
    """manifest.probe: probe answers within a second, for every declared device, the same every time.

    In a worker that is up, `probe` is timed and asked twice; the best of up to three workers counts. It names exactly
    the devices of the manifest, says why one is missing, how the runtime calls one that is there, and the versions of
    what it loads. Listing and planning ask it for every plugin; one that takes long is one that people switch off, and
    one that raises for a missing device hides the devices that are there.
    """

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        seen = Observation({"seconds": []})
        for _ in range(TRIES):
            with bench.fresh() as backend:
                begun = time.perf_counter()
                first = backend.probe(deadline=bench.left)
                seen.facts["seconds"].append(time.perf_counter() - begun)
                seen.facts |= {"probe": _plain(first), "again": _plain(backend.probe(deadline=bench.left))}
            if seen.facts["seconds"][-1] <= PROBE_SECONDS:
                break
        return seen

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        probe = seen.facts["probe"]
        verdict.figure("probe", min(seen.facts["seconds"]), PROBE_SECONDS, "<=", "s", "the contract: within a second")
        verdict.expect(probe["devices"] == seen.facts["again"]["devices"], "a second probe names other devices")
        verdict.expect(probe["versions"] == seen.facts["again"]["versions"], "a second probe names other versions")
        named = [d["name"] for d in probe["devices"]]
        declared = [d.name for d in known.manifest.devices]
        verdict.expect(sorted(named) == sorted(declared), f"probe names {named}, the manifest {declared}")
        for one in probe["devices"]:
            what = "description" if one["available"] else "reason"
            verdict.expect(bool(one[what].strip()), f"device {one['name']} has no {what}")
        verdict.expect(bool(probe["versions"]), "probe names no version of anything")
        for name, version in probe["versions"].items():
            verdict.expect(bool(name) and any(c.isdigit() for c in version), f"version of {name!r} is {version!r}")
        if not any(d["name"] == known.device and d["available"] for d in probe["devices"]) and not verdict.problems:
            verdict.claimed = Outcome.UNAVAILABLE


def _plain(probe: Any) -> dict[str, Any]:
    return {
        "devices": [asdict(device) for device in probe.devices],
        "versions": dict(probe.versions),
        "features": dict(probe.features),
    }


@check
class ProbeEffects(Check):
    """manifest.probe_effects: probe leaves nothing behind and talks to nobody.

    A fresh interpreter with empty folders for home, temporary files, working directory and EDGECORE_HOME calls `probe`
    once. An audit hook watches what Python opens for writing and every connection, which it refuses; the folders
    are compared for what native code does. A failure usually is telemetry, or a cache that a runtime makes
    on its first import: probe runs for every `doctor` and every listing, on machines of people who never asked for it.
    Versions that it names of distributions are those that are installed: ids of artifacts and claims rest on them.
    """

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        found = direct.observe_directly(bench, {"hook": "edgecore_probe", "arguments": {}})
        names = ("answer", "installed", "events", "left", "sockets", "children", "error", "call_error")
        return Observation({name: found[name] for name in names if name in found})

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        facts = seen.facts
        verdict.expect(
            not (facts["error"] or facts.get("call_error")), f"probe raised {facts['error'] or facts['call_error']}"
        )
        for name, version in facts.get("installed", {}).items():
            said = str(facts["answer"]["versions"][name])
            # A build's suffix may be told by one and not by the other.
            same = said.startswith(version) or version.startswith(said)
            verdict.expect(bool(said) and same, f"version of {name}: {said!r}, and {version!r} is installed")
        for place, files in facts["left"].items():
            verdict.expect(not files, f"probe left in {place}: {', '.join(files[:5])}")
        wrote = direct.outside(facts["events"], ("hooks", "call"), ("temp",))
        verdict.expect(not wrote, f"probe changes files: {', '.join(wrote[:5])}")
        called = [what for _, kind, what in facts["events"] if kind == "network"]
        verdict.expect(not called, f"probe wants the network: {', '.join(called[:5])}")
        verdict.expect(facts["children"] == 0, f"probe leaves {facts['children']} processes running")
        verdict.figure("open sockets after probe", max(facts["sockets"], 0))
        verdict.expect(facts["sockets"] <= 0, "probe leaves sockets open")


@check
class Formats(Check):
    """manifest.formats: a declared format is really opened, also where it lies and was made by others.

    For formats that the neutral model knows, the fixture is written by the suite itself (a GGUF file in float32, a
    Hugging Face folder) and opened where it lies, without conversion; for others the plugin's own artifact is
    opened. The answer must be the oracle's. A failure means that a file that people already have is refused, or is
    read otherwise than by everybody else.
    """

    def applies(self, manifest: Manifest) -> bool:
        return any(f.task == "text" for f in manifest.formats)

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        return [{"format": f.name} for f in manifest.formats if f.task == "text"]

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        name, seen = cell["format"], Observation()
        if name in ("gguf", "huggingface"):
            path = sources.source(bench, name)
            artifact = native(bench, path, name)
            seen.facts["precision"] = ""
        else:
            artifact = bench.artifact(TRAINED, format=name if name in bench.manifest.formats_of("text") else "")
            seen.facts["precision"] = artifact.precision
        closeness.observe_logits(bench, seen, artifact, TRAINED, "formats")
        return seen

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        named = [p for p in known.manifest.precisions if p.name == seen.facts["precision"]]
        half = [p for p in known.manifest.precisions if p.bits == 16]
        precision = (named or half or list(known.manifest.precisions))[0]
        if not closeness.judge_logits(seen, known, TRAINED, "formats", precision, verdict) and not verdict.problems:
            verdict.claimed = Outcome.UNAVAILABLE


def native(bench: Bench, path: Path, format: str) -> Artifact:
    """A file or folder as the core hands it to a backend, where it lies."""
    from edgecore.store.native import native_artifact

    found = native_artifact(path, bench.manifest)
    assert found is not None
    assert found.format == format
    return replace(found, context_length=found.context_length or 0)


@check
class Options(Check):
    """manifest.options: every declared option is accepted, with its default and with each of its declared values.

    Unknown keys and bad values are refused by the core, from the manifest, so a plugin never sees them; but what the
    manifest declares must work. One option at a time takes each of its choices, both truth values and its limits
    (for `run`), and the verb is called: on a model of the option's task, with calibration data where the precision
    takes any, and where that is refused without; an option of some precisions alone, in one of these. A failure means
    that `-O key=value` passes every check and then fails in the runtime.
    """

    seconds = 120.0

    def applies(self, manifest: Manifest) -> bool:
        return bool(self._tried(manifest)) or (
            any(f.task == "text" for f in manifest.formats) and any(manifest.options.values())
        )

    def proves(self, manifest: Manifest, cell: Cell) -> Mapping[str, str]:
        return {"task": _task(_option(manifest, cell), manifest) if cell else "text"}

    def cells(self, manifest: Manifest, device: str, level: str) -> Iterable[Cell]:
        return self._tried(manifest) or [{}]

    def _tried(self, manifest: Manifest) -> list[Cell]:
        return [
            {"verb": verb, "option": option.name}
            for verb in ("convert", "quantize", "run")
            for option in manifest.options_of(verb)
            if _makes(manifest, verb, _task(option, manifest))
        ]

    def observe(self, bench: Bench, cell: Cell) -> Observation:
        if not cell:
            return Observation({"tried": []})
        option, tried = _option(bench.manifest, cell), []
        for value in _values(option, cell["verb"], bench.known.level):
            error = jobs.attempt(lambda value=value: _with_option(bench, cell["verb"], option, value), bench)  # type: ignore[misc]
            tried.append({"value": value, **error})
        return Observation({"tried": tried})

    def judge(self, seen: Observation, cell: Cell, known: Known, verdict: Judgement) -> None:
        if not cell:
            verdict.claimed = Outcome.NOT_APPLICABLE
            return
        option = _option(known.manifest, cell)
        due = _values(option, cell["verb"], known.level)
        verdict.expect([t["value"] for t in seen.facts["tried"]] == due, f"not every value was tried: {due}")
        for one in seen.facts["tried"]:
            verdict.expect(
                "error" not in one,
                f"{option.name}={one['value']} is declared, and raises {one.get('error')}: {one.get('what')}",
            )


def _option(manifest: Manifest, cell: Cell) -> Option:
    return next(o for o in manifest.options_of(cell["verb"]) if o.name == cell["option"])


def _makes(manifest: Manifest, verb: str, task: str) -> bool:
    """Whether there is anything on the device to try an option of the verb with."""
    return jobs.makes(manifest, verb, task) if verb != "run" else bool(manifest.formats_of(task))


def _task(option: Option, manifest: Manifest) -> str:
    """Of the models that an option is tried with."""
    return option.task or ("text" if manifest.formats_of("text") else "tensor")


def _values(option: Option, verb: str, level: str) -> list[Value]:
    """What is tried: at level quick the first and the last of many choices."""
    values: list[Value] = [] if option.default is None else [option.default]
    if option.type == "bool":
        values += [True, False]
    values += option.choices if level == "full" or len(option.choices) < 4 else (option.choices[0], option.choices[-1])
    if verb == "run" and option.type in ("int", "float"):
        values += [option.parse(v) for v in (option.minimum, option.maximum) if v is not None]
    return list(dict.fromkeys(values))


def _with_option(bench: Bench, verb: str, option: Option, value: Value) -> None:
    task = _task(option, bench.manifest)
    if verb == "run":
        artifact = jobs.base_of(bench, task)
        with bench.session(artifact, threads=1, options={option.name: value}) as opened:
            if isinstance(opened, TextSession):
                opened.context().prefill(bench.known.tokens(TRAINED, "options", 4))
            else:
                opened(tensor_models.classifier_feeds(1)[1])
        return
    options = {**bench.options(verb, task), option.name: value}
    if verb == "convert":
        source = bench.known.fixture(TRAINED) if task == "text" else tensor_models.classifier_feeds(1)[0]
        precision = bench.finest().name if task == "text" else tensor_models.finest(bench.manifest, bench.device)
        bench.backend().convert(
            source=source, out=bench.folder("option"), format=bench.format_for(precision, task), precision=precision,
            options=options, limits=bench.limits(task, source), deadline=bench.left,
        )  # fmt: skip
        return
    ways = {"none": (False,), "optional": (True, False), "required": (True,)}
    tries = [(p, way) for p in jobs.calibrated(bench.manifest, bench.device, task) for way in ways[p.calibration]]
    for number, (made, way) in enumerate(tries, 1):
        try:
            bench.backend().quantize(
                artifact=jobs.base_of(bench, task, made.name), out=bench.folder("option"), precision=made.name,
                calibration=jobs.calibration_of(bench, task) if way else None, options=options, deadline=bench.left,
            )  # fmt: skip
            return
        except BadRequest:
            if number == len(tries):
                raise
