"""Is the plugin as fast as llama.cpp's own llama-bench?

    python benchmarks/llamacpp_speed.py [--pairs 10] [--precisions q4_0,q8_0] [--build-dir DIR] [--sdist FILE]

llama-bench comes from the runtime's own source package, built with the flags of its wheel. Same file, same threads,
same prompt length, same depth. One round is llama-bench, our bare decoding in a worker, our greedy generation, and
llama-bench again, in ABBA order; a ratio is taken within a round, because what slows a round down slows all of it. The
second llama-bench against the first is the noise floor. A goal is met when the median reaches it, or when its interval
holds it and the noise is above 3 %.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llamacpp_tools import arguments, entry, made, tool

from edgecore.contract import Artifact, EdgecoreError, Workload
from edgecore.contract.options import resolve
from edgecore.machine import usable_threads
from edgecore.measure.statistics import Interval, abba, median_interval
from edgecore.workers import Backend, connect

GOALS = {"bare": 0.97, "greedy": 0.95}
NOISY = 0.03


@dataclass(frozen=True)
class Speed:
    """Tokens a second, medians of one visit."""

    prefill: float
    decode: float


@dataclass(frozen=True)
class Shape:
    prompt: int
    decode: int
    repetitions: int
    threads: int


def bench(program: Path, model: Path, shape: Shape) -> Speed:
    """One visit to llama-bench: prefill, and decoding after as many tokens."""

    def run(*test: str) -> float:
        command = [str(program), "-m", str(model), "-t", str(shape.threads), "-r", str(shape.repetitions), "-o", "json"]
        done = subprocess.run([*command, *test], check=True, capture_output=True, text=True)
        (result,) = json.loads(done.stdout)
        return (result["n_prompt"] + result["n_gen"]) / statistics.median(result["samples_ns"]) * 1e9

    prefill = run("-p", str(shape.prompt), "-n", "0")
    return Speed(prefill, run("-p", "0", "-n", str(shape.decode), "-d", str(shape.prompt)))


def ours(backend: Backend, artifact: Artifact, shape: Shape, mode: str) -> Speed:
    """One visit to our native loop."""
    tokens = random.Random(0)
    workload = Workload(
        prompt=tuple(tokens.randrange(1000, 10000) for _ in range(shape.prompt)),
        decode=shape.decode,
        repetitions=shape.repetitions,
        mode=mode,
        threads=shape.threads,
        context_length=shape.prompt + shape.decode,
    )
    options = resolve(backend.entry.ready_manifest.options_of("run"), {}, "run", "llamacpp")
    samples = backend.benchmark(artifact=artifact, device="cpu", workload=workload, options=options)
    prefill = statistics.median(r.prefill for r in samples.repetitions)
    decode = statistics.median(sum(r.steps) for r in samples.repetitions)
    return Speed(shape.prompt / prefill, shape.decode / decode)


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--precisions", default="q4_0,q4_k_m,q8_0,f16")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=3, help="within one visit; its median counts")
    given = parser.parse_args()
    shape = Shape(given.prompt, given.decode, given.repetitions, given.threads or usable_threads())
    program = tool("llama-bench", given.build_dir, given.sdist)
    precisions = given.precisions.split(",")
    good = True
    print(f"{given.model}, {shape.threads} threads, prompt {shape.prompt}, decode {shape.decode}, {given.pairs} rounds")
    print(f"{'':8} {'':14} {'llama-bench':>11} {'edgecore':>9} {'ratio':>6}  {'95 % interval':14} {'A/A':14}")
    with connect(entry()) as backend, made(backend, given.model, precisions) as artifacts:
        for precision in precisions:
            model = artifacts[precision]
            arms: dict[str, Callable[[], Speed]] = {
                "A": lambda m=model: bench(program, m.model, shape),
                "bare": lambda m=model: ours(backend, m, shape, "bare"),
                "greedy": lambda m=model: ours(backend, m, shape, "greedy"),
                "A2": lambda m=model: bench(program, m.model, shape),
            }
            rounds = []
            for number, order in enumerate(abba(list(arms), given.pairs)):
                print(f"\r{precision}: round {number + 1} of {given.pairs} ", end="", file=sys.stderr, flush=True)
                rounds.append({name: arms[name]() for name in order})
            print("\r" + " " * 40 + "\r", end="", file=sys.stderr, flush=True)
            good &= report(precision, rounds)
    return 0 if good else 1


def report(precision: str, rounds: list[dict[str, Speed]]) -> bool:
    """Prints the rows of one precision; whether the goals are met."""
    good = True
    for mode, what in (("bare", "prefill"), ("bare", "decode"), ("greedy", "decode")):
        values = {name: [getattr(r[name], what) for r in rounds] for name in ("A", "A2", mode)}
        ratio = median_interval([b / a for a, b in zip(values["A"], values[mode], strict=True)])
        floor = median_interval([b / a for a, b in zip(values["A"], values["A2"], strict=True)])
        met = ratio.median >= GOALS[mode] or (ratio.holds(GOALS[mode]) and noise(floor) > NOISY)
        good &= met
        print(
            f"{precision:8} {what + ' ' + mode:14} {statistics.median(values['A']):11.1f}"
            f" {statistics.median(values[mode]):9.1f} {ratio.median:6.3f}  {span(ratio):14} {span(floor):14}"
            f" goal {GOALS[mode]}: {'met' if met else 'MISSED'}",
            flush=True,
        )
    return good


def noise(floor: Interval) -> float:
    """By how much llama-bench may differ from itself."""
    return max(abs(floor.low - 1), abs(floor.high - 1))


def span(interval: Interval) -> str:
    return f"{interval.low:.3f} - {interval.high:.3f}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgecoreError as error:
        sys.exit(f"error: {error}")
