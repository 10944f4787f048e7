"""The reference with a benchmark of its own: a truthful native loop, for mutants that are not."""

from time import perf_counter

import numpy as np

from edgecore.contract import BadRequest, Repetition, Samples, hookimpl
from edgecore.contract.generation import check_room
from edgecore_reference import hooks as reference
from edgecore_reference.hooks import edgecore_convert, edgecore_probe, edgecore_run, edgecore_weights

__all__ = ["edgecore_benchmark", "edgecore_convert", "edgecore_probe", "edgecore_run", "edgecore_weights", "repeated"]


@hookimpl
def edgecore_benchmark(artifact, device, workload, options, progress):
    if workload.repetitions < 1 or workload.warmup < 0 or workload.decode < 0:
        raise BadRequest("a workload that asks for nothing", supported="at least 1 repetition, 0 warm-ups, 0 tokens")
    if workload.mode not in ("bare", "greedy"):
        raise BadRequest(f"workload mode {workload.mode!r}", supported="bare, greedy")
    begin = perf_counter()
    opened = reference.edgecore_run(artifact, device, workload.context_length, workload.threads, options)
    load = perf_counter() - begin
    with opened as session:
        if artifact.task == "tensor":
            from edgecore.measure.loop import run_workload

            return run_workload(session, workload, load, progress)
        check_room(len(workload.prompt), workload.decode, session.context_length)
        counted = []
        tokens = ()
        for number in range(workload.warmup + workload.repetitions):
            repetition, tokens = repeated(session.context(), workload)
            progress(number + 1, workload.warmup + workload.repetitions, "measuring")
            if number >= workload.warmup:
                counted.append(repetition)
        conditions = {**session.conditions, "placement": "cpu"}
        return Samples(tuple(counted), load, True, tokens, conditions)


def repeated(context, workload):
    """One repetition, and the tokens that it decoded."""
    context.reset()
    begin = perf_counter()
    logits = context.prefill(workload.prompt)
    prefill = perf_counter() - begin
    steps, tokens = [], []
    for number in range(workload.decode):
        begin = perf_counter()
        greedy = workload.mode == "greedy"
        token = int(np.argmax(logits)) if greedy else workload.prompt[number % len(workload.prompt)]
        logits = context.step(token)
        steps.append(perf_counter() - begin)
        tokens.append(token)
    return Repetition(prefill, tuple(steps)), tuple(tokens)
