"""Is the plugin as fast as mlx_lm on the same folder?

    python benchmarks/mlx_text.py FOLDER [FOLDER ...] [--rounds 10] [--prompt 128] [--decode 64] [--device cpu]

Each FOLDER is a text folder: what `edgecore convert --to mlx` or `mlx_lm.convert` made. One round is a visit to each
arm in ABBA order, each in a fresh process: `mlx_lm.benchmark` as it is, our benchmark greedy and bare, and
`mlx_lm.benchmark` again as noise floor. mlx_lm has one thread on a CPU, so ours has; prompts are random token
ids. mlx_lm's tokens a second count one token more than it waited for, which is taken off. A ratio is taken within a
round. A goal is met when the median reaches it, or when its interval holds it and the noise is above 3 %.

`--set NAME=VALUE` gives our benchmark another option of `run`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import re
import statistics
import subprocess
import sys
from pathlib import Path

from edgecore import registry
from edgecore.contract import Artifact, EdgecoreError, Workload
from edgecore.contract.options import resolve
from edgecore.measure.statistics import Interval, abba, median_interval
from edgecore.workers import connect

GOAL = 0.97
NOISY = 0.03
_TRIAL = re.compile(r"Trial \d+:\s+prompt_tps=([\d.]+), generation_tps=([\d.]+), peak_memory=([\d.]+)")
Figures = dict[str, float]
"""Of one visit: `prefill` and `decode` in tokens a second, `peak` in MB by MLX's counter."""


def mlx_lm(folder: Path, given: argparse.Namespace) -> Figures:
    """One visit to `mlx_lm.benchmark`, in this process."""
    import mlx.core as mx

    mx.set_default_device(mx.cpu if given.device == "cpu" else mx.gpu)  # mlx_lm takes it as it is imported
    from mlx_lm import benchmark

    sys.argv = ["mlx_lm.benchmark", "--model", str(folder), "-p", str(given.prompt)]
    sys.argv += ["-g", str(given.decode), "-n", str(given.repetitions)]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        benchmark.main()
    trials = [tuple(map(float, trial)) for trial in _TRIAL.findall(said.getvalue())]
    prefill, decode, peak = (statistics.median(column) for column in zip(*trials, strict=True))
    return {"prefill": prefill, "decode": decode * (given.decode - 1) / given.decode, "peak": peak * 1000}


def ours(folder: Path, mode: str, given: argparse.Namespace) -> Figures:
    """One visit to our benchmark, in a worker."""
    artifact = Artifact(folder, "mlx", "text", "mlx", "", ())
    workload = Workload(
        prompt=tuple(random.randrange(1000, 10000) for _ in range(given.prompt)),
        decode=given.decode,
        repetitions=given.repetitions,
        mode=mode,
        threads=given.threads,
    )
    with connect(registry.find("mlx")) as backend:
        declared = backend.entry.ready_manifest.options_of("run")
        options = resolve(declared, dict(word.split("=", 1) for word in given.set), "run", "mlx")
        samples = backend.benchmark(artifact=artifact, device=given.device, workload=workload, options=options)
    prefill = statistics.median(r.prefill for r in samples.repetitions)
    decode = statistics.median(sum(r.steps) for r in samples.repetitions)
    peak = samples.counters["mlx_peak_memory"] / 1e6
    return {"prefill": given.prompt / prefill, "decode": given.decode / decode, "peak": peak}


def fresh(folder: Path, given: argparse.Namespace) -> Figures:
    """`mlx_lm` in a process of its own."""
    names = ("prompt", "decode", "repetitions", "device")
    command = [sys.executable, __file__, str(folder), "--visit"]
    command += [word for name in names for word in (f"--{name}", str(getattr(given, name)))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: Figures = json.loads(done.stdout.splitlines()[-1])
    return found


def speed(folder: Path, given: argparse.Namespace) -> bool:
    """Prints the rows of one folder; whether the goals are met."""
    arms = {
        "mlx_lm": lambda: fresh(folder, given),
        "greedy": lambda: ours(folder, "greedy", given),
        "bare": lambda: ours(folder, "bare", given),
        "mlx_lm again": lambda: fresh(folder, given),
    }
    rounds = []
    for number, order in enumerate(abba(list(arms), given.rounds)):
        print(f"\r{folder.name}: round {number + 1} of {given.rounds} ", end="", file=sys.stderr, flush=True)
        rounds.append({name: arms[name]() for name in order})
    good = True
    peaks = {name: statistics.median(r[name]["peak"] for r in rounds) for name in ("mlx_lm", "greedy")}
    print(f"\r{folder}, MLX's peak: mlx_lm {peaks['mlx_lm']:.0f} MB, edgecore {peaks['greedy']:.0f} MB")
    for what, mode in (("prefill", "greedy"), ("decode", "greedy"), ("decode", "bare")):
        values = {name: [r[name][what] for r in rounds] for name in arms}
        ratio = median_interval([b / a for a, b in zip(values["mlx_lm"], values[mode], strict=True)])
        floor = median_interval([b / a for a, b in zip(values["mlx_lm"], values["mlx_lm again"], strict=True)])
        met = ratio.median >= GOAL or (ratio.holds(GOAL) and noise(floor) > NOISY)
        good &= met
        print(
            f"  {what + ' ' + mode:15} mlx_lm {statistics.median(values['mlx_lm']):7.1f}"
            f"  edgecore {statistics.median(values[mode]):7.1f}  ratio {ratio.median:5.3f} [{span(ratio)}]"
            f"  A/A [{span(floor)}]  goal {GOAL}: {'met' if met else 'MISSED'}",
            flush=True,
        )
    return good


def noise(floor: Interval) -> float:
    """By how much mlx_lm may differ from itself."""
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
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="ours; mlx_lm has one")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="an option of run")
    parser.add_argument("--visit", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    folders = [folder.resolve() for folder in given.folders]
    if given.visit:
        print(json.dumps(mlx_lm(folders[0], given)))
        return 0
    print(f"{given.device}, prompt {given.prompt}, decode {given.decode}, {given.rounds} rounds", flush=True)
    results = [speed(folder, given) for folder in folders]
    return 0 if all(results) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgecoreError as error:
        sys.exit(f"error: {error}")
