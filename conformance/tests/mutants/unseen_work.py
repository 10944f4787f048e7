"""Faults that were thought of before the checks were read (unseen.py): benchmark, placement, robustness, the probe."""

from __future__ import annotations

from typing import Any

from mutants.mutant import Mutant

TEXT = "from edgecore.checkpoint import oracle\nfrom edgecore_reference.text import OracleSession\n"
MEASURED = """
@hookimpl
def edgecore_benchmark(artifact, device, workload, options, progress):
    def measured(workload=workload, artifact=artifact):
        return truthful.edgecore_benchmark(artifact, device, workload, options, progress)
"""


def _benchmark(name: str, fault: str, checks: str, hooks: str) -> Mutant:
    return Mutant(name, fault, tuple(checks.split()), hooks, base="timer")


def _session(name: str, fault: str, checks: str, hooks: str, **more: Any) -> Mutant:
    return Mutant(name, fault, tuple(checks.split()), TEXT + hooks, **more)


MUTANTS = (
    _benchmark(
        "first_model_kept",
        "the model of the first benchmark is kept open, and serves every later one",
        "benchmark.tokens",
        "kept = []\n" + MEASURED + "    kept.append(artifact)\n    return measured(artifact=kept[0])\n",
    ),
    _benchmark(
        "ends_with_the_text",
        "the timed loop ends at a token that ends a text",
        "benchmark.tokens",
        TEXT
        + """
@instead(truthful, "repeated")
def repeated(was, context, workload):
    repetition, tokens = was(context, workload)
    if workload.mode == "greedy" and (ends := [i for i, t in enumerate(tokens) if t in (0, 2)]):
        return replace(repetition, steps=repetition.steps[: ends[0] + 1]), tokens[: ends[0] + 1]
    return repetition, tokens
""",
    ),
    _benchmark(
        "benchmarks_on_any_device",
        "benchmark computes on the processor, whatever device is named",
        "placement.unknown_device",
        """
@hookimpl
def edgecore_benchmark(artifact, device, workload, options, progress):
    return truthful.edgecore_benchmark(artifact, "cpu", workload, options, progress)
""",
    ),
    _benchmark(
        "prompt_kept_between_repetitions",
        "the prompt's cache is kept from one repetition to the next, and prefill is one token",
        "benchmark.work",
        """
@instead(truthful, "repeated")
def repeated(was, context, workload):
    from time import perf_counter
    n = len(workload.prompt)
    if n < 2 or list(context.tokens[:n]) != list(workload.prompt):
        return was(context, workload)
    context.rewind(context.position - n + 1)
    begin = perf_counter()
    logits = context.prefill(workload.prompt[-1:])
    prefill, steps, tokens = perf_counter() - begin, [], []
    for number in range(workload.decode):
        begin = perf_counter()
        tokens.append(int(np.argmax(logits)) if workload.mode == "greedy" else workload.prompt[number % n])
        logits = context.step(tokens[-1])
        steps.append(perf_counter() - begin)
    return Repetition(prefill, tuple(steps)), tuple(tokens)
""",
    ),
    _benchmark(
        "best_of_two",
        "each repetition is run twice, and the faster one is told",
        "benchmark.clock",
        """
@instead(truthful, "repeated")
def repeated(was, context, workload):
    return min((was(context, workload) for _ in range(2)), key=lambda found: sum(found[0].steps))
""",
    ),
    _benchmark(
        "clock_of_sixteen_milliseconds",
        "durations are counted in ticks of 15.6 ms",
        "benchmark.samples",
        MEASURED
        + """
    def ticks(seconds):
        return max(1, round(seconds / 0.0156)) * 0.0156
    found = measured()
    return replace(found, repetitions=tuple(
        Repetition(ticks(r.prefill), tuple(map(ticks, r.steps))) for r in found.repetitions
    ))
""",
    ),
    _benchmark(
        "prefill_without_its_wait",
        "prefill is timed until it is handed over; the first step waits for it",
        "benchmark.work",
        MEASURED
        + """
    found = measured()
    return replace(found, repetitions=tuple(
        Repetition(r.prefill / 10, (r.steps[0] + 0.9 * r.prefill, *r.steps[1:])) if r.steps else r
        for r in found.repetitions
    ))
""",
    ),
    _session(
        "prefill_on_all_processors",
        "the number of threads is kept when decoding, and not when reading a prompt",
        "placement.threads",
        """
from edgecore_reference import text

@instead(oracle.OracleContext, "prefill")
def prefill(was, self, tokens):
    text.limit_threads(2 if len(tokens) > 32 else 1)
    try:
        return was(self, tokens)
    finally:
        text.limit_threads(1)
""",
    ),
    _session(
        "spins_while_it_waits",
        "an open session keeps a thread that spins, whether there is work or not",
        "placement.threads",
        """
import hashlib, threading

@instead(OracleSession, "__init__")
def init(was, self, model, **how):
    was(self, model, **how)
    def spin():
        while self._model is not None:
            hashlib.sha256(bytes(1 << 20)).digest()
    threading.Thread(target=spin, daemon=True).start()
""",
    ),
    _session(
        "cache_in_the_artifact",
        "an opened artifact gets a cache beside its files",
        "robustness.rounds",
        """
@hookimpl
def edgecore_run(artifact, device, context_length, threads, options):
    (artifact.path / "compiled.bin").write_bytes(bytes(64))
    return truthful.edgecore_run(artifact, device, context_length, threads, options)
""",
        makes=True,
    ),
    _session(
        "nothing_opens_after_a_failure",
        "after an artifact that could not be opened, none can",
        "robustness.misuse",
        """
failed = []

@hookimpl
def edgecore_run(artifact, device, context_length, threads, options):
    if failed:
        raise CorruptModel("the runtime is in a bad state")
    try:
        return truthful.edgecore_run(artifact, device, context_length, threads, options)
    except CorruptModel:
        failed.append(True)
        raise
""",
    ),
    _session(
        "helpers_stay",
        "every session starts a helper process, and closing leaves it running",
        "robustness.rounds",
        """
import subprocess

@instead(OracleSession, "__init__")
def init(was, self, model, **how):
    was(self, model, **how)
    subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL)
""",
    ),
    _session(
        "opening_is_told_to_its_makers",
        "opening a model sends a message to the runtime's makers",
        "robustness.host",
        """
import socket

@instead(OracleSession, "__init__")
def init(was, self, model, **how):
    was(self, model, **how)
    try:
        socket.create_connection(("127.0.0.1", 9), timeout=0.2).close()
    except OSError:
        pass
""",
    ),
    _session(
        "changes_its_process",
        "opening moves the working directory, sets variables and numpy's errors for the whole process",
        "robustness.host",
        """
import os, tempfile

@instead(OracleSession, "__init__")
def init(was, self, model, **how):
    was(self, model, **how)
    os.chdir(tempfile.gettempdir())
    os.environ["LC_ALL"] = "C"
    np.seterr(all="ignore")
""",
    ),
    _session(
        "logits_in_one_buffer",
        "logits lie in the session's buffer, and the next call writes over them",
        "robustness.host",
        """
@instead(oracle.OracleContext, "prefill")
def prefill(was, self, tokens):
    logits = was(self, tokens)
    buffer = self.__dict__.setdefault("buffer", np.empty_like(logits))
    buffer[:] = logits
    return buffer
""",
    ),
    _session(
        "failed_opens_keep_memory",
        "what an open that fails has read stays in memory",
        "robustness.rounds",
        """
held = []

@hookimpl
def edgecore_run(artifact, device, context_length, threads, options):
    try:
        return truthful.edgecore_run(artifact, device, context_length, threads, options)
    except Exception:
        held.append(np.ones(2_000_000))
        raise
""",
    ),
    Mutant(
        "version_of_long_ago",
        "the probe names a version of the runtime that was written down once",
        ("manifest.probe_effects",),
        """
@hookimpl
def edgecore_probe():
    found = truthful.edgecore_probe()
    return replace(found, versions={**found.versions, "numpy": "1.0.0"})
""",
    ),
)
