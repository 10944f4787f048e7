"""Faults of a native benchmark, planted in the truthful timer. Each would make a backend look faster than it is."""

from __future__ import annotations

from mutants.mutant import Mutant


def _benchmark(name: str, fault: str, checks: str, hooks: str) -> Mutant:
    return Mutant(name, fault, tuple(checks.split()), hooks, base="timer")


WHOLE = """
@hookimpl
def edgecore_benchmark(artifact, device, workload, options, progress):
    def measured(workload, options=options):
        return truthful.edgecore_benchmark(artifact, device, workload, options, progress)
"""

MUTANTS = (
    _benchmark(
        "reports_from_a_table",
        "nothing is run: the figures stand in a table",
        "benchmark.clock benchmark.work benchmark.suspension",
        """
@hookimpl
def edgecore_benchmark(artifact, device, workload, options, progress):
    progress(1, 1, "measuring")
    given = workload.prompt
    repetition = Repetition(0.001 * len(given), (0.001,) * workload.decode)
    tokens = tuple(given[i % len(given)] for i in range(workload.decode))
    conditions = {"device": "cpu", "threads": "1", "context": "512", "compute": "float32", "kv_cache": "float32"}
    return Samples((repetition,) * workload.repetitions, 0.1, True, tokens, conditions)
""",
    ),
    _benchmark(
        "table_with_noise",
        "nothing is run: the figures of a table are scattered a little, and slept for",
        "benchmark.work",
        """
import time

@hookimpl
def edgecore_benchmark(artifact, device, workload, options, progress):
    chance = np.random.default_rng(0)
    given = workload.prompt
    counted = []
    for number in range(workload.warmup + workload.repetitions):
        prefill = 0.0005 * len(given) * chance.uniform(0.9, 1.1)
        steps = tuple(0.002 * chance.uniform(0.9, 1.1, workload.decode))
        time.sleep(prefill + sum(steps))
        if number >= workload.warmup:
            counted.append(Repetition(prefill, steps))
    progress(1, 1, "measuring")
    tokens = tuple(given[i % len(given)] for i in range(workload.decode))
    conditions = {"device": "cpu", "threads": "1", "context": "512", "compute": "float32", "kv_cache": "float32"}
    return Samples(tuple(counted), 0.1, True, tokens, conditions)
""",
    ),
    _benchmark(
        "last_layer_skipped",
        "the benchmark runs a model without its last layer",
        "benchmark.tokens",
        """
from edgecore.checkpoint import oracle

skipping = [False]

@instead(oracle.Oracle, "_mlp")
def mlp(was, self, block, at, x):
    last = at == f"model.layers.{self.decoder.layers - 1}."
    return np.zeros_like(x) if skipping[0] and last else was(self, block, at, x)

@instead(oracle.Oracle, "_attention")
def attention(was, self, block, at, layer, x, cache, start, turns):
    if skipping[0] and layer == self.decoder.layers - 1:
        return np.zeros_like(x)
    return was(self, block, at, layer, x, cache, start, turns)
"""
        + WHOLE
        + """
    skipping[0] = True
    try:
        return measured(workload)
    finally:
        skipping[0] = False
""",
    ),
    _benchmark(
        "warmup_counted",
        "repetitions of the warm-up are among those that count",
        "benchmark.samples",
        WHOLE
        + """
    return measured(replace(workload, repetitions=workload.repetitions + workload.warmup, warmup=0))
""",
    ),
    _benchmark(
        "warmup_left_out",
        "there is no warm-up: the first repetition that counts is cold",
        "benchmark.warmup",
        WHOLE
        + """
    return measured(replace(workload, warmup=0))
""",
    ),
    _benchmark(
        "slowest_left_out",
        "the slowest repetition is left out",
        "benchmark.samples",
        WHOLE
        + """
    samples = measured(workload)
    ordered = sorted(samples.repetitions, key=lambda r: r.prefill + sum(r.steps))
    return replace(samples, repetitions=tuple(ordered[:-1]))
""",
    ),
    _benchmark(
        "one_repetition_repeated",
        "one repetition is run, and stands for all",
        "benchmark.samples",
        WHOLE
        + """
    samples = measured(replace(workload, repetitions=1))
    return replace(samples, repetitions=samples.repetitions * workload.repetitions)
""",
    ),
    _benchmark(
        "steps_averaged",
        "every step is the mean of all: no raw samples",
        "benchmark.samples",
        WHOLE
        + """
    samples = measured(workload)
    even = tuple(
        replace(r, steps=(sum(r.steps) / max(1, len(r.steps)),) * len(r.steps)) for r in samples.repetitions
    )
    return replace(samples, repetitions=even)
""",
    ),
    _benchmark(
        "half_the_time",
        "durations are half of what they were",
        "benchmark.clock",
        WHOLE
        + """
    samples = measured(workload)
    halved = tuple(Repetition(r.prefill / 2, tuple(s / 2 for s in r.steps)) for r in samples.repetitions)
    return replace(samples, repetitions=halved)
""",
    ),
    _benchmark(
        "fewer_tokens",
        "half of the tokens are made, and each duration stands twice",
        "benchmark.tokens",
        WHOLE
        + """
    samples = measured(replace(workload, decode=(workload.decode + 1) // 2))
    doubled = tuple(replace(r, steps=(r.steps * 2)[: workload.decode]) for r in samples.repetitions)
    return replace(samples, repetitions=doubled, tokens=(samples.tokens * 2)[: workload.decode])
""",
    ),
    _benchmark(
        "fewer_steps",
        "half of the tokens are made",
        "benchmark.samples",
        WHOLE
        + """
    return measured(replace(workload, decode=(workload.decode + 1) // 2))
""",
    ),
    _benchmark(
        "half_the_prompt",
        "half of the prompt is computed",
        "benchmark.tokens",
        WHOLE
        + """
    return measured(replace(workload, prompt=workload.prompt[: (len(workload.prompt) + 1) // 2]))
""",
    ),
    _benchmark(
        "greedy_is_bare",
        "asked for greedy decoding, the benchmark steps through given tokens and chooses none",
        "benchmark.tokens",
        WHOLE
        + """
    return measured(replace(workload, mode="bare"))
""",
    ),
    _benchmark(
        "benchmarks_fewer_threads_than_it_says",
        "the benchmark ignores the number of threads that it was asked for, and repeats it in its conditions",
        "benchmark.work",
        WHOLE
        + """
    samples = measured(replace(workload, threads=None if workload.threads == 1 else 1))
    return replace(samples, conditions={**samples.conditions, "threads": str(workload.threads or 1)})
""",
    ),
    _benchmark(
        "conditions_left_out",
        "nothing is said of threads, context and precision",
        "benchmark.conditions",
        WHOLE
        + """
    return replace(measured(workload), conditions={})
""",
    ),
    _benchmark(
        "clock_of_the_processor",
        "durations are CPU time of the calling thread: waiting does not count",
        "benchmark.suspension",
        """
import time

truthful.perf_counter = time.thread_time
""",
    ),
    _benchmark(
        "asked_for_less",
        "never more than 16 tokens are decoded, nor 64 read: durations beyond are repeated with noise",
        "benchmark.scaling",
        WHOLE
        + """
    small = replace(workload, prompt=workload.prompt[:64], decode=min(workload.decode, 16))
    samples = measured(small)
    chance = np.random.default_rng()
    def longer(r):
        noise = 16 / workload.decode * chance.uniform(0.99, 1.01, workload.decode)
        return replace(r, steps=tuple(float(r.steps[i % len(r.steps)] * n) for i, n in enumerate(noise)))
    if workload.decode > 16:
        samples = replace(samples, repetitions=tuple(map(longer, samples.repetitions)))
    return samples
""",
    ),
    _benchmark(
        "measures_what_fits",
        "a workload that does not fit into the context is measured as far as it does",
        "benchmark.refusals",
        WHOLE
        + """
    room = workload.context_length or 512
    return measured(replace(workload, prompt=workload.prompt[: max(1, room - workload.decode)]))
""",
    ),
    _benchmark(
        "one_call_of_a_tensor_model",
        "a tensor model is called once, and the duration stands for all calls",
        "benchmark.tensor",
        WHOLE
        + """
    if artifact.task != "tensor":
        return measured(workload)
    samples = measured(replace(workload, decode=1))
    return replace(samples, repetitions=tuple(Repetition(0.0, r.steps * workload.decode) for r in samples.repetitions))
""",
    ),
)
