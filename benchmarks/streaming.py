"""What a worker costs its caller: microseconds a streamed piece, a call, a start, and 100 MB there and back.

    python benchmarks/streaming.py [--step-ms 5.7] [--pieces 2000] [--repetitions 9]

The toy model's step costs nothing, so the difference between the two loops is the cost of streaming, all of it; it is
put beside a decode step (5.7 ms: SmolLM2-135M as Q4_K_M on 2 cores). The second part spins for that long in every step
and compares whole generations, interleaved, because on a busy machine the reader takes time from the one who computes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from edgecore import registry
from edgecore.contract.sampling import GREEDY
from edgecore.contract.sessions import TextSession
from edgecore.workers import Backend, connect

from support.plugins import toy_artifact, write_plugin

SPINNING = """
class Spinning(Context):
    def step(self, token):
        until = time.perf_counter() + self.session.step_seconds
        while time.perf_counter() < until:
            pass
        return self.prefill([token])

class SpinningSession(Session):
    def __init__(self, options):
        super().__init__(options)
        self.own, self.eos_ids = Spinning(self), frozenset()

@hookimpl
def edgecore_run(artifact, device, context_length, threads, options):
    return SpinningSession(options) if artifact.task == "text" else Doubler()
"""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    arguments.add_argument("--step-ms", type=float, default=5.7)
    arguments.add_argument("--pieces", type=int, default=2000)
    arguments.add_argument("--repetitions", type=int, default=9)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EDGECORE_HOME"] = folder
        measure(Path(folder), given.step_ms / 1000, given.pieces, given.repetitions)


def measure(folder: Path, step: float, pieces: int, repetitions: int) -> None:
    entry = registry.find(write_plugin(folder / "plugin", hooks=SPINNING))
    starts = []
    for _ in range(repetitions):
        start = perf_counter()
        with connect(entry) as backend:
            backend.probe()
            starts.append(perf_counter() - start)
    show("start of a worker and first call", starts, 1e3, "ms")

    with connect(entry) as worker, connect(entry, isolated=False) as here:
        sessions = {"in process": free(here, folder, 0), "worker": free(worker, folder, 0)}
        times = {name: [per_piece(s, pieces) for _ in range(repetitions)] for name, s in sessions.items()}
        for name, values in times.items():
            show(f"a piece, {name}", values, 1e6, "us")
        cost = statistics.median(times["worker"]) - statistics.median(times["in process"])
        print(f"{'streaming':38} {cost * 1e6:9.1f} us = {cost / step:.2%} of a decode step of {step * 1e3:g} ms")

        spinning = {"in process": free(here, folder, step), "worker": free(worker, folder, step)}
        names = ["in process", "worker", "worker", "in process"] * repetitions
        rounds = [(name, per_piece(spinning[name], 50)) for name in names]
        pairs = [dict(rounds[i : i + 2]) for i in range(0, len(rounds), 2)]
        ratio = statistics.median(pair["worker"] / pair["in process"] for pair in pairs)
        print(f"{'whole generation, worker / in process':38} {ratio:9.4f} (median of {len(pairs)} interleaved pairs)")

        session = sessions["worker"]
        show("a call", [timed(lambda: session.context().position) for _ in range(500)], 1e6, "us")
        tensor = worker.open(toy_artifact(folder / "t", "tensor"), device="cpu")
        array = np.ones(25_000_000, dtype=np.float32)
        tensor({"x": array})  # type: ignore[operator]
        show("100 MB there, doubled, and back", [timed(lambda: tensor({"x": array})) for _ in range(5)], 1e3, "ms")  # type: ignore[operator]


def free(backend: Backend, folder: Path, step: float) -> TextSession:
    session = backend.open(toy_artifact(folder / "a"), device="cpu", options={"step_seconds": step})
    assert isinstance(session, TextSession)
    return session


def per_piece(session: TextSession, pieces: int) -> float:
    """Seconds a piece; the first, which waits for the prefill, does not count."""
    stream = session.generate([1], max_tokens=pieces, sampling=GREEDY)
    next(stream)
    seen, start = 0, perf_counter()
    for _ in stream:
        seen += 1
    return (perf_counter() - start) / seen


def timed(call: object) -> float:
    start = perf_counter()
    call()  # type: ignore[operator]
    return perf_counter() - start


def show(what: str, values: list[float], scale: float, unit: str) -> None:
    ordered = sorted(v * scale for v in values)
    low, high = ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]
    print(f"{what:38} {statistics.median(ordered):9.1f} {unit} (quartiles {low:.1f} .. {high:.1f})")


if __name__ == "__main__":
    main()
