"""Is the plugin as fast as openvino_genai on the same IR?

    python benchmarks/openvino_speed.py FOLDER [FOLDER ...] [--rounds 10] [--prompt 128] [--decode 64] [--load]

Each FOLDER is a text folder (what `edgecore convert --to openvino` or optimum-cli made). One round is a visit to each
arm in ABBA order, each in a fresh process: openvino_genai's LLMPipeline with either attention backend (SDPA, and PA,
its default), our session greedy and bare, and GenAI's again as noise floor. GenAI's figures are its own
`perf_metrics`: time to first token and time per output token. Prompts are random token ids, new ones at every call,
because PA keeps prefixes. A ratio is taken within a round. A goal is met when the median reaches it, or when its
interval holds it and the noise is above 3 %.

`--load` measures how long it takes from nothing to the first token instead, with a compile cache and without. Of an
attention in pages, GenAI's PA or ours, OpenVINO 2026.4 finds no compiled model again; of a stateful one it does.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from edgecore import registry
from edgecore.contract import Artifact, EdgecoreError, PayloadFile, Value, Workload
from edgecore.contract.options import resolve
from edgecore.contract.resources import usable_threads
from edgecore.measure.statistics import Interval, abba, median_interval
from edgecore.workers import connect

GOAL = 0.97
NOISY = 0.03
Figures = dict[str, float]
"""Of one visit: `prefill` and `decode` in tokens a second, or `load` in seconds."""


def genai(folder: Path, backend: str, cache: str, given: argparse.Namespace) -> Figures:
    """One visit to openvino_genai, in this process."""
    import numpy as np
    import openvino as ov
    import openvino_genai

    def prompt() -> Any:
        return ov.Tensor(np.array([[random.randrange(1000, 10000) for _ in range(given.prompt)]], np.int64))

    properties = {"INFERENCE_NUM_THREADS": given.threads, "ATTENTION_BACKEND": backend}
    start = perf_counter()
    pipe = openvino_genai.LLMPipeline(folder, "CPU", **properties, **({"CACHE_DIR": cache} if cache else {}))
    pipe.generate(prompt(), max_new_tokens=1, ignore_eos=True)
    load = perf_counter() - start
    if given.load:
        return {"load": load}
    prefill, decode = [], []
    for _ in range(1 + given.repetitions):
        found = pipe.generate(prompt(), max_new_tokens=given.decode + 1, ignore_eos=True, do_sample=False).perf_metrics
        prefill.append(1e3 * given.prompt / found.get_ttft().mean)
        decode.append(1e3 / found.get_tpot().mean)
    return {"prefill": statistics.median(prefill[1:]), "decode": statistics.median(decode[1:])}


def ours(folder: Path, mode: str, given: argparse.Namespace, **changed: Value) -> Figures:
    """One visit to our session, in a worker; `changed` are options of `run`."""
    files = (PayloadFile("openvino_model.xml", "model"),)
    artifact = Artifact(folder, "openvino", "text", "openvino-genai", "", files)
    workload = Workload(
        prompt=tuple(random.randrange(1000, 10000) for _ in range(given.prompt)),
        decode=0 if given.load else given.decode,
        repetitions=1 if given.load else given.repetitions,
        warmup=0 if given.load else 1,
        mode=mode,
        threads=given.threads,
    )
    with connect(entry()) as backend:
        declared = backend.entry.ready_manifest.options_of("run")
        options = resolve(declared, changed, "run", "openvino")
        samples = backend.benchmark(artifact=artifact, device="cpu", workload=workload, options=options)
    prefill = statistics.median(r.prefill for r in samples.repetitions)
    if given.load:
        return {"load": samples.load + prefill}
    decode = statistics.median(sum(r.steps) for r in samples.repetitions)
    return {"prefill": given.prompt / prefill, "decode": given.decode / decode}


def fresh(folder: Path, backend: str, cache: str, given: argparse.Namespace) -> Figures:
    """`genai` in a process of its own."""
    names = ("prompt", "decode", "repetitions", "threads")
    command = [sys.executable, __file__, str(folder), "--visit", backend, "--cache", cache]
    command += [word for name in names for word in (f"--{name}", str(getattr(given, name)))]
    done = subprocess.run(command + ["--load"] * given.load, check=True, stdout=subprocess.PIPE, text=True)
    found: Figures = json.loads(done.stdout.splitlines()[-1])
    return found


def speed(folder: Path, given: argparse.Namespace) -> bool:
    """Prints the rows of one folder; whether the goals are met."""
    arms = {
        "SDPA": lambda: fresh(folder, "SDPA", "", given),
        "PA": lambda: fresh(folder, "PA", "", given),
        "greedy": lambda: ours(folder, "greedy", given),
        "bare": lambda: ours(folder, "bare", given),
        "SDPA again": lambda: fresh(folder, "SDPA", "", given),
        "PA again": lambda: fresh(folder, "PA", "", given),
    }
    rounds = []
    for number, order in enumerate(abba(list(arms), given.rounds)):
        print(f"\r{folder.name}: round {number + 1} of {given.rounds} ", end="", file=sys.stderr, flush=True)
        rounds.append({name: arms[name]() for name in order})
    good = True
    print(f"\r{folder}")
    for what, mode in (("prefill", "greedy"), ("decode", "greedy"), ("decode", "bare")):
        values = {name: [r[name][what] for r in rounds] for name in arms}
        for rival in ("SDPA", "PA"):
            ratio = median_interval([b / a for a, b in zip(values[rival], values[mode], strict=True)])
            floor = median_interval([b / a for a, b in zip(values[rival], values[f"{rival} again"], strict=True)])
            met = ratio.median >= GOAL or (ratio.holds(GOAL) and noise(floor) > NOISY)
            good &= met
            print(
                f"  {what + ' ' + mode:15} GenAI {rival:4} {statistics.median(values[rival]):7.1f}"
                f"  edgecore {statistics.median(values[mode]):7.1f}  ratio {ratio.median:5.3f} [{span(ratio)}]"
                f"  A/A [{span(floor)}]  goal {GOAL}: {'met' if met else 'MISSED'}",
                flush=True,
            )
    return good


def load(folder: Path, given: argparse.Namespace) -> None:
    """Prints how long the first token takes from nothing, in seconds."""
    with tempfile.TemporaryDirectory(prefix="openvino-speed-") as name:
        os.environ["EDGECORE_HOME"] = str(Path(name) / "home")
        stateful = {"attention_backend": "stateful"}
        caches = {backend: str(Path(name) / backend) for backend in ("SDPA", "PA")}
        arms = {
            "GenAI SDPA": lambda: fresh(folder, "SDPA", "", given),
            "GenAI SDPA, cache": lambda: fresh(folder, "SDPA", caches["SDPA"], given),
            "GenAI PA": lambda: fresh(folder, "PA", "", given),
            "GenAI PA, cache": lambda: fresh(folder, "PA", caches["PA"], given),
            "edgecore paged": lambda: ours(folder, "bare", given),
            "edgecore stateful": lambda: ours(folder, "bare", given, compile_cache=False, **stateful),
            "stateful, cache": lambda: ours(folder, "bare", given, **stateful),
        }
        for arm in arms.values():  # fills the caches
            arm()
        rounds = [{name: arms[name]() for name in order} for order in abba(list(arms), given.rounds)]
        print(folder)
        for name in arms:
            found = median_interval([r[name]["load"] for r in rounds])
            print(f"  {name:18} first token after {found.median:5.2f} s [{span(found)}]")
        for what, folders in (("GenAI", caches.values()), ("edgecore", [os.environ["EDGECORE_HOME"]])):
            size = sum(f.stat().st_size for place in folders for f in Path(place).rglob("*.*") if f.is_file())
            print(f"  {what}'s cache holds {size / 1e6:.1f} MB")


def entry() -> registry.Entry:
    """The installed plugin."""
    return registry.find("openvino")


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
    parser.add_argument("--load", action="store_true", help="time to the first token, in place of speed")
    parser.add_argument("--visit", choices=("SDPA", "PA"), help=argparse.SUPPRESS)
    parser.add_argument("--cache", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    folders = [folder.resolve() for folder in given.folders]
    if given.visit:
        print(json.dumps(genai(folders[0], given.visit, given.cache, given)))
        return 0
    print(f"{given.threads} threads, prompt {given.prompt}, decode {given.decode}, {given.rounds} rounds", flush=True)
    good = True
    for folder in folders:
        if given.load:
            load(folder, given)
        else:
            good &= speed(folder, given)
    return 0 if good else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgecoreError as error:
        sys.exit(f"error: {error}")
