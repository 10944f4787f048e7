"""Is the plugin as fast as onnxruntime_genai on the same folder?

    python benchmarks/onnxruntime_text.py FOLDER [FOLDER ...] [--rounds 10] [--prompt 128] [--decode 64]

Each FOLDER is a text folder: what `edgecore convert --to onnxruntime` or onnxruntime_genai's model builder made. One
round is a visit to each arm in ABBA order, each in a fresh process: GenAI as its own benchmark drives it (one
`append_tokens` for the prompt, then `generate_next_token`, greedy), our session greedy and bare, and GenAI again as
noise floor. All with as many threads; prompts are random token ids, new ones at every call. A ratio is taken within a
round. A goal is met when the median reaches it, or when its interval holds it and the noise is above 3 %.

`--set NAME=VALUE` gives our session another option of `run`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter

from edgecore import registry
from edgecore.contract import Artifact, EdgecoreError, PayloadFile, Workload
from edgecore.contract.options import resolve
from edgecore.contract.resources import usable_threads
from edgecore.measure.statistics import Interval, abba, median_interval
from edgecore.workers import connect

GOAL = 0.97
NOISY = 0.03
Figures = dict[str, float]
"""Of one visit: `prefill` and `decode` in tokens a second."""


def genai(folder: Path, given: argparse.Namespace) -> Figures:
    """One visit to onnxruntime_genai, in this process."""
    import numpy as np
    import onnxruntime_genai as og

    config = og.Config(str(folder))
    session = {"intra_op_num_threads": given.threads}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    model = og.Model(config)
    prefill, decode = [], []
    for _ in range(1 + given.repetitions):
        most = given.prompt + given.decode + 1
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=most, min_length=most, do_sample=False)
        generator = og.Generator(model, params)
        prompt = np.array([random.randrange(1000, 10000) for _ in range(given.prompt)], np.int32)
        start = perf_counter()
        generator.append_tokens(prompt)
        prefill.append(given.prompt / (perf_counter() - start))
        generator.generate_next_token()  # takes one of the prompt's logits, and computes nothing
        start = perf_counter()
        for _ in range(given.decode):
            generator.generate_next_token()
        decode.append(given.decode / (perf_counter() - start))
    return {"prefill": statistics.median(prefill[1:]), "decode": statistics.median(decode[1:])}


def ours(folder: Path, mode: str, given: argparse.Namespace) -> Figures:
    """One visit to our session, in a worker."""
    artifact = Artifact(folder, "onnxruntime", "text", "onnx-genai", "", (PayloadFile("model.onnx", "model"),))
    workload = Workload(
        prompt=tuple(random.randrange(1000, 10000) for _ in range(given.prompt)),
        decode=given.decode,
        repetitions=given.repetitions,
        mode=mode,
        threads=given.threads,
    )
    with connect(registry.find("onnxruntime")) as backend:
        declared = backend.entry.ready_manifest.options_of("run")
        options = resolve(declared, dict(word.split("=", 1) for word in given.set), "run", "onnxruntime")
        samples = backend.benchmark(artifact=artifact, device="cpu", workload=workload, options=options)
    prefill = statistics.median(r.prefill for r in samples.repetitions)
    decode = statistics.median(sum(r.steps) for r in samples.repetitions)
    return {"prefill": given.prompt / prefill, "decode": given.decode / decode}


def fresh(folder: Path, given: argparse.Namespace) -> Figures:
    """`genai` in a process of its own."""
    names = ("prompt", "decode", "repetitions", "threads")
    command = [sys.executable, __file__, str(folder), "--visit"]
    command += [word for name in names for word in (f"--{name}", str(getattr(given, name)))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: Figures = json.loads(done.stdout.splitlines()[-1])
    return found


def speed(folder: Path, given: argparse.Namespace) -> bool:
    """Prints the rows of one folder; whether the goals are met."""
    arms = {
        "genai": lambda: fresh(folder, given),
        "greedy": lambda: ours(folder, "greedy", given),
        "bare": lambda: ours(folder, "bare", given),
        "genai again": lambda: fresh(folder, given),
    }
    rounds = []
    for number, order in enumerate(abba(list(arms), given.rounds)):
        print(f"\r{folder.name}: round {number + 1} of {given.rounds} ", end="", file=sys.stderr, flush=True)
        rounds.append({name: arms[name]() for name in order})
    good = True
    print(f"\r{folder}")
    for what, mode in (("prefill", "greedy"), ("decode", "greedy"), ("decode", "bare")):
        values = {name: [r[name][what] for r in rounds] for name in arms}
        ratio = median_interval([b / a for a, b in zip(values["genai"], values[mode], strict=True)])
        floor = median_interval([b / a for a, b in zip(values["genai"], values["genai again"], strict=True)])
        met = ratio.median >= GOAL or (ratio.holds(GOAL) and noise(floor) > NOISY)
        good &= met
        print(
            f"  {what + ' ' + mode:15} GenAI {statistics.median(values['genai']):7.1f}"
            f"  edgecore {statistics.median(values[mode]):7.1f}  ratio {ratio.median:5.3f} [{span(ratio)}]"
            f"  A/A [{span(floor)}]  goal {GOAL}: {'met' if met else 'MISSED'}",
            flush=True,
        )
    return good


def noise(floor: Interval) -> float:
    """By how much GenAI may differ from itself."""
    return max(abs(floor.low - 1), abs(floor.high - 1))


def span(interval: Interval) -> str:
    return f"{interval.low:.3f} - {interval.high:.3f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=3, help="within one visit; its median counts")
    parser.add_argument("--threads", type=int, default=usable_threads(), help="default: what affinity and quota allow")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="an option of run")
    parser.add_argument("--visit", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    folders = [folder.resolve() for folder in given.folders]
    if given.visit:
        print(json.dumps(genai(folders[0], given)))
        return 0
    print(f"{given.threads} threads, prompt {given.prompt}, decode {given.decode}, {given.rounds} rounds", flush=True)
    results = [speed(folder, given) for folder in folders]
    return 0 if all(results) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgecoreError as error:
        sys.exit(f"error: {error}")
