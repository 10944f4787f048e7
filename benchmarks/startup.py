"""What it costs to be asked for help: the registry and the command line over bare Python, with one plugin and fifty.

    python benchmarks/startup.py [--repetitions 15]

Goal: `edgecore --help` and `edgecore backends` at most 80 ms over bare Python. Medians; commands are interleaved.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.plugins import install_plugin

DISCOVER = """
import sys
from time import perf_counter
from edgecore import registry
start = perf_counter()
found = registry.discover()
print(perf_counter() - start, len(found.entries), file=sys.stderr)
"""
COMMANDS = {
    "bare Python": ["-c", "pass"],
    "import of the registry, discover": ["-c", DISCOVER],
    "edgecore --help": ["-m", "edgecore.cli", "--help"],
    "edgecore backends": ["-m", "edgecore.cli", "backends"],
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--repetitions", type=int, default=15)
    repetitions = arguments.parse_args().repetitions
    for plugins in (1, 50):
        with tempfile.TemporaryDirectory() as folder:
            for number in range(plugins):
                install_plugin(Path(folder) / "site", f"toy{number}")
            measure(Path(folder), plugins, repetitions)


def measure(folder: Path, plugins: int, repetitions: int) -> None:
    environ = {**os.environ, "EDGECORE_HOME": str(folder / "home"), "PYTHONPATH": str(folder / "site")}
    script = Path(sys.executable).with_name("edgecore")
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    inside: list[float] = []
    for repetition in range(repetitions + 1):  # The first fills the cache and does not count.
        for name, words in COMMANDS.items():
            command = [sys.executable, *words]
            if words[0] == "-m":
                command = [str(script), *words[2:]] if script.is_file() else command
            start = perf_counter()
            done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
            if repetition:
                times[name].append(perf_counter() - start)
                if "discover" in name:
                    inside.append(float(done.stderr.split()[0]))
            if done.returncode:
                print(f"{name} failed: {done.stderr}", file=sys.stderr)
    bare = statistics.median(times["bare Python"])
    print(f"{plugins} plugin{'s' * (plugins > 1)} beside those that are installed")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"  {name:34} {median * 1e3:7.1f} ms, {(median - bare) * 1e3:+7.1f} over bare Python")
    print(f"  {'discover() alone, warm':34} {statistics.median(inside) * 1e3:7.1f} ms")


if __name__ == "__main__":
    main()
